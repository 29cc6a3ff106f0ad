"""A batch is what the policy's own transform would say, and nothing is supervised by accident."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.tiny import CONFIG

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import Observation
from dtvla_ros.training.augment import colour_map, recoloured, shifted
from dtvla_ros.training.auxiliary.localisation import thing_names
from dtvla_ros.training.collate import BatchMaker
from dtvla_ros.training.config import ModelChoice, SftConfig
from dtvla_ros.training.frame_cache import open_frames
from dtvla_ros.training.start import new_transform
from dtvla_ros.training.tokenized import build_samples


@pytest.fixture(scope='module')
def made(dataset):
    reader = DatasetReader(dataset)
    transform = new_transform(CONFIG, [reader])
    samples = build_samples(reader, transform, thing_names([reader]))
    frames = open_frames(reader, transform)
    return reader, transform, samples, frames, BatchMaker(samples, [frames], transform, CONFIG)


def observation(state, task):
    return Observation(
        images={}, joint_positions={}, ee_position=state[:3].astype(float),
        ee_quaternion=Rotation.from_rotvec(state[3:6]).as_quat(),
        gripper_opening=float(state[6] - state[7]), instruction=task, stamp=0.0)


def test_plain_sequences_are_the_transforms(made):
    reader, transform, _, _, maker = made
    index = np.array([0, 13, 29, 60])
    batch = maker.plain(index)
    state, thought = reader.column(layout.STATE), reader.column(layout.REASONING)
    chunk = reader.column(layout.ACTION_CHUNK).reshape(-1, 8, 7)
    for row, k in enumerate(index):
        task = reader.tasks[reader.column('task_index')[k]]
        prompt = transform.prompt_ids(task, observation(state[k], task))
        said = transform.encode_thought(thought[k])
        actions = transform.encode_actions(chunk[k, :4]).tolist()
        ids = transform.config.ids
        wanted = [*prompt, *said, ids.action, *actions, ids.action_end, ids.eos]
        length = int(batch.attention_mask[row].sum())
        assert batch.input_ids[row, :length].tolist() == wanted
        assert batch.action_start[row] == len(prompt) + len(said)
        mine = batch.token_rows[0] == row
        columns = batch.token_rows[1][mine] + 1
        learnt = [*range(len(prompt), len(prompt) + len(said) + 1), length - 2, length - 1]
        assert columns.tolist() == learnt
        assert batch.token_targets[mine].tolist() == [wanted[c] for c in learnt]
        np.testing.assert_allclose(
            transform.decode_actions(batch.action_targets[row].numpy() + ids.bins_first),
            np.clip(chunk[k, :4], *np.array([transform.statistics.q01, transform.statistics.q99])),
            atol=2.5 * 2 / 255)


def test_images_are_the_transforms(made):
    reader, transform, _, frames, maker = made
    batch = maker.plain(np.array([5, 40]))
    pixels = batch.pixels()
    assert pixels.shape == (2, 2, 3, 32, 32)
    for row, k in enumerate((5, 40)):
        episode, frame = divmod(k, 12)
        images = {name: reader.image(episode, frame, key)
                  for key, name in layout.CAMERAS.items()}
        np.testing.assert_allclose(pixels[row].numpy(), transform.pixels(images), atol=1e-5)
    assert frames.frames.shape[0] == len(reader.table)


def test_the_cache_is_made_once_and_again_when_the_size_changes(made):
    reader, transform, *_ = made
    path = reader.root / '.frames' / 'frames.u8'
    before = path.stat().st_mtime_ns
    open_frames(reader, transform)
    assert path.stat().st_mtime_ns == before
    other = SftConfig(model=ModelChoice(image_size=64, tokens=(16, 4)), shift=(1, 1))
    assert open_frames(reader, new_transform(other, [reader])).frames.shape[2:4] == (64, 64)
    assert open_frames(reader, transform).frames.shape[2:4] == (32, 32)


def test_training_batches_depend_on_the_step_alone(made):
    *_, maker = made
    first, again, other = maker.train(7), maker.train(7), maker.train(8)
    for name in first.__slots__:
        assert (getattr(first, name) == getattr(again, name)).all()
    assert first.input_ids.shape != other.input_ids.shape or not (
        first.input_ids == other.input_ids).all()


def test_dropped_thoughts_are_not_learnt(made):
    _, transform, samples, frames, _ = made
    config = SftConfig.from_dict(CONFIG.to_dict() | {'reasoning_dropout': 0.99, 'batch_size': 64})
    batch = BatchMaker(samples, [frames], transform, config).train(0)
    ids = transform.config.ids
    empty = [b for b in range(64) if batch.input_ids[b, batch.action_start[b] - 2] == ids.think]
    assert len(empty) > 55
    for b in empty:
        targets = batch.token_targets[batch.token_rows[0] == b].tolist()
        assert targets == [ids.action, ids.action_end, ids.eos]


def test_a_thought_under_another_instruction_is_read_and_not_learnt(made):
    _, transform, samples, frames, _ = made
    config = SftConfig.from_dict(CONFIG.to_dict() | {
        'reasoning_dropout': 0.0, 'counterfactual': 0.8, 'batch_size': 64, 'place_noise': 0.0})
    batch = BatchMaker(samples, [frames], transform, config).train(0)
    ids = transform.config.ids
    own = {tuple(t[:n]) for t, n in zip(samples.thought, samples.thought_length, strict=True)}
    misled = 0
    tasks = set()
    for b in range(64):
        row, start = batch.input_ids[b].tolist(), int(batch.action_start[b])
        think = row.index(ids.think)
        assert tuple(row[think:start]) in own
        targets = batch.token_targets[batch.token_rows[0] == b].tolist()
        assert targets in ([*row[think:start + 1], ids.action_end, ids.eos],
                           [ids.action, ids.action_end, ids.eos])
        tasks.add(transform.decode_thought(row[:think]).split(';')[0])
        misled += len(targets) == 3
    assert 40 < misled < 60
    assert len(tasks) == 2


def test_held_out_episodes_are_never_drawn(made):
    *_, samples, frames, maker = made
    held = set(samples.scene[maker.validation])
    assert 0 < len(held) < 10
    seen = set()
    for step in range(30):
        rng = np.random.default_rng([CONFIG.seed, step, 0])
        draw = np.searchsorted(maker._boosted, rng.random(CONFIG.batch_size))
        seen |= set(samples.scene[draw])
    assert not held & seen


def test_frames_near_a_toggle_and_the_start_are_known(made):
    reader, _, samples, *_ = made
    closing = reader.column(layout.ACTION_CHUNK).reshape(-1, 8, 7)[:, :4, 6] > 0
    toggles = closing.any(1) & ~closing.all(1)
    assert (samples.near_toggle | ~toggles).all()
    assert samples.near_toggle.mean() < 0.5
    assert samples.near_start.reshape(10, 12).sum(1).tolist() == [6] * 10


def test_shift_moves_and_repeats_edges():
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    out = np.empty_like(image)
    for dy, dx in ((0, 0), (2, -1), (-1, 3)):
        shifted(image, out, dy, dx)
        rows = np.clip(np.arange(5) - dy, 0, 4)
        columns = np.clip(np.arange(6) - dx, 0, 5)
        np.testing.assert_array_equal(out, image[rows][:, columns])


def test_colours_change_but_grey_stays_grey_without_light():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    same = image.copy()
    recoloured(same, colour_map(rng, 0.0))
    np.testing.assert_array_equal(same, image)
    changed = image.copy()
    recoloured(changed, colour_map(rng, 1.0))
    assert np.abs(changed.astype(int) - image).mean() > 2


def test_chunks_that_are_too_short_are_told(made):
    reader, *_ = made
    config = SftConfig.from_dict(
        CONFIG.to_dict() | {'model': CONFIG.to_dict()['model'] | {'chunk_steps': 12}})
    with pytest.raises(UserError, match='--chunk 12'):
        build_samples(reader, new_transform(config, [reader]), ())
