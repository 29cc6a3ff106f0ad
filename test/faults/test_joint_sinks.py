"""Row 20 of arms that are commanded by their joints, before stand-ins of their controllers."""

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from support.controllers import ForwardController, TrajectoryController
from support.graph import graph  # noqa: F401
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.nodes.joint_adapters import AHEAD
from dtvla_ros.ros import conversions, qos
from test.faults.rig import PATIENT, T

NAMES = ('shoulder', 'elbow')
SPEED = np.array([0.3, -0.2])  # rad/s, below the gate's limit
CHANNELS = (*NAMES, 'gripper')
SINKS = {'joint_trajectory': (TrajectoryController, JointTrajectory, '/joint_trajectory'),
         'forward_position': (ForwardController, Float64MultiArray, '/joint_commands')}


def target(message):
    """Return the positions that a command asks for."""
    return np.array(message.points[0].positions if hasattr(message, 'points') else message.data)


@pytest.mark.parametrize('preset', SINKS)
def test_20_a_killed_gate_of_an_arm_commanded_by_its_joints(graph, check, preset):  # noqa: F811
    sink, kind, topic = SINKS[preset]
    node = graph.listen(gate=(DiagnosticStatus, '/gate_state'))
    arm, told = sink(NAMES, np.zeros(2)), []

    def take(message):
        told.append(target(message))
        arm.take(message, time.monotonic())
    node.create_subscription(kind, topic, take, 10)
    joints = node.create_publisher(JointState, '/joint_states', 10)
    chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
    state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)

    def now():
        return node.get_clock().now().nanoseconds * 1e-9

    def measured():
        at = arm.move(time.monotonic())
        joints.publish(JointState(header=conversions.header(now()), name=list(NAMES),
                                  position=at.tolist()))
        state.publish(conversions.status_message('vla', 'ACTING', {'task': '1', 'reason': ''}))

    def decided():
        ahead = arm.move(time.monotonic()) + T * SPEED * np.arange(1, 17)[:, None]
        rows = np.column_stack((ahead, -np.ones(16))).astype(np.float32)
        chunks.publish(conversions.chunk_message(Chunk(now(), T, rows, CHANNELS)))
    graph.every(0.02, measured)
    graph.every(0.2, decided)
    graph.start('command_gate', **PATIENT['command_gate'] | {
        'preset': preset, 'action_space': 'JOINT_POSITION', 'arm_joints': f'[{", ".join(NAMES)}]',
        'joint_lower': '[-3.0]', 'joint_upper': '[3.0]', 'gripper_timeout_s': 0.0,
        **({'controller_timeout_s': 1.0} if preset == 'forward_position' else {})})
    graph.spin(lambda: graph.said('gate')[1] == 'not started', 60, 'the gate')
    # Refused until it has heard the policy.
    graph.spin(lambda: graph.call(Trigger, '/start').success, 60, 'the start')
    graph.spin(lambda: abs(arm.at[0]) > 0.1, 60, 'motion')
    said = conversions.status_values(graph.last('gate'))['on_silence']
    assert 'last target' in said
    graph.kill('command_gate').wait(10)
    graph.wait(0.1)  # what it had sent
    before = arm.move(time.monotonic())
    graph.wait(AHEAD * T + 0.1)
    rest = arm.move(time.monotonic())
    np.testing.assert_allclose(rest, told[-1], atol=1e-9, err_msg='it ends at its last target')
    assert np.abs(rest - before).max() <= AHEAD * T * 0.5, 'which is as near as the limits say'
    graph.wait(0.5)
    np.testing.assert_allclose(arm.move(time.monotonic()), rest, err_msg='and holds there')
    check(20, said=f'{preset}: {1e3 * np.abs(rest - before).max():.0f} mrad')
