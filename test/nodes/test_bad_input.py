"""A servo arm played by the test: what bad input does to the real policy and gate processes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, TwistStamped
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from dtvla_ros.ros import conversions, images, qos
from test.nodes.conftest import IN_NAMESPACE

NAMES = [f'panda_joint{i}' for i in range(1, 8)] + ['panda_finger_joint1', 'panda_finger_joint2']
PERIOD = 0.04


class Robot:
    """Publishes cameras and measurements on the wall clock; any of them can be spoiled."""

    def __init__(self, node):
        sensor = qos_profile_sensor_data
        self._node = node
        self._cameras = [node.create_publisher(Image, f'/image_{c}', sensor)
                         for c in ('primary', 'wrist')]
        self._joints = node.create_publisher(JointState, '/joint_states', sensor)
        self._pose = node.create_publisher(PoseStamped, '/ee_pose', sensor)
        self.instruction = node.create_publisher(String, '/instruction', qos.LATCHED)
        self.estop = node.create_publisher(Bool, '/estop', qos.LATCHED)
        self.joint = 0.1
        self.nan_image = False
        self._rng = np.random.default_rng(0)
        node.create_timer(PERIOD, self._publish)

    def _publish(self):
        stamp = self._node.get_clock().now().to_msg()
        head = conversions.header(conversions.seconds(stamp))
        self._joints.publish(JointState(header=head, name=NAMES, position=[self.joint] * 9))
        self._pose.publish(PoseStamped(header=head, pose=Pose(
            position=Point(x=0.5, y=0.0, z=0.2),
            orientation=Quaternion(x=1.0, y=0.0, z=0.0, w=0.0))))
        for camera in self._cameras:
            if self.nan_image:
                depth = np.full((128, 128), np.nan, np.float32)
                camera.publish(images.serialize_image(depth, stamp, encoding='32FC1'))
            else:
                picture = self._rng.integers(0, 255, (128, 128, 3), np.uint8)
                camera.publish(images.serialize_image(picture, stamp))


@pytest.fixture
def scene(graph, policy):
    folder, engine = policy
    node = graph.listen(
        twist=(TwistStamped, '/twist_cmd'), gate=(DiagnosticStatus, '/gate_state'),
        vla=(DiagnosticStatus, '/vla/state'), diagnostics=(DiagnosticArray, '/diagnostics'))
    robot = Robot(node)
    # Time-outs as wide as a busy test machine needs; the strict ones are measured elsewhere.
    graph.start('vla_node', *IN_NAMESPACE, '-p', f'policy:={folder}', '-p', f'engine:={engine}',
                '-p', 'on_cut:=act', '-p', 'input_timeout_s:=0.5', '-p', 'deadline_s:=20.0')
    graph.start('command_gate', '-p', 'preset:=servo', '-p', 'joints_timeout_s:=0.4',
                '-p', 'pose_timeout_s:=0.4', '-p', 'heartbeat_timeout_s:=0.5',
                '-p', 'heartbeat_stop_s:=5.0', '-p', 'max_latency_s:=2.0',
                '-p', 'gripper_timeout_s:=0.0')
    return SimpleNamespace(graph=graph, robot=robot)


def speed(message):
    v = message.twist.linear
    return np.linalg.norm([v.x, v.y, v.z])


@pytest.mark.slow
def test_a_servo_arm_and_everything_that_can_be_wrong_with_its_topics(scene):
    graph, robot = scene.graph, scene.robot

    def vla(state, word=''):
        heard = graph.of('vla')
        return bool(heard) and heard[-1][1].message == state and word in (
            conversions.status_values(heard[-1][1])['reason'])

    def gate(state, word=''):
        heard = graph.of('gate')
        return bool(heard) and heard[-1][1].message == state and word in (
            conversions.status_values(heard[-1][1])['reason'])

    def moves():
        recent = [speed(m) for _, m in graph.of('twist')[-2:]]
        return len(recent) == 2 and min(recent) > 0

    def still(ticks=4):
        recent = [speed(m) for _, m in graph.of('twist')[-ticks:]]
        return len(recent) == ticks and not any(recent)

    graph.spin(lambda: vla('IDLE'), 90)
    for bad, word in (('', 'empty'), ('x' * 10_000, '10000'), ('put it\x07', 'control'),
                      ('assassinate the butler', 'assassinate')):
        robot.instruction.publish(String(data=bad))
        graph.spin(lambda word=word: vla('IDLE', word), 20)

    robot.instruction.publish(String(data='put the lemon in the blue bin'))
    graph.spin(lambda: vla('ACTING'), 60)
    graph.spin(still, 20)
    assert gate('STOP', 'not started')
    assert graph.call(Trigger, '/start', Trigger.Request()).success
    graph.spin(moves, 60)

    robot.joint = float('nan')
    graph.spin(lambda: still() and gate('HOLD', 'joint states'), 10)
    robot.joint = 0.1
    graph.spin(moves, 60)

    robot.nan_image = True
    graph.spin(lambda: vla('HOLDING', 'image_') and still(), 10)
    assert '32FC1' in graph.log('vla_node')
    graph.spin(lambda: any(p.key == 'refused_image_primary' for _, m in
                           graph.of('diagnostics')[-1:] for p in m.status[0].values), 5)
    robot.nan_image = False
    graph.spin(moves, 60)

    robot.estop.publish(Bool(data=True))
    graph.spin(lambda: still(10), 10)
    assert gate('FAULT', 'e-stop') and vla('FAULT')
    robot.estop.publish(Bool(data=False))
    graph.spin(lambda: vla('ACTING'), 30)
    assert gate('FAULT') and still()

    assert max(speed(m) for _, m in graph.of('twist')) <= 0.25 + 1e-6
    assert graph.interrupt('vla_node') == 0 and graph.interrupt('command_gate') == 0
