"""The tabletop's arm, commanded by poses of its end effector."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.policies import fitting

import dtvla_sim
from dtvla_ros.actions import osc
from dtvla_ros.conventions import POSE_CHANNELS
from dtvla_ros.data import layout
from dtvla_ros.data.checks import Numbers, check_numbers
from dtvla_ros.data.collect import CollectOptions, EpisodePlan, record
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.validate import contract, validate
from dtvla_ros.data.writer import merge_shards, write_shard
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env import Env, require_contract
from dtvla_ros.rollout.episode import (
    execute,
    observation_from_sim,
    run_expert_episode,
    run_replay_episode,
)
from dtvla_sim.experts import make_expert

LEMON = 'put_the_lemon_in_the_blue_bin'


@pytest.fixture(scope='module')
def scene():
    env = dtvla_sim.make('tabletop_poses', image_size=32)
    yield env
    env.close()


def begin(scene):
    """Return what is observed at a start, and the measured pose in the base frame."""
    seen = observation_from_sim(*scene.reset(seed=3, options={'task': LEMON}), scene)
    return seen, (seen.ee_position, seen.ee_quaternion)


def test_an_offset_becomes_the_pose_that_it_is_an_offset_to(scene):
    seen, measured = begin(scene)
    assert isinstance(scene, Env) and set(seen.images) == {'primary', 'wrist'}
    action = np.array([0.4, -1.0, 0.2, 0.1, -0.3, 0.5, 1.0])
    pose = scene.action_of(action)
    assert pose[6] == 1.0 and np.abs(pose[3:6]).max() < 0.5, 'turns are from straight down'
    np.testing.assert_allclose(
        osc.action_towards(*measured, *osc.pose_of(pose)), action[:6], atol=1e-9)


def test_the_arm_goes_to_the_pose_it_is_told_and_stays(scene):
    _, (position, quaternion) = begin(scene)
    turned = Rotation.from_euler('z', 0.3) * Rotation.from_quat(quaternion)
    goal = np.append(osc.pose_row(position + [0.05, -0.06, 0.04], turned.as_quat()), -1.0)
    for _ in range(40):
        obs = scene.step(goal)[0]
    seen = observation_from_sim(obs, {'instruction': ''}, scene)
    np.testing.assert_allclose(
        osc.pose_row(seen.ee_position, seen.ee_quaternion), goal[:6], atol=0.01)


def test_recorded_poses_of_an_expert_solve_it_again(scene):
    result, poses = run_expert_episode(scene, make_expert(scene), LEMON, 0)
    assert result.success and poses.shape == (result.steps, 7)
    assert run_replay_episode(scene, poses, LEMON, 0).success
    assert not run_replay_episode(scene, poses + [0, 0, 0.1, 0, 0, 0, 0], LEMON, 0).success


def test_rows_are_carried_out_as_they_are_with_the_gripper_as_a_switch(scene):
    begin(scene)
    row = scene.action_of(np.zeros(7)).astype(np.float32)
    row[:3] += [0.0, 0.0, 1.5]  # metres, not clipped to -1..1
    row[6] = 0.02  # says neither
    np.testing.assert_allclose(execute(scene, row[None], 1.0).commands[0], [*row[:6], 1.0])


def test_what_is_recorded_says_what_its_actions_are(scene, tmp_path):
    options = CollectOptions('tabletop_poses', tasks=(LEMON,), episodes=1, image_size=32,
                             short_share=1.0)
    made = record(scene, EpisodePlan(0, LEMON, 0, 'short'), options)
    write_shard(tmp_path, 0, made, options.fps)
    merge_shards(tmp_path, contract=scene.contract)
    reader = DatasetReader(tmp_path)
    assert reader.contract == scene.contract and not validate(tmp_path)
    assert tuple(reader.channels(layout.ACTION)) == POSE_CHANNELS
    # Read as offsets from the state, they are what the expert chose.
    numbers = Numbers.of(reader)
    offsets = numbers.action
    assert np.abs(offsets).max() <= 1.0 + 1e-4 and np.ptp(offsets[:, :3], 0).max() > 0.1
    far = check_numbers(replace(numbers, action=3.0 * offsets))
    assert any('poses more than 0.05 m or 0.5 rad away' in issue.problem for issue in far)
    from support.tiny import CONFIG

    from dtvla_ros.training.auxiliary.direction_flip import DirectionFlip
    from dtvla_ros.training.initialisation import new_transform

    transform = new_transform(CONFIG, [reader])
    assert transform.contract == scene.contract
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(len(offsets), -1, 7)[0]
    steps = transform.config.chunk_steps
    decoded = transform.decode_actions(transform.encode_actions(chunk[:steps]))
    np.testing.assert_allclose(decoded, chunk[:steps], atol=0.02)
    with pytest.raises(UserError, match='offsets of the end effector, these actions are OSC_POSE'):
        DirectionFlip(transform)
    assert [told for told, _ in contract(reader, transform.config, 'it')] == [
        "the action space is OSC_POSE_ABSOLUTE (end effector's pose in the base frame), not "
        "OSC_POSE (end effector's offset from the measured pose): it makes others"]


def test_a_policy_of_offsets_is_refused_by_name(scene):
    with pytest.raises(UserError, match='in the suite tabletop_poses the action space is '
                       'OSC_POSE_ABSOLUTE .*, not OSC_POSE'):
        require_contract(fitting(), 'models/nano', scene)
    with pytest.raises(UserError, match='takes OSC_POSE_ABSOLUTE, dtvla demo is for OSC_POSE'):
        dtvla_sim.require_offsets('tabletop_poses', 'dtvla demo')
