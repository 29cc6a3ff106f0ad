"""The gate of policies that choose poses: the same limits as of those that choose offsets."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.gate import Rig, still

from dtvla_ros.actions import osc
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.conventions import PERSON
from dtvla_ros.errors import UserError
from dtvla_ros.safety.gate import GateState
from dtvla_ros.safety.limits import PROFILES, Limits

POSES = ActionContract.of_pose()
PLACE = np.array([0.5, 0.0, 0.3])
TILTED = (Rotation.from_rotvec([0.2, -0.3, 0.4]) * osc.HOME).as_quat()


class PoseRig(Rig):
    """A gate of poses whose arm is at `PLACE`, `TILTED`, unless told."""

    def __init__(self, limits=PROFILES['fidelity'], contract=POSES, **config):
        super().__init__(limits, contract, **config)

    def heal(self):
        super().heal()
        self.position, self.quaternion = PLACE.copy(), TILTED

    def rows(self, *rows, gripper=1.0, **change):
        values = np.array([[*row, gripper] for row in rows], np.float32)
        return self.chunk(values=values, **{'channels': self.gate._contract.channels, **change})


def pose(offset):
    """Return the row to which an action [6] leads from `PLACE`, `TILTED`, unclipped."""
    turn = Rotation.from_rotvec(osc.RADIANS_PER_UNIT * np.asarray(offset[3:]))
    return osc.pose_row(PLACE + osc.METRES_PER_UNIT * np.asarray(offset[:3]),
                        (turn * Rotation.from_quat(TILTED)).as_quat())


@pytest.mark.parametrize('limits', [Limits(), PROFILES['fidelity'], Limits(
    linear_speed=0.1, step_linear=0.02, step_angular=0.1)], ids=['default', 'fidelity', 'narrow'])
def test_a_pose_moves_the_arm_as_the_offset_to_it_does(limits):
    offsets = [[0.9, -0.2, 0.1, 0.0, 0.6, -1.0], [1.0, 1.0, -1.0, 0.2, 0.2, 0.2],
               [0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, 0.5, 0.3, -0.4, 0.0, 0.1]]
    rigs = PoseRig(limits), PoseRig(limits, ActionContract())
    for rig, rows in zip(rigs, (map(pose, offsets), offsets), strict=True):
        rig.tick()
        assert rig.rows(*rows) is None
    for _ in offsets:
        commands = [rig.tick() for rig in rigs]
        assert [command.state for command in commands] == [GateState.RUN] * 2
        np.testing.assert_allclose(*[command.action for command in commands], atol=1e-5)


def test_a_pose_out_of_reach_is_approached_straight_at_the_speed_of_a_whole_action():
    """An arm that is slower than its policy thought is no fault."""
    rig = PoseRig()
    rig.tick()
    rig.rows(*[pose([4.0, 2.0, -1.0, 0.0, 0.0, 5.0])] * 8)
    for _ in range(8):
        command = rig.tick()
        assert command.state is GateState.RUN
        np.testing.assert_allclose(command.action, [1, 0.5, -0.25, 0, 0, 1, 1], atol=1e-5)
    rig = PoseRig(Limits())
    rig.tick()
    rig.rows(*[pose([4.0, 0.0, 0.0, 0.0, 0.0, 5.0])] * 20)
    fastest = [osc.velocity(rig.tick().action) for _ in range(20)][-1]
    np.testing.assert_allclose(fastest, [0.25, 0, 0, 0, 0, 0.5], atol=1e-5)


def test_a_place_outside_the_workspace_is_not_approached_and_the_way_back_is_free():
    rig = PoseRig()
    rig.tick()
    rig.rows(pose([0.5, 0, 0, 0, 0, 0]), pose([20.0, 0, 0, 0, 0, 0]), pose([0.5, 0, 0, 0, 0, 0]))
    assert rig.tick().action[0] == pytest.approx(0.5, abs=1e-5)
    held = rig.tick()
    assert (held.state, held.reason) == (
        GateState.HOLD, 'target x = 1.500 m is outside [0.15, 0.9]') and still(held)
    assert rig.tick().state is GateState.RUN
    rig.position = np.array([0.95, 0.0, 0.3])  # itself outside
    rig.tick()
    rig.rows(pose([8.2, 0, 0, 0, 0, 0]), pose([10.0, 0, 0, 0, 0, 0]))
    assert rig.tick().action[0] == pytest.approx(-0.8, abs=1e-4)
    assert rig.tick().state is GateState.HOLD


def test_the_offset_is_taken_once_per_row_from_the_pose_at_its_beginning():
    rig = PoseRig(rate=100.0)
    rig.tick()
    rig.rows(pose([1.0, 0, 0, 0, 0, 0]), pose([1.0, 0, 0, 0, 0, 0]))
    told = []
    for k in range(10):
        told.append(rig.tick())
        rig.position = PLACE + [0.005 * (k + 1), 0, 0]
    assert [command.first_tick for command in told] == [True, *[False] * 4] * 2
    np.testing.assert_allclose([c.action[0] for c in told], [1.0] * 5 + [0.5] * 5, atol=1e-5)


def test_without_a_pose_nothing_moves():
    rig = PoseRig(lockstep=True)
    rig.silent = 'pose'
    rig.tick()
    rig.rows(pose([1.0, 0, 0, 0, 0, 0]))
    held = rig.tick()
    assert (held.state, held.reason) == (GateState.HOLD, 'no end-effector pose yet')
    assert still(held, gripper=0.0)
    rig = PoseRig()
    rig.quaternion = np.full(4, np.nan)
    assert [rig.tick() for _ in range(5)][-1].reason.startswith('end-effector pose missing')
    with pytest.raises(UserError, match='pose_timeout_s = 0: with OSC_POSE_ABSOLUTE'):
        PoseRig(pose_timeout_s=0.0)


def test_rows_of_offsets_end_the_task():
    rig = PoseRig()
    rig.tick()
    assert rig.chunk().startswith("chunk channels are ('x', 'y', 'z', 'roll', 'pitch', 'yaw'")
    assert rig.tick().state is GateState.STOP


def test_a_person_drives_by_twists_in_between():
    rig = PoseRig()
    rig.tick()
    rig.rows(*[pose([0.5, 0, 0, 0, 0, 0])] * 8)
    rig.tick()
    assert rig.gate.take_over(rig.steady) is None
    for _ in range(20):
        rig.gate.on_human([0.0, 0.1, 0.0, 0.0, 0.0, 0.0], rig.now, rig.steady)
        command = rig.tick()
    assert rig.gate.driver == PERSON
    np.testing.assert_allclose(osc.velocity(command.action)[:3], [0.0, 0.1, 0.0], atol=1e-9)
    assert rig.gate.hand_back() is None
    rig.tick()
    rig.rows(*[pose([0.0, 0.5, 0, 0, 0, 0])] * 8, stamp=rig.now)
    assert [rig.tick() for _ in range(5)][-1].action[1] == pytest.approx(0.5, abs=1e-5)
