"""A batch is what the policy's own transform would say, and nothing is supervised by accident."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.tiny import CONFIG

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import Observation
from dtvla_ros.policy.vocabulary import turned_round
from dtvla_ros.training.auxiliary.direction_flip import DirectionFlip
from dtvla_ros.training.collate import Collator, augment
from dtvla_ros.training.config import AuxiliaryConfig, ModelConfig
from dtvla_ros.training.data import (
    object_names,
    open_frames,
    says_done,
    thing_names,
    tokenize,
)
from dtvla_ros.training.initialisation import new_transform

DIRECTIONS = 'holding nothing now reach can at x45 y-12 next lower move forward left still'


@pytest.fixture(scope='module')
def made(dataset):
    reader = DatasetReader(dataset)
    transform = new_transform(CONFIG, [reader])
    rows = tokenize([reader], transform, object_names([reader]))
    frames = open_frames(reader, transform)
    return reader, transform, rows, frames, Collator(rows, [frames], transform, CONFIG)


def test_plain_sequences_are_the_transforms(made):
    reader, transform, _, _, collator = made
    index, ids = np.array([0, 13, 29, 60]), transform.config.ids
    batch = collator.plain(index)
    chunk = reader.column(layout.ACTION_CHUNK).reshape(-1, 8, 7)
    for row, k in enumerate(index):
        task, state = reader.tasks[reader.column('task_index')[k]], reader.column(layout.STATE)[k]
        prompt = transform.prompt_ids(task, Observation(
            {}, {}, state[:3].astype(float), Rotation.from_rotvec(state[3:6]).as_quat(),
            float(state[6] - state[7]), task, 0.0))
        said = transform.encode_thought(reader.column(layout.REASONING)[k])
        actions = transform.encode_actions(chunk[k, :4]).tolist()
        wanted = [*prompt, *said, ids.action, *actions, ids.action_end, ids.eos]
        length = int(batch.attention_mask[row].sum())
        assert batch.input_ids[row, :length].tolist() == wanted
        assert batch.action_start[row] == len(prompt) + len(said)
        mine = batch.token_rows[0] == row
        columns = batch.token_rows[1][mine] + 1
        learnt = [*range(len(prompt), len(prompt) + len(said) + 1), length - 2, length - 1]
        assert columns.tolist() == learnt
        assert batch.token_targets[mine].tolist() == [wanted[c] for c in learnt]
        assert (batch.action_targets[row] + ids.bins_first).tolist() == actions


def test_images_are_the_transforms_decoded_once_and_again_when_the_size_changes(made):
    reader, transform, _, frames, collator = made
    assert len(frames) == len(reader.table)
    for k, pixels in zip((5, 40), collator.plain(np.array([5, 40])).pixels(), strict=True):
        images = {name: reader.image(*divmod(k, 12), key) for key, name in layout.CAMERAS.items()}
        np.testing.assert_allclose(pixels.numpy(), transform.pixels(images), atol=1e-5)
    path = reader.root / '.frames' / 'frames.u8'
    before = path.stat().st_mtime_ns
    open_frames(reader, transform)
    assert path.stat().st_mtime_ns == before
    other = replace(CONFIG, model=ModelConfig(image_size=64, tokens=(16, 4)))
    assert open_frames(reader, new_transform(other, [reader])).shape[2:4] == (64, 64)
    assert open_frames(reader, transform).shape[2:4] == (32, 32)


def test_images_of_another_size_than_the_dataset_says_are_refused(made):
    other = DatasetReader(made[0].root)
    other.info['features'][next(iter(layout.CAMERAS))]['shape'] = [24, 32, 3]
    config = replace(CONFIG, model=ModelConfig(image_size=64, tokens=(16, 4)))  # decodes anew
    with pytest.raises(UserError, match='images of 32x32 .* says 24x32; correct the shape'):
        open_frames(other, new_transform(config, [made[0]]))


def thoughts(made, rows=None, **changes):
    """Yield task, thought ids and which of these are learnt, of the 64 rows of a batch."""
    _, transform, tokenized, frames, _ = made
    config = replace(CONFIG, **{'batch_size': 64, 'reasoning_dropout': 0.0, 'place_noise': 0.0}
                     | changes)
    batch = Collator(rows or tokenized, [frames], transform, config).train(0)
    ids = transform.config.ids
    after = [ids.action, ids.action_end, ids.eos]
    for b, start in enumerate(batch.action_start.tolist()):
        row = batch.input_ids[b].tolist()
        think = row.index(ids.think)
        mine = batch.token_rows[0] == b
        targets, places = batch.token_targets[mine].tolist(), batch.token_rows[1, mine].tolist()
        assert targets == [row[k + 1] for k in places] and targets[-3:] == after
        task = transform.decode_thought(row[:think]).split(';')[0]
        yield task, row[think:start], targets[:-3]


def test_a_dropped_thought_is_empty_and_not_learnt(made):
    found = list(thoughts(made, reasoning_dropout=0.99))
    assert all(learnt == (thought if len(thought) > 2 else []) for _, thought, learnt in found)
    assert sum(not learnt for *_, learnt in found) > 55


def test_a_counterfactual_thought_is_read_and_not_learnt_as_a_whole(made):
    rows = made[2]
    own = {tuple(t[:n]) for t, n in zip(rows.thought, rows.thought_length, strict=True)}
    found = list(thoughts(made, counterfactual=0.8))
    assert all(tuple(thought) in own for _, thought, _ in found)
    assert 40 < sum(learnt != thought for _, thought, learnt in found) < 60
    assert len({task for task, *_ in found}) == 2


def test_what_no_task_changes_is_learnt_of_a_counterfactual_thought(made):
    _, transform, rows, *_ = made
    tokens = transform.encode_thought(DIRECTIONS)
    rows = replace(rows, thought=np.tile(tokens, (len(rows.thought), 1)),
                   thought_length=np.full(len(rows.thought), len(tokens)))
    found = [learnt for *_, learnt in thoughts(made, rows, counterfactual=0.8)
             if learnt != tokens]
    said = {transform.decode_thought(learnt) for learnt in found}
    assert 40 < len(found) < 60
    assert said == {DIRECTIONS.replace('holding ', '').replace('now reach can at ', '')}


def test_a_flipped_thought_is_read_and_not_learnt(made):
    _, transform, rows, *_ = made
    tokens, flipped = map(transform.encode_thought, (DIRECTIONS, turned_round(DIRECTIONS)))
    rows = replace(rows, thought=np.tile(tokens, (len(rows.thought), 1)),
                   thought_length=np.full(len(rows.thought), len(tokens)))
    found = list(thoughts(made, rows, auxiliary=AuxiliaryConfig(direction_flip=0.5)))
    assert all((thought, learnt) in ((tokens, tokens), (flipped, []))
               for _, thought, learnt in found)
    assert 20 < sum(not learnt for *_, learnt in found) < 44


def test_a_flipped_thought_has_mirrored_actions_along_its_axes(made):
    transform = made[1]
    chunk = np.random.default_rng(0).uniform(-0.04, 0.04, (4, 7))
    without = DIRECTIONS.replace('forward left still', 'still still still')
    thought = np.array([transform.encode_thought(DIRECTIONS), transform.encode_thought(without)])
    actions = np.repeat(transform.encode_actions(chunk)[None], 2, 0)
    flip = DirectionFlip(transform)
    flipped, mirrored = flip(thought, actions)
    assert flipped[0].tolist() == transform.encode_thought(turned_round(DIRECTIONS))
    assert flipped[1].tolist() == thought[1].tolist()
    assert mirrored[1].tolist() == actions[1].tolist()
    before, after = transform.decode_actions(actions[0]), transform.decode_actions(mirrored[0])
    width = (np.array(transform.statistics.q99) - transform.statistics.q01) / 256
    assert np.abs(after[:, :2] + before[:, :2]).max() < 4 * width[:2].max()
    assert np.array_equal(after[:, 2:], before[:, 2:])
    assert [x.shape for x in flip(thought[:0], actions[:0])] == [
        thought[:0].shape, actions[:0].shape]


def test_a_vocabulary_without_directions_is_refused(made, monkeypatch):
    monkeypatch.setattr('dtvla_ros.training.auxiliary.direction_flip.MARK', 'go')
    with pytest.raises(UserError, match='words for directions'):
        DirectionFlip(made[1])


@pytest.mark.parametrize(('phase', 'says'), [('reach', False), ('wait', True)])
def test_whether_data_says_that_a_task_is_done_is_known(phase, says):
    """A push is followed by waiting, which does not say so."""
    thought = 'holding nothing done can now {} can at x50 y-17 next wait move still still still'
    reader = SimpleNamespace(column=lambda name: ['', 'now wait', thought.format(phase)])
    assert says_done(reader) is says
    assert thing_names(reader) == {'can'}


def test_held_out_episodes_are_never_drawn(made):
    *_, rows, frames, collator = made
    held = set(rows.scene[collator.validation])
    assert 0 < len(held) < 10
    drawn = [rows.scene[collator._choose(step, 0)[0]] for step in range(30)]
    assert not held & set(np.concatenate(drawn))


def test_frames_near_a_toggle_and_the_start_are_known(made):
    reader, _, rows, *_ = made
    closing = reader.column(layout.ACTION_CHUNK).reshape(-1, 8, 7)[:, :4, 6] > 0
    toggles = closing.any(1) & ~closing.all(1)
    assert (rows.near_toggle | ~toggles).all() and rows.near_toggle.mean() < 0.5
    assert rows.near_start.reshape(10, 12).sum(1).tolist() == [6] * 10


def test_images_are_moved_edges_repeated_and_recoloured():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
    out = np.empty_like(image)
    moved = {image[np.clip(np.arange(9) - dy, 0, 8)][:, np.clip(np.arange(9) - dx, 0, 8)].tobytes()
             for dy in range(-2, 3) for dx in range(-2, 3)}
    seen = set()
    for _ in range(200):
        augment(image, out, rng, 2, 0.0)
        seen.add(out.tobytes())
    assert seen == moved
    augment(image, out, rng, 0, 1.0)
    assert np.abs(out.astype(int) - image).mean() > 2


def test_chunks_that_are_too_short_are_refused(made):
    reader = made[0]
    config = replace(CONFIG, model=replace(CONFIG.model, chunk_steps=12))
    with pytest.raises(UserError, match='--chunk 12'):
        tokenize([reader], new_transform(config, [reader]), ())


@pytest.mark.parametrize('boost', [0.0, 1.0, 6.0])
@pytest.mark.parametrize('column, key', [('intervention', 'intervention_boost'),
                                         ('failed', 'failure_boost')])
def test_what_a_person_drove_and_what_failed_is_drawn_as_often_as_told(made, boost, column, key):
    _, transform, rows, frames, _ = made
    assert not getattr(rows, column).any(), 'the dataset does not say'
    some = rows.scene % 4 == 0
    config = replace(CONFIG, batch_size=2000, toggle_boost=1.0, start_boost=1.0,
                     validation_share=0.0, **{key: boost})
    index = Collator(replace(rows, **{column: some}), [frames], transform, config)._choose(
        0, 0)[0]
    wanted = some.mean() * boost / (some.mean() * boost + 1 - some.mean())
    assert some[index].mean() == pytest.approx(wanted, abs=0.05)
    if not boost:
        with pytest.raises(UserError, match=f'{key} 0.*no frame is left to draw'):
            Collator(replace(rows, **{column: some | True}), [frames], transform, config)
