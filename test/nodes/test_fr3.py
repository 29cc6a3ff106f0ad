"""A Franka FR3 played by the test: the shipped files and its joint names fit together."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64, Header, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import CAMERAS
from dtvla_ros.nodes.inputs import Synchronizer
from dtvla_ros.ros import conversions, images, qos
from test.nodes.conftest import IN_NAMESPACE, ROOT

FILES = sorted(ROOT.glob('config/robot_*.yaml'))
ARM = [f'fr3_joint{k}' for k in range(1, 8)]
FINGERS = ['fr3_finger_joint1', 'fr3_finger_joint2']
HOME = [0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785]
OPEN = 0.04  # of one finger [m]


def joint_state(stamp):
    """Return what joint_state_publisher makes of arm and gripper: all fields, fingers last."""
    return JointState(
        header=Header(stamp=stamp), name=ARM + FINGERS, position=[*HOME, OPEN, OPEN],
        velocity=[0.0] * 9, effort=[0.1] * 7 + [0.0] * 2)


class Fr3:
    """Stands still with an open gripper that does not move, in front of two cameras."""

    def __init__(self, node):
        sensor = qos_profile_sensor_data
        self._node, self._rng = node, np.random.default_rng(0)
        self._joints = node.create_publisher(JointState, '/joint_states', sensor)
        self._pose = node.create_publisher(PoseStamped, '/ee_pose', sensor)
        self._cameras = [node.create_publisher(Image, f'/image_{c}', sensor) for c in CAMERAS]
        node.create_timer(0.03, self._measure)
        node.create_timer(0.1, self._film)

    def _measure(self):
        stamp = self._node.get_clock().now().to_msg()
        self._joints.publish(joint_state(stamp))
        self._pose.publish(PoseStamped(
            header=Header(stamp=stamp, frame_id='fr3_link0'),
            pose=Pose(position=Point(x=0.5, y=0.0, z=0.2), orientation=Quaternion(x=1.0, w=0.0))))

    def _film(self):
        stamp = self._node.get_clock().now().to_msg()
        for camera in self._cameras:
            picture = self._rng.integers(0, 255, (120, 160, 3), np.uint8)
            camera.publish(images.serialize_image(picture, stamp))


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_the_shipped_files_name_the_joints_of_an_fr3(path):
    values = {key.rpartition('/')[2]: section['ros__parameters']
              for key, section in yaml.safe_load(path.read_text()).items()}
    vla, gate = values['vla_node'], values['command_gate']
    assert (vla['arm_joints'], vla['finger_joints'], gate['finger_joints']) == (
        ARM, FINGERS, FINGERS)
    synchronizer = Synchronizer(vla['arm_joints'], vla['finger_joints'], 0.03)
    message = joint_state(conversions.time_message(1.0))
    assert synchronizer.joints(message.name, message.position, 1.0) is None


# As wide as a busy machine needs; the files' own are stricter.
PATIENT = [word for name in ('joints', 'pose', 'heartbeat') for word in (
    '-p', f'{name}_timeout_s:=2.0')]


def test_the_policy_sees_an_fr3_and_decides(graph, policy):
    folder, engine = policy
    node = graph.listen(vla=(DiagnosticStatus, '/vla/state'),
                        diagnostics=(DiagnosticArray, '/diagnostics'))
    Fr3(node)
    instruction = node.create_publisher(String, '/instruction', qos.LATCHED)
    graph.start('vla_node', *IN_NAMESPACE, '--params-file', 'config/robot_crisp.yaml',
                '-p', f'policy:={folder}', '-p', f'engine:={engine}', '-p', 'on_cut:=act',
                '-p', 'input_timeout_s:=2.0', '-p', 'max_age_s:=5.0', '-p', 'max_skew_s:=0.1',
                '-p', 'deadline_s:=30.0')
    instruction.publish(String(data='put the lemon in the blue bin'))
    graph.spin(lambda: graph.of('vla') and graph.of('vla')[-1][1].message == 'ACTING', 90)
    heard = len(graph.of('diagnostics'))
    graph.spin(lambda: len(graph.of('diagnostics')) > heard + 1, 20)
    values = conversions.status_values(graph.of('diagnostics')[-1][1].status[0])
    assert not [key for key in values if key.startswith('refused_')], values
    assert graph.interrupt('vla_node') == 0


def test_the_gate_feels_an_fr3_and_its_stuck_gripper_and_can_be_paused(graph):
    node = graph.listen(gate=(DiagnosticStatus, '/gate_state'), grip=(Float64, '/gripper_cmd'),
                        target=(PoseStamped, '/target_pose'))
    Fr3(node)
    chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
    state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
    node.create_timer(0.05, lambda: state.publish(
        conversions.status_message('vla', 'ACTING', {'task': '1', 'reason': ''})))
    close = np.tile(np.float32([0.2, 0, 0, 0, 0, 0, 1]), (16, 1))
    graph.start('command_gate', '--params-file', 'config/robot_crisp.yaml', *PATIENT,
                '-p', 'gripper_timeout_s:=1.0', '-p', 'max_latency_s:=2.0')

    def told():
        return conversions.status_values(graph.of('gate')[-1][1])['reason']

    def pause(on):
        answer = graph.call(SetBool, '/pause', SetBool.Request(data=on))
        assert answer.success
        return answer.message

    graph.spin(lambda: graph.of('gate'), 60)
    assert pause(True) == 'STOP: not started'
    assert pause(False) == 'STOP: not started'

    def started():
        answer = graph.call(Trigger, '/start', Trigger.Request())
        return answer.success or answer.message == 'already started'
    graph.spin(started, 30)
    graph.spin(lambda: told() == 'thinking', 20)
    assert pause(True) == 'HOLD: paused'
    graph.spin(lambda: told() == 'paused', 20)
    assert not graph.call(Trigger, '/start', Trigger.Request()).success
    assert pause(False) == 'HOLD: thinking'

    node.create_timer(0.2, lambda: chunks.publish(conversions.chunk_message(
        Chunk(node.get_clock().now().nanoseconds * 1e-9, 0.05, close))))
    graph.spin(lambda: graph.of('grip') and graph.of('grip')[-1][1].data == 0.0, 30)
    assert graph.of('target')[-1][1].header.frame_id == 'fr3_link0'
    graph.spin(lambda: graph.of('gate')[-1][1].message == 'STOP', 30)
    assert told() == 'the gripper does not close: 0.080 m open'
    assert pause(True).startswith('STOP: the gripper')
    assert graph.interrupt('command_gate') == 0
