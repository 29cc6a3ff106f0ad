"""The nodes of an arm that is commanded by its joints, over topics."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger
from support.graph import ROOT
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import ARM_JOINTS
from dtvla_ros.nodes.command_gate import CommandGate
from dtvla_ros.ros import conversions, qos

TICK = 0.05
CHANNELS = ('panda_joint1', 'panda_joint2', 'panda_joint4', 'panda_joint6', 'panda_joint7',
            'gripper')
HOME = dict(zip(ARM_JOINTS, (0.0, 0.2, 0.0, -2.6, 0.0, 2.9, 0.8), strict=True))


class Arm:
    """A gate of ``config/sim_joints.yaml``, with the arm and the policy that it hears."""

    def __init__(self, graph, **told):
        self.graph, self.told = graph, {'task': '1', 'reason': '', **told}
        node = graph.listen(
            '--ros-args', '--params-file', str(ROOT / 'config/sim_joints.yaml'),
            '-p', 'heartbeat_timeout_s:=20.0',  # a busy machine is no silent policy
            action=(JointTrajectory, '/action'), gate=(DiagnosticStatus, '/gate_state'))
        self._chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
        state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
        self._pose = node.create_publisher(PoseStamped, '/ee_pose', qos_profile_sensor_data)
        self._joints = node.create_publisher(JointState, '/joint_states', qos_profile_sensor_data)
        graph.every(0.02, lambda: state.publish(
            conversions.status_message('vla', 'ACTING', self.told)))
        graph.join(CommandGate)
        graph.spin(lambda: all(publisher.get_subscription_count() for publisher in (
            self._chunks, self._pose, self._joints)) and graph.of('gate')
            and node.count_publishers('/action'), 30)
        graph.wait(0.3)

    def show(self, t):
        names = sorted(HOME, reverse=True)
        self._joints.publish(JointState(header=conversions.header(t), name=names,
                                        position=[HOME[name] for name in names]))
        message = PoseStamped(header=conversions.header(t))
        message.pose.position.x = 0.5
        self._pose.publish(message)
        self.graph.wait(0.3)

    def decide(self, t, row, channels=CHANNELS):
        self.show(t)
        self._chunks.publish(conversions.chunk_message(
            Chunk(t, TICK, np.array([row], np.float32), channels)))

    def stopped(self):
        """Wait until the task is ended; return why."""
        self.graph.spin(lambda: self.graph.last('gate').message == 'STOP', 20)
        return conversions.status_values(self.graph.last('gate'))['reason']


def test_positions_reach_the_arm_by_name_whatever_order_its_joints_come_in(graph):
    arm = Arm(graph)
    row = [0.25, 0.5, -2.0, 2.5, 1.0, 1.0]
    arm.decide(1.0, row)
    graph.spin(lambda: graph.of('action'), 20)
    _, told = graph.of('action')[-1]
    assert tuple(told.joint_names) == CHANNELS
    assert told.points[0].positions == pytest.approx(row)
    # Beyond its range a joint is led to the end of it.
    arm.decide(1.0 + TICK, [*row[:2], 0.0, *row[3:5], -1.0])
    graph.spin(lambda: len(graph.of('action')) > 1, 20)
    assert graph.of('action')[-1][1].points[0].positions == pytest.approx(
        [*row[:2], -0.0698, *row[3:5], -1.0])
    # Nobody can drive it by twists, and channels of another arm end the task.
    answer = graph.call(SetBool, '/takeover', SetBool.Request(data=True))
    assert not answer.success
    arm.decide(1.0 + 2 * TICK, row, ('x', *CHANNELS[1:]))
    assert arm.stopped().startswith("chunk channels are ('x', 'panda_joint2'")


def test_offsets_of_the_same_joints_are_no_positions(graph):
    """The policy's state says that its chunks are; one that says positions moves the arm."""
    arm, row = Arm(graph, action_space='JOINT_DELTA'), [0.05, 0.05, 0.05, 0.05, 0.05, 1.0]
    arm.decide(1.0, row)
    reason = arm.stopped()
    assert 'JOINT_DELTA (offsets' in reason and 'not JOINT_POSITION (positions' in reason
    answer = graph.call(Trigger, '/start', Trigger.Request())
    assert not answer.success and answer.message == reason
    arm.decide(1.0 + TICK, row)
    graph.wait(0.5)
    home = [HOME[name] for name in CHANNELS[:-1]]
    for _, sent in graph.of('action'):
        assert sent.points[0].positions[:5].tolist() == pytest.approx(home)
    arm.told |= {'action_space': 'JOINT_POSITION', 'task': '2'}
    graph.spin(lambda: graph.last('gate').message != 'STOP', 20)
    goal = [joint + 0.05 for joint in home]
    arm.decide(1.0 + 2 * TICK, [*goal, 1.0])
    graph.spin(lambda: graph.of('action') and graph.last('action').points[0].positions[
        :5].tolist() == pytest.approx(goal, abs=1e-6), 20)
