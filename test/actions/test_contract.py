import json

import numpy as np
import pytest

from dtvla_ros.actions.contract import (
    JOINT_DELTA,
    JOINT_POSITION,
    ActionContract,
    differences,
    require_offsets,
)
from dtvla_ros.errors import UserError

ARM = ('pan', 'lift', 'elbow', 'flex', 'roll')
JOINTS = ActionContract.of_joints(ARM)
POSES = ActionContract.of_pose()
COUNTS = ActionContract(
    controller=JOINT_POSITION, channels=('jaw', 'slide', 'turn'), units=('%', 'm', 'rad'),
    gripper='jaw', gripper_open=100.0, gripper_close=0.0)


def test_todays_contract_is_written_as_it_was():
    assert ActionContract(replan_steps=3).to_dict() == {
        'controller': 'OSC_POSE', 'metres_per_unit': 0.05, 'radians_per_unit': 0.5,
        'frame': 'base', 'rate_hz': 20.0, 'gripper_open': -1.0, 'gripper_close': 1.0,
        'replan_steps': 3}


@pytest.mark.parametrize('contract', [ActionContract(), POSES, JOINTS, COUNTS])
def test_contract_survives_its_file(contract):
    assert ActionContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_channels_of_another_arm():
    assert (JOINTS.dim, JOINTS.joints, JOINTS.gripper_index) == (6, ARM, 5)
    assert (COUNTS.dim, COUNTS.joints, COUNTS.gripper_index) == (3, ('slide', 'turn'), 0)
    assert COUNTS.motion.tolist() == [1, 2]
    without = ActionContract.of_joints(ARM, gripper='')
    assert (without.dim, without.gripper_index) == (5, None)
    assert not without.closes(np.ones((4, 5))).any()


def test_gripper_convention():
    actions = [[100.0, 0, 0], [0.0, 0, 0], [75.0, 0, 0]]
    np.testing.assert_allclose(COUNTS.switch(np.array(actions)[:, 0]), [-1.0, 1.0, -0.5])
    np.testing.assert_allclose(COUNTS.from_switch([-1.0, 1.0, 0.0]), [100.0, 0.0, 50.0])
    assert COUNTS.closes(actions).tolist() == [False, True, False]


def test_rest_of_offsets_and_of_positions():
    action = [0.1, 0.2, 0.3, 0.4, 0.5, 1.0]
    offsets = ActionContract.of_joints(ARM, JOINT_DELTA)
    np.testing.assert_allclose(offsets.at_rest(action), [0, 0, 0, 0, 0, 1.0])
    np.testing.assert_allclose(JOINTS.at_rest(action), action, rtol=1e-6)


@pytest.mark.parametrize(('changed', 'named'), [
    ({'channels': ('a', 'a')}, 'each once'), ({'channels': ()}, 'must be names'),
    ({'units': ('rad',)}, '1 units for 6 channels'), ({'gripper': 'hand'}, "gripper 'hand'"),
    ({'units': ('deg', *['rad'] * 5)}, "unit of pan must be one of rad, m, got 'deg'"),
    ({'gripper_open': 1.0}, 'gripper_open and gripper_close are both'),
    ({'rate_hz': 0.0}, 'rate_hz must be positive'), ({'rate_hz': '20'}, 'rate_hz'),
    ({'replan_steps': 2.5}, 'replan_steps'), ({'speed': 1}, "no field 'speed'")])
def test_wrong_contract_is_named(changed, named):
    with pytest.raises(UserError, match=named):
        ActionContract.from_dict(JOINTS.to_dict() | changed)


def test_a_pose_says_where_its_turns_begin_and_nothing_of_units_per_step():
    told = POSES.to_dict()
    assert told['units'] == (*['m'] * 3, *['rad from quaternion (1, 0, 0, 0)'] * 3,
                             'open -1, closed 1')
    assert told['channels'] == ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper')
    assert told['frame'] == 'base' and 'metres_per_unit' not in told
    np.testing.assert_allclose(POSES.at_rest([1.0] * 7), 1.0)
    assert not (POSES.is_offset or POSES.is_normalised or POSES.is_joints)


@pytest.mark.parametrize(('changed', 'named'), [
    ({'units': ['m'] * 7}, 'OSC_POSE_ABSOLUTE has the units m; m; m; rad from quaternion'),
    ({'channels': list(ActionContract().channels)}, 'has the channels x, y, z, rx, ry, rz'),
    ({'gripper_open': 0.0}, 'opens the gripper at -1 and closes it at 1, got 0')])
def test_another_pose_is_named(changed, named):
    with pytest.raises(UserError, match=named):
        ActionContract.from_dict(POSES.to_dict() | changed)
    with pytest.raises(UserError, match='units is missing'):
        ActionContract.from_dict({k: v for k, v in POSES.to_dict().items() if k != 'units'})


@pytest.mark.parametrize('contract', [POSES, JOINTS])
def test_what_is_for_offsets_refuses_others_by_name(contract):
    require_offsets(ActionContract(), 'models/nano', 'dtvla steer')
    with pytest.raises(UserError, match=f'models/arm: its actions are {contract.controller}, '
                       'dtvla steer is for OSC_POSE'):
        require_offsets(contract, 'models/arm', 'dtvla steer')


def test_joints_need_their_channels():
    with pytest.raises(UserError, match='channels is missing'):
        ActionContract.from_dict({'controller': JOINT_POSITION})
    with pytest.raises(UserError, match='OSC_POSE has the channels'):
        ActionContract(channels=('x', 'y'), units=('m', 'm'))


@pytest.mark.parametrize(('other', 'told'), [
    (ActionContract(), 'the action space is OSC_POSE'),
    (POSES, "the action space is OSC_POSE_ABSOLUTE (end effector's pose in the base frame), not"),
    (ActionContract.of_joints(ARM[:4]), 'the channels are pan, lift, elbow, flex, gripper, not'),
    (ActionContract.of_joints(ARM, rate_hz=30.0), 'the rate is 30 Hz, not 20 Hz'),
    (ActionContract.of_joints(ARM, gripper_open=1.7, gripper_close=-0.1),
     'gripper_open is 1.7, not -1.0')])
def test_differences_are_named(other, told):
    assert differences(JOINTS, other)[0].startswith(told)


def test_number_of_rows_until_the_next_decision_is_no_difference():
    assert not differences(JOINTS, ActionContract.of_joints(ARM, replan_steps=2))
