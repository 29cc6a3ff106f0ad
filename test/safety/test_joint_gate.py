"""The gate of arms that are commanded by their joints: limits, state, rest."""

import numpy as np
import pytest

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.actions.contract import JOINT_DELTA, ActionContract
from dtvla_ros.errors import UserError
from dtvla_ros.safety.gate import GateConfig, GateState
from dtvla_ros.safety.joint_gate import BEYOND, NO_TWISTS, JointGate
from dtvla_ros.safety.joint_limits import JointLimiter, JointLimits, bounds_of

JOINTS = ('pan', 'lift')
DT = 0.05
LIMITS = JointLimits(joint_lower=(-1.0, 0.0), joint_upper=(1.0, 2.0), joint_velocity=(1.0, 2.0),
                     joint_acceleration=(10.0,), joint_lead=(0.5,))
FREE = JointLimits(joint_lower=(-1.0, 0.0), joint_upper=(1.0, 2.0), joint_velocity=(np.inf,),
                   joint_acceleration=(np.inf,), joint_lead=(np.inf,))
URDF = """<robot name="two">
<joint name="pan" type="revolute">
<limit lower="-1.5" upper="1.5" velocity="0.3" effort="1"/></joint>
<joint name="lift" type="continuous"/><joint name="tool" type="fixed"/></robot>"""


class Rig:
    """A joint gate fed like a live system; the arm is where it was commanded, unless told."""

    def __init__(self, limits=FREE, contract=ActionContract.of_joints(JOINTS), **config):
        config = GateConfig(**{'auto_start': True, 'gripper_timeout_s': 0.0, **config})
        self.period = 1.0 / config.rate
        self.gate = JointGate(config, bounds_of(JOINTS, limits), contract)
        self.now, self.steady, self.measured = 100.0, 7.0, [0.0, 1.0]

    def chunk(self, *rows, **change):
        values = np.array(rows, np.float32)
        return self.gate.on_chunk(Chunk(
            self.now, DT, values, change.get('channels', (*JOINTS, 'gripper'))), self.now)

    def tick(self, joints=True):
        self.now += self.period
        self.steady += self.period
        self.gate.on_heartbeat(self.steady, 'THINKING', '', '0')
        if joints:
            self.gate.on_joints(self.measured, self.now, self.steady)
        return self.gate.tick(self.now, self.steady)


def test_rows_are_positions_and_pass_untouched_within_the_limits():
    rig = Rig()
    waiting = rig.tick()
    np.testing.assert_allclose(waiting.joints.positions, [0.0, 1.0])
    assert not waiting.joints.moving and waiting.state is GateState.HOLD
    assert rig.chunk([0.25, 1.5, 1.0], [0.5, 1.5, -1.0]) is None
    first, second = rig.tick().joints, rig.tick().joints
    np.testing.assert_allclose(first.positions, [0.25, 1.5], rtol=1e-6)
    np.testing.assert_allclose(first.velocities, [0.25 / DT, 0.5 / DT], rtol=1e-6)
    assert (first.names, first.gripper, first.moving, first.period) == (JOINTS, 1.0, True, DT)
    np.testing.assert_allclose(second.positions, [0.5, 1.5], rtol=1e-6)
    assert second.gripper == -1.0
    # The chunk is over: it stays where it was led.
    over = [rig.tick() for _ in range(3)][-1]
    np.testing.assert_allclose(over.joints.positions, [0.5, 1.5], rtol=1e-6)
    assert not over.joints.velocities.any() and over.joints.gripper == -1.0


def test_offsets_are_from_the_measured_positions_of_their_row():
    rig = Rig(contract=ActionContract.of_joints(JOINTS, JOINT_DELTA))
    rig.tick()
    rig.chunk([0.25, -0.5, 0.0], [0.25, -0.5, 0.0])
    np.testing.assert_allclose(rig.tick().joints.positions, [0.25, 0.5], rtol=1e-6)
    rig.measured = [0.125, 0.75]  # the arm lags behind
    np.testing.assert_allclose(rig.tick().joints.positions, [0.375, 0.25], rtol=1e-6)


