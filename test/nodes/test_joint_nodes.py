"""The nodes of an arm that is commanded by its joints, over topics."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool
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


def test_positions_reach_the_arm_by_name_whatever_order_its_joints_come_in(graph):
    node = graph.listen(
        '--ros-args', '--params-file', str(ROOT / 'config/sim_joints.yaml'),
        '-p', 'heartbeat_timeout_s:=20.0',  # a busy machine is no silent policy
        action=(JointTrajectory, '/action'), gate=(DiagnosticStatus, '/gate_state'))
    chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
    state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
    pose = node.create_publisher(PoseStamped, '/ee_pose', qos_profile_sensor_data)
    joints = node.create_publisher(JointState, '/joint_states', qos_profile_sensor_data)
    graph.every(0.02, lambda: state.publish(
        conversions.status_message('vla', 'ACTING', {'task': '1', 'reason': ''})))
    graph.join(CommandGate)
    graph.spin(lambda: chunks.get_subscription_count() and pose.get_subscription_count()
               and joints.get_subscription_count() and graph.of('gate')
               and node.count_publishers('/action'), 30)

    def show(t):
        names = sorted(HOME, reverse=True)
        joints.publish(JointState(header=conversions.header(t), name=names,
                                  position=[HOME[name] for name in names]))
        message = PoseStamped(header=conversions.header(t))
        message.pose.position.x = 0.5
        pose.publish(message)

    def decide(t, rows, channels=CHANNELS):
        chunks.publish(conversions.chunk_message(
            Chunk(t, TICK, np.array(rows, np.float32), channels)))

    graph.wait(0.3)
    row = [0.25, 0.5, -2.0, 2.5, 1.0, 1.0]
    show(1.0)
    graph.wait(0.3)
    decide(1.0, [row])
    graph.spin(lambda: graph.of('action'), 20)
    _, told = graph.of('action')[-1]
    assert tuple(told.joint_names) == CHANNELS
    assert told.points[0].positions == pytest.approx(row)
    # Beyond its range a joint is led to the end of it.
    show(1.0 + TICK)
    graph.wait(0.3)
    decide(1.0 + TICK, [[*row[:2], 0.0, *row[3:5], -1.0]])
    graph.spin(lambda: len(graph.of('action')) > 1, 20)
    assert graph.of('action')[-1][1].points[0].positions == pytest.approx(
        [*row[:2], -0.0698, *row[3:5], -1.0])
    # Nobody can drive it by twists, and channels of another arm end the task.
    answer = graph.call(SetBool, '/takeover', SetBool.Request(data=True))
    assert not answer.success
    show(1.0 + 2 * TICK)
    graph.wait(0.3)
    decide(1.0 + 2 * TICK, [row], ('x', *CHANNELS[1:]))
    graph.spin(lambda: graph.last('gate').message == 'STOP', 20)
    reason = conversions.status_values(graph.last('gate'))['reason']
    assert reason.startswith("chunk channels are ('x', 'panda_joint2'")
