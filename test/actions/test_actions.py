"""Tokens and statistics against golden vectors; the OSC_POSE law; which row of a chunk is due."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from support import golden

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk, ChunkQueue, QueueInvariantError
from dtvla_ros.actions.codec import ActionCodec
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.errors import UserError

DT = 0.05


def test_golden_codec_and_statistics():
    data = golden.document('action_codec')
    codec = ActionCodec(data['action_token_begin_idx'], data['action_token_end_idx'])
    assert codec.encode(data['values']).tolist() == data['token_ids']
    np.testing.assert_allclose(codec.decode(data['token_ids']), data['decoded'], atol=1e-6)
    stats = ActionStatistics.from_dict(data, dim=len(data['q01']))
    normalized = stats.normalize(data['raw_actions'])
    np.testing.assert_allclose(normalized, data['normalized'], atol=2e-6)
    np.testing.assert_allclose(stats.unnormalize(data['normalized']), data['unnormalized'],
                               atol=2e-6)
    assert ActionStatistics.from_dict(stats.to_dict()) == stats


@pytest.mark.parametrize('bins', [2, 256, 2048])
def test_round_trip_is_one_bin_up(bins):
    codec = ActionCodec(10, 9 + bins)
    x = np.random.default_rng(0).uniform(-1, 1, 1000)
    step = 2 / (bins - 1)
    tokens = codec.encode(x)
    assert tokens.min() >= 10 and tokens.max() <= 9 + bins
    assert codec.encode([-1.0, 1.0, 9.0]).tolist() == [9 + bins, 10, 10], 'in reversed order'
    error = codec.decode(tokens) - x
    assert np.abs(error).max() <= 1.5 * step + 1e-9
    inner = tokens > 10  # above the topmost bucket there is no bin to be off into
    assert (np.abs(error - step)[inner] <= 0.5 * step + 1e-9).all()


@pytest.mark.parametrize(('q01', 'q99', 'word'), [
    ([-1.0] * 7, None, 'lists of numbers'), (['a'] * 7, [1.0] * 7, 'lists of numbers'),
    ([-1.0] * 6, [1.0] * 7, 'q01 has 6 channels'),
    ([np.nan] + [-1.0] * 6, [1.0] * 7, 'channel 0 is not finite'),
    ([-1.0] * 7, [1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0], 'channel 2')])
def test_bad_statistics(q01, q99, word):
    with pytest.raises(UserError, match=word):
        ActionStatistics.from_dict({'q01': q01, 'q99': q99}, dim=7)


@pytest.mark.parametrize(('word', 'wrong'), [
    ('NaN', lambda: ActionCodec(5, 9).encode([0.0, np.nan])),
    ('outside', lambda: ActionCodec(5, 9).decode([4])), ('no bins', lambda: ActionCodec(5, 5)),
    ('channels', lambda: ActionStatistics((0.0,) * 7, (1.0,) * 7).normalize(np.zeros((2, 6))))])
def test_bad_values(word, wrong):
    with pytest.raises(UserError, match=word):
        wrong()


def test_rotation_is_premultiplied_in_base_axes_and_values_beyond_one_are_clipped():
    tilted = Rotation.from_euler('x', 40, degrees=True)
    goal, turned = osc.target_pose([10, -0.5, 0, 0, 0, 1, 0], [0.5, 0.0, 0.2], tilted.as_quat())
    np.testing.assert_allclose(goal, [0.55, -0.025, 0.2])
    expected = Rotation.from_rotvec([0, 0, 0.5]).as_matrix() @ tilted.as_matrix()
    np.testing.assert_allclose(Rotation.from_quat(turned).as_matrix(), expected, atol=1e-12)


def test_velocity_is_the_settled_speed_not_offset_over_period():
    speed = osc.velocity([1, 0, 0, 0, 1, 0, 0])
    np.testing.assert_allclose(speed, [0.267, 0, 0, 0, 2.67, 0])
    np.testing.assert_allclose(osc.from_velocity(speed), [1, 0, 0, 0, 1, 0])


@pytest.mark.parametrize(('channel', 'last', 'expected'), [
    (-1, 1, -1), (1, -1, 1), (0.0, 1, 1), (0.05, -1, -1), (-0.2, 1, -1), (0.0, 0.0, 0.0)])
def test_gripper_sign_with_dead_band(channel, last, expected):
    assert osc.gripper_command(channel, last) == expected


def chunk(stamp, rows=4, value=None):
    """Return a chunk whose rows count on, or are all of one value."""
    values = np.arange(rows * 7, dtype=np.float32).reshape(rows, 7)
    return Chunk(stamp, DT, values if value is None else np.full((rows, 7), value, np.float32))


def test_a_late_chunk_skips_exactly_the_rows_that_were_played_since_its_observation():
    queue = ChunkQueue(max_latency=1.0)
    queue.put(chunk(0.0, rows=6))
    for k in range(3):
        queue.take(k * DT)
    new = chunk(1 * DT, rows=6, value=0.5)  # observed at tick 1; ticks 1 and 2 were played since
    assert queue.put(new) is None
    assert queue.remaining(3 * DT) == 4


def test_older_and_expired_chunks_are_dropped_and_time_never_goes_back():
    queue = ChunkQueue()
    assert queue.put(chunk(5.0)) is None
    assert all('not newer' in queue.put(chunk(stamp)) for stamp in (4.9, 5.0))
    assert queue.take(5.1) is not None
    with pytest.raises(QueueInvariantError):
        queue.take(5.0)
    assert queue.take(5.2) is None and queue.remaining(5.2) == 0  # 4 rows of 50 ms are over


def test_flush_refuses_what_was_observed_before_and_keeps_what_was_observed_then():
    queue = ChunkQueue()
    queue.put(chunk(1.0))
    queue.flush(2.0)
    assert queue.take(2.0) is None
    assert 'flushed' in queue.put(chunk(1.95))
    assert queue.put(chunk(2.0)) is None
    queue.flush(2.0)
    assert queue.take(2.0) is not None


def test_blending_fades_motion_but_never_the_gripper():
    queue = ChunkQueue(max_latency=1.0, blend_steps=3)
    queue.put(chunk(0.0, rows=8, value=0.0))
    queue.take(0.0)
    queue.put(chunk(DT, rows=8, value=1.0))
    rows = [queue.take((k + 1) * DT) for k in range(5)]
    np.testing.assert_allclose([r[0] for r in rows], [0.25, 0.5, 0.75, 1.0, 1.0])
    np.testing.assert_allclose([r[6] for r in rows], 1.0)


TURNS = st.tuples(*[st.floats(-1.5, 1.5)] * 3)


@given(TURNS, TURNS, TURNS)
def test_a_pose_is_a_row_and_the_action_that_leads_there(place, turn, action):
    quaternion = (Rotation.from_rotvec(turn) * osc.HOME).as_quat()
    row = osc.pose_row(place, quaternion)
    np.testing.assert_allclose(row, [*place, *turn], atol=1e-9)
    again, turned = osc.pose_of(row)
    np.testing.assert_allclose(Rotation.from_quat(turned).as_matrix(),
                               Rotation.from_quat(quaternion).as_matrix(), atol=1e-9)
    told = np.clip([*action, *turn], -1.0, 1.0)
    np.testing.assert_allclose(osc.action_towards(again, turned, *osc.target_pose(
        told, again, turned)), told, atol=1e-6)


def test_fading_poses_goes_the_shorter_way_round():
    fade = ActionContract.of_pose().fade
    old, new = np.zeros((2, 3, 7), np.float32)
    old[:, 5], new[:, 5], new[:, 0], new[:, 6] = np.radians(170), np.radians(-170), 0.4, 1.0
    rows = fade(old, new, np.array([0.25, 0.5, 1.0], np.float32))
    np.testing.assert_allclose(rows[:, 0], [0.1, 0.2, 0.4], atol=1e-6)
    np.testing.assert_allclose(np.degrees(np.abs(rows[:, 5])), [175, 180, 170], atol=1e-3)
    np.testing.assert_allclose(rows[:, 6], 1.0)
