"""Datasets of several suites train one policy, and a policy goes on with words it lacked."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.policies import INSTRUCTION, observation, untrained
from support.tiny import CONFIG, tiny_episode, write_dataset
from tokenizers import Tokenizer

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import IMAGES, write_transform
from dtvla_ros.training.checkpoint import WEIGHTS
from dtvla_ros.training.collate import CAPTIONED
from dtvla_ros.training.config import AuxiliaryConfig
from dtvla_ros.training.data import ABSENT, NOWHERE, locate, object_names
from dtvla_ros.training.export import read_source
from dtvla_ros.training.initialisation import initialise, new_transform, sized
from dtvla_ros.training.sft import SftRun, Trainer, train_sft

BOWLS = ('black_bowl_1', 'black_bowl_2', 'plate_1')


def bowl_episode(seed):
    """Return an episode of another suite: two bowls and a plate that half of the scenes lack."""
    episode = tiny_episode(seed)
    n = len(episode)
    places = np.tile(np.array([0.4, 0.1, 0, 0.6, -0.2, 0, 0.5, 0.0, 0], np.float32), (n, 1))
    points = np.tile(np.array([0.3, 0.3, 0.6, 0.6, 0.5, 0.1], np.float32), (n, 1))
    if seed % 2:
        places[:, 6:], points[:, 4:] = np.nan, np.nan
    if seed == 2:
        points[:] = [0.0, 0.999, 1.0, 0.5, 0.5, -0.01]
    columns = dict(episode.columns) | {layout.PLACES: places, layout.POINTS: points,
                                       layout.REASONING: ['now reach black_bowl at x40 y+10'] * n}
    return replace(episode, task='put the black bowl on the plate', columns=columns, names={
        layout.PLACES: [f'{name}.{axis}' for name in BOWLS for axis in 'xyz']})


@pytest.fixture(scope='module')
def bowls(tmp_path_factory):
    root = tmp_path_factory.mktemp('bowls')
    write_dataset(root, [bowl_episode(k) for k in range(6)])
    return root


def test_a_missing_object_is_absent_and_twins_are_ambiguous(dataset, bowls):
    readers = [DatasetReader(dataset), DatasetReader(bowls)]
    objects = object_names(readers)
    assert objects == ('can', *BOWLS)
    (tiny, *_), (other, alone, patches) = (locate(reader, objects, 16) for reader in readers)
    assert (tiny[:, 0] != ABSENT).all() and (tiny[:, 1:] == ABSENT).all()
    assert (other[:, 0] == ABSENT).all()
    np.testing.assert_array_equal(other[0, 1], [40 - 20, 10 + 45])
    assert not alone[:, :3].any(), 'two black bowls: the name means neither alone'
    frames = len(other) // 6
    np.testing.assert_array_equal(alone[::frames, 3], [True, False] * 3)
    assert patches[::frames][:3].tolist() == [
        [NOWHERE, 5, 10, 2], [NOWHERE, 5, 10, NOWHERE], [NOWHERE, 12, NOWHERE, NOWHERE]]
    stats = json.loads((bowls / layout.STATS).read_text())[layout.PLACES]
    assert stats['mean'][6] == pytest.approx(0.5)
    assert np.isfinite(stats['min'] + stats['max'] + stats['q50']).all()


def test_two_suites_train_one_policy_and_captions_name_what_is_there(dataset, bowls, tmp_path):
    config = replace(CONFIG, auxiliary=AuxiliaryConfig(localisation_steps=2, captioning_steps=2))
    run = SftRun((dataset, bowls), tmp_path, steps=2, weights=(1.0, 3.0))
    trainer = Trainer(config, run)
    assert trainer.batches.objects == ('can', *BOWLS)
    batch = trainer.batches.localisation(0)
    transform = trainer.transform
    for row, asked in zip(batch.input_ids, batch.unambiguous, strict=True):
        said = transform.decode_thought(row[row != transform.config.ids.pad].tolist())
        assert said.count(' at x') == min(int(asked.sum()), CAPTIONED)
        assert 'black bowl at' not in said
    trainer.pretrain()
    again = Trainer(config, run)
    again.pretrain()  # nothing: it was done
    for model in (again.model, again.average):
        assert all(map(torch.equal, model.parameters(), trainer.model.parameters()))
    assert torch.isfinite(trainer.train_step(trainer.batches.train(0))['loss'])
    share = np.mean([trainer.batches.train(k).unambiguous[:, 0].float().mean() for k in range(40)])
    assert 0.15 < share < 0.35, 'a quarter of the draws come from the first dataset'


def test_a_policy_goes_on_with_new_words(dataset, bowls, tmp_path):
    first = tmp_path / 'first'
    train_sft(CONFIG, SftRun((dataset,), first, steps=3))
    before = Trainer(CONFIG, SftRun((dataset,), first, steps=3))
    run = SftRun((bowls,), tmp_path / 'second', steps=3, init=first)
    trainer = Trainer(CONFIG, run)
    old, new = (t.transform.tokenizer.get_vocab() for t in (before, trainer))
    assert set(new) - set(old) == {'black', 'bowl', 'plate'}
    assert trainer.pretraining is None
    assert Trainer(CONFIG, replace(run, pretrain=True)).pretraining is not None
    a, b = before.average.state_dict(), trainer.average.state_dict()
    for word in ('can', 'x45', '<a17>', 'rz+96'):
        assert torch.equal(a['embed_tokens.weight'][old[word]],
                           b['embed_tokens.weight'][new[word]])
    assert all(torch.equal(a[k], b[k]) for k in a if k != 'embed_tokens.weight')
    same = Trainer(CONFIG, SftRun((dataset,), tmp_path / 'third', steps=3, init=first))
    assert same.transform.tokenizer.get_vocab() == old


def test_a_policy_without_words_for_its_gripper_is_refused():
    _, transform = untrained()
    table = json.loads(transform.tokenizer.to_str())
    table['model']['vocab']['g40'] = table['model']['vocab'].pop('g40mm')
    older = replace(transform, tokenizer=Tokenizer.from_str(json.dumps(table)))
    with pytest.raises(UserError, match='g40mm'):
        older.prompt_ids(INSTRUCTION, observation())


@pytest.fixture
def stretched(tmp_path):
    """Return what writes a dataset whose images are so many times as high and wide."""
    def write(down, across):
        root = tmp_path / f'{down}-{across}'
        write_dataset(root, [replace(made, images={
            key: seen.repeat(down, 1).repeat(across, 2) for key, seen in made.images.items()})
            for made in map(tiny_episode, range(2))])
        return root
    return write


def test_datasets_of_one_run_have_images_of_one_shape(dataset, stretched, tmp_path):
    large, wide = stretched(2, 2), stretched(1, 2)
    trainer = Trainer(CONFIG, SftRun((large, dataset), tmp_path / 'run', steps=1))
    assert trainer.transform.sizes == {'primary': (64, 64), 'wrist': (64, 64)}
    with pytest.raises(UserError) as error:
        Trainer(CONFIG, SftRun((dataset, large, wide), tmp_path / 'other', steps=1))
    assert str(error.value).startswith(f"{wide}: the images of the camera 'primary' are 64x32, "
                                       f'those of {dataset} 32x32')


def test_a_run_keeps_the_shape_of_its_images_and_a_new_one_takes_any(dataset, stretched, tmp_path):
    readers = {root: [DatasetReader(root)] for root in (dataset, stretched(2, 2), stretched(2, 1))}
    known, large, high = readers.values()
    first = tmp_path / 'first'
    transform = sized(new_transform(CONFIG, known), known, first)
    write_transform(first, transform)
    save_weights(HybridDecoder(transform.config), first / WEIGHTS)
    assert read_source(first)[2].images.sizes == {'primary': (32, 32), 'wrist': (32, 32)}
    run = SftRun((dataset,), tmp_path / 'second', steps=1, init=first)
    assert initialise(CONFIG, run, large).transform.sizes['primary'] == (64, 64)
    assert initialise(CONFIG, run, high).transform.sizes['primary'] == (32, 64)
    again = replace(run, out=first, init=None)
    with pytest.raises(UserError, match=f"'primary' are 32x64, those of {first} 32x32"):
        initialise(CONFIG, again, high)
    (first / IMAGES).unlink()  # as of a run of before
    assert read_source(first)[2].images.sizes == {}
    assert initialise(CONFIG, again, high).transform.sizes['primary'] == (32, 64)
