"""The tabletop with an arm of another shape: five joints, a gripper, one camera."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.policies import fitting

import dtvla_sim
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.data import layout
from dtvla_ros.data.collect import CollectOptions, EpisodePlan, record
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.validate import contract, validate
from dtvla_ros.data.writer import merge_shards, write_shard
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env import Env, require_contract
from dtvla_ros.rollout.episode import execute, observation_from_sim, run_expert_episode
from dtvla_sim.env import REST
from dtvla_sim.experts import make_expert

LEMON = 'put_the_lemon_in_the_blue_bin'
CHANNELS = ('panda_joint1', 'panda_joint2', 'panda_joint4', 'panda_joint6', 'panda_joint7',
            'gripper')


@pytest.fixture(scope='module')
def scene():
    env = dtvla_sim.make('tabletop_joints', image_size=32)
    yield env
    env.close()


def test_it_says_what_its_actions_and_cameras_are(scene):
    assert isinstance(scene, Env) and scene.contract.channels == CHANNELS
    obs, info = scene.reset(seed=3, options={'task': LEMON})
    assert set(observation_from_sim(obs, info, scene).images) == {'front'}
    assert scene.action_space.shape == (6,)
    with pytest.raises(UserError, match='action must be 6 finite numbers'):
        scene.step(np.zeros(7))


def test_the_arm_goes_to_the_positions_it_is_told_and_the_other_joints_hold(scene):
    obs, _ = scene.reset(seed=3, options={'task': LEMON})
    goal = scene.action_of(REST)
    goal[:5] += [0.2, -0.1, 0.1, 0.1, 0.3]
    for _ in range(20):
        obs = scene.step(goal)[0]
    np.testing.assert_allclose(obs['robot0_joint_pos'][[0, 1, 3, 5, 6]], goal[:5], atol=0.01)
    np.testing.assert_allclose(obs['robot0_joint_pos'][[2, 4]], 0.0, atol=0.01)


@pytest.mark.parametrize(('action', 'axis'), [([0.5, 0, 0, 0, 0, 0, -1], 0),
                                              ([0, -0.5, 0, 0, 0, 0, -1], 1),
                                              ([0, 0, 0.5, 0, 0, 0, -1], 2)])
def test_an_offset_of_the_end_effector_becomes_positions_that_lead_there(scene, action, axis):
    begin = scene.reset(seed=3, options={'task': LEMON})[0]['robot0_eef_pos']
    for _ in range(10):
        obs = scene.step(scene.action_of(action))[0]
    moved = obs['robot0_eef_pos'] - begin
    assert np.abs(moved).argmax() == axis and np.sign(moved[axis]) == np.sign(action[axis])
    # As fast as OSC_POSE settles: 0.267 m/s per unit, less what it takes to get there.
    assert 0.03 < abs(moved[axis]) < 0.08


def test_the_expert_solves_it(scene):
    result, actions = run_expert_episode(scene, make_expert(scene), LEMON, 0)
    assert result.success and actions.shape == (result.steps, 6)


def test_rows_are_carried_out_with_the_gripper_as_a_switch(scene):
    scene.reset(seed=3, options={'task': LEMON})
    row = scene.action_of(REST).astype(np.float32)
    row[:5] += 1.5  # positions, not clipped to -1..1
    row[5] = 0.02  # says neither
    executed = execute(scene, row[None], 1.0)
    np.testing.assert_allclose(executed.commands[0], [*row[:5], 1.0])


def test_what_is_recorded_says_what_its_actions_are(scene, tmp_path):
    options = CollectOptions('tabletop_joints', tasks=(LEMON,), episodes=1, image_size=32,
                             short_share=1.0)
    made = record(scene, EpisodePlan(0, LEMON, 0, 'short'), options)
    write_shard(tmp_path, 0, made, options.fps)
    merge_shards(tmp_path, contract=scene.contract)
    reader = DatasetReader(tmp_path)
    assert reader.contract == scene.contract and reader.gripper == 5
    assert reader.camera_keys == ['observation.images.front']
    assert tuple(reader.channels(layout.ACTION)) == CHANNELS
    joints = np.asarray(reader.column(layout.JOINTS))[:, [0, 1, 3, 5, 6]]
    assert np.abs(np.asarray(reader.column(layout.ACTION))[:, :5] - joints).max() < 0.3
    assert not validate(tmp_path)
    info = json.loads((tmp_path / layout.INFO).read_text())
    info[layout.CONTRACT]['gripper'] = 'hand'
    (tmp_path / layout.INFO).write_text(json.dumps(info))
    with pytest.raises(UserError, match="action_contract: .*gripper 'hand'"):
        _ = DatasetReader(tmp_path).contract


def test_another_arms_policy_is_refused_by_name(scene):
    with pytest.raises(UserError, match='in the suite tabletop_joints the action space is '
                       'JOINT_POSITION .*, not OSC_POSE'):
        require_contract(fitting(), 'models/nano', scene)
    with pytest.raises(UserError, match="no camera 'wrist', only front"):
        require_contract(fitting(scene.contract, ('front', 'wrist')), 'models/two', scene)


def test_a_dataset_of_another_arm_is_refused_by_name(dataset):
    from support.tiny import CONFIG

    from dtvla_ros.training.initialisation import new_transform

    reader = DatasetReader(dataset)
    config = new_transform(CONFIG, [reader]).config
    wanted = ActionContract.of_joints(CHANNELS[:5])
    assert any('it needs panda_joint1' in remedy for _, remedy in contract(
        reader, replace(config, action_dim=6), 'it', wanted))
    seven = ActionContract.of_joints(('a', 'b', 'c', 'd', 'e', 'f'))
    assert any('the action space is OSC_POSE' in problem
               for problem, _ in contract(reader, config, 'it', seven))
