"""A thought turned round asks for the opposite actions, along the axes it speaks of alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.tiny import CONFIG

from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.policy.vocabulary import turned_round
from dtvla_ros.training.auxiliary.direction_flip import Turning
from dtvla_ros.training.collate import BatchMaker
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.frame_cache import open_frames
from dtvla_ros.training.start import new_transform
from dtvla_ros.training.tokenized import build_samples

SAID = 'holding nothing now reach can at x45 y-12 next lower move forward left still'


@pytest.fixture(scope='module')
def reader(dataset):
    return DatasetReader(dataset)


@pytest.fixture(scope='module')
def transform(reader):
    return new_transform(CONFIG, [reader])


def test_what_is_turned_goes_the_other_way_and_the_rest_stays(transform):
    chunk = np.random.default_rng(0).uniform(-0.04, 0.04, (4, 7))
    thought = np.array([transform.encode_thought(SAID),
                        transform.encode_thought(SAID.replace('forward left still',
                                                              'still still still'))])
    actions = np.repeat(transform.encode_actions(chunk)[None], 2, 0)
    said, acts = Turning.of(transform).turned(thought, actions)
    assert said[0].tolist() == transform.encode_thought(turned_round(SAID))
    assert said[1].tolist() == thought[1].tolist()
    assert acts[1].tolist() == actions[1].tolist()
    before, after = transform.decode_actions(actions[0]), transform.decode_actions(acts[0])
    statistics = transform.statistics
    width = (np.array(statistics.q99) - statistics.q01) / 256
    assert np.abs(after[:, :2] + before[:, :2]).max() < 4 * width[:2].max()
    assert np.array_equal(after[:, 2:], before[:, 2:])


def test_turned_rows_are_read_and_not_learnt(reader, transform):
    samples = build_samples(reader, transform, ())
    words = transform.encode_thought(SAID)
    samples = replace(samples, thought=np.tile(words, (len(samples), 1)),
                      thought_length=np.full(len(samples), len(words)))
    config = SftConfig.from_dict(CONFIG.to_dict() | {
        'reasoning_dropout': 0.0, 'turned': 0.5, 'batch_size': 64, 'place_noise': 0.0})
    batch = BatchMaker(samples, [open_frames(reader, transform)], transform, config).train(0)
    other = transform.encode_thought(turned_round(SAID))
    found = 0
    for b in range(64):
        start = int(batch.action_start[b])
        said = batch.input_ids[b, start - len(words):start].tolist()
        learnt = int((batch.token_rows[0] == b).sum())
        assert (said, learnt) in ((words, len(words) + 3), (other, 3))
        found += said == other
    assert 20 < found < 44


def test_a_vocabulary_without_directions_is_refused(transform, monkeypatch):
    monkeypatch.setattr('dtvla_ros.training.auxiliary.direction_flip.MARK', 'go')
    with pytest.raises(UserError, match='words for directions'):
        Turning.of(transform)


def test_a_batch_without_turned_rows_stays_as_it_is(transform):
    said, acts = Turning.of(transform).turned(
        np.zeros((0, 12), np.int64), np.zeros((0, transform.config.slots), np.int64))
    assert said.shape == (0, 12)
    assert acts.shape == (0, transform.config.slots)