def test_rows_of_another_space_are_refused_by_its_name():
    """Also where the policy says it late; one that says nothing is believed."""
    rig = Rig()
    rig.tick()
    rig.chunk(*[[0.25, 1.5, 1.0]] * 4)
    assert rig.tick().state is GateState.RUN
    rig.gate.on_heartbeat(rig.steady, 'THINKING', '', '0', 'JOINT_POSITION')
    assert not rig.gate.has_stop_condition(rig.now, rig.steady)
    rig.gate.on_heartbeat(rig.steady, 'THINKING', '', '0', JOINT_DELTA)
    assert rig.gate.has_stop_condition(rig.now, rig.steady) and rig.gate.ended
    told = ('of the policy the action space is JOINT_DELTA (offsets from the measured positions '
            'of the joints), not JOINT_POSITION (positions of the joints)')
    assert rig.gate.reason.startswith(told)
    assert rig.gate.start(rig.steady) == rig.gate.reason
    rig.tick()  # its policy says nothing any more
    assert rig.gate.start(rig.steady) is None


def test_a_row_that_lasts_five_ticks_is_led_to_evenly():
    rig = Rig(rate=100.0, chunk_rate=20.0)
    rig.tick()
    rig.chunk([0.5, 1.0, 0.0])
    led = [rig.tick().joints for _ in range(5)]
    np.testing.assert_allclose([c.positions[0] for c in led], [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    assert [c.first_tick for c in led] == [True, False, False, False, False]


def test_speed_acceleration_and_range_of_each_joint_are_bounded():
    rig = Rig(LIMITS)
    rig.tick()
    velocities, positions = [np.zeros(2)], []
    for _ in range(40):
        rig.chunk(*[[0.9, 5.0, 0.0]] * 8)
        command = rig.tick().joints
        rig.measured = command.positions
        velocities.append(command.velocities)
        positions.append(command.positions)
        if rig.gate.ended:
            break
    speeds = np.array(velocities)
    assert (np.abs(speeds) <= [1.0 + 1e-9, 2.0 + 1e-9]).all() and speeds[:, 0].max() > 0.9
    assert (np.abs(np.diff(speeds[:-1], axis=0)) <= 10.0 * DT + 1e-9).all()
    assert np.array(positions)[:, 1].max() <= 2.0
    # 5 rad is beyond the range of lift: a contract that is broken so often is a fault.
    assert rig.gate.state is GateState.FAULT and 'beyond the range of lift' in rig.gate.reason


def test_it_comes_to_rest_at_its_target_without_running_past_it():
    limiter = JointLimiter(bounds_of(JOINTS, LIMITS), DT)
    limiter.rebase([0.0, 1.0])
    track = np.array([limiter.clamp(np.array([0.7, 1.3]), limiter.commanded)
                      for _ in range(60)])
    assert track[:, 0].max() <= 0.7 + 0.5 * 10.0 * DT ** 2
    np.testing.assert_allclose(track[-1], [0.7, 1.3], atol=1e-6)
    assert not limiter.velocity.any()


def test_the_command_does_not_run_away_from_an_arm_that_is_blocked():
    rig = Rig(LIMITS)
    rig.tick()
    for _ in range(40):
        rig.chunk(*[[1.0, 1.0, 0.0]] * 8)
        command = rig.tick().joints
    assert 0.4 < command.positions[0] <= 0.5 + 1e-9


def test_a_stop_freezes_the_command_and_a_start_begins_where_the_arm_is():
    rig = Rig(LIMITS, auto_start=False)
    rig.tick()
    assert rig.gate.start(rig.steady) is None
    rig.chunk(*[[1.0, 1.0, 0.0]] * 8)
    moved = [rig.tick() for _ in range(3)][-1].joints
    rig.gate.stop('asked to stop')
    stopped = rig.tick().joints
    np.testing.assert_array_equal(stopped.positions, moved.positions)
    assert not stopped.velocities.any() and not stopped.moving
    rig.measured = [-0.5, 0.25]  # somebody moved it
    rig.tick()
    assert rig.gate.start(rig.steady) is None
    np.testing.assert_array_equal(rig.tick().joints.positions, [-0.5, 0.25])


def test_nothing_is_commanded_before_the_joints_were_measured():
    rig = Rig(joints_timeout_s=0.0)
    assert rig.tick(joints=False).joints is None
    rig.chunk([0.5, 1.0, 0.0])
    held = rig.tick(joints=False)
    assert held.joints is None and held.state is GateState.HOLD and 'no joint' in held.reason


def test_silent_joints_hold_the_arm():
    rig = Rig(joints_timeout_s=0.1)
    rig.tick()
    rig.chunk(*[[0.5, 1.0, 0.0]] * 8)
    assert rig.tick().state is GateState.RUN
    held = [rig.tick(joints=False) for _ in range(4)][-1]
    assert held.state is GateState.HOLD and 'joint states' in held.reason
    assert not held.joints.velocities.any()


@pytest.mark.parametrize('change', [{'channels': ('lift', 'pan', 'gripper')},
                                    {'channels': ('x', 'y', 'gripper')}])
def test_chunk_of_other_channels_stops_it(change):
    rig = Rig()
    rig.tick()
    assert 'chunk channels are' in rig.chunk([0.0, 1.0, 0.0], **change)
    assert rig.gate.state is GateState.STOP


def test_twists_of_a_person_are_refused():
    rig = Rig()
    rig.tick()
    assert rig.gate.take_over(rig.steady) == NO_TWISTS


def test_rows_may_miss_the_range_by_a_little():
    rig = Rig()
    rig.tick()
    rig.chunk(*[[1.0 + 0.9 * BEYOND, 1.0, 0.0]] * 10)
    for _ in range(10):
        command = rig.tick()
        assert command.joints.positions[0] == 1.0 and command.state is GateState.RUN


def test_limits_of_the_urdf_hold_where_none_are_given(tmp_path):
    path = tmp_path / 'two.urdf'
    path.write_text(URDF)
    bounds = bounds_of(JOINTS, JointLimits(urdf=str(path), joint_velocity=(1.0,)))
    assert (bounds.lower[0], bounds.upper[0], bounds.velocity[0]) == (-1.5, 1.5, 0.3)
    assert (bounds.lower[1], bounds.upper[1], bounds.velocity[1]) == (-np.inf, np.inf, 1.0)
    given = bounds_of(JOINTS, JointLimits(
        urdf=str(path), joint_lower=(-0.5, np.nan), joint_upper=(0.5, np.nan)))
    assert (given.lower[0], given.upper[0]) == (-0.5, 0.5)


@pytest.mark.parametrize(('limits', 'named'), [
    (JointLimits(), 'joint_lower: no lower limit of pan'),
    (JointLimits(joint_lower=(0.0,) * 3, joint_upper=(1.0,)), '3 values for the 2 arm_joints'),
    (JointLimits(joint_lower=(0.0,), joint_upper=(0.0,)), 'of pan is not below its'),
    (JointLimits(joint_lower=(0.0,), joint_upper=(1.0,), joint_velocity=(0.1, 0.0)),
     'joint_velocity: 0 of lift must be positive'),
    (JointLimits(urdf='nowhere.urdf'), 'nowhere.urdf')])
def test_limits_that_are_missing_or_wrong_are_named(limits, named):
    with pytest.raises(UserError, match=named):
        bounds_of(JOINTS, limits)


def test_a_urdf_of_another_arm_is_named(tmp_path):
    path = tmp_path / 'two.urdf'
    path.write_text(URDF)
    with pytest.raises(UserError, match='has no joint elbow'):
        bounds_of(('elbow',), JointLimits(urdf=str(path)))
    path.write_text('<robot')
    with pytest.raises(UserError, match='two.urdf.*made from xacro'):
        bounds_of(JOINTS, JointLimits(urdf=str(path)))
