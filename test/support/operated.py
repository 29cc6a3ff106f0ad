"""An operator node among a policy, a gate, a simulator and an arm that are ours."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Bool, Float64, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import CAMERA_INFO, CAMERAS
from dtvla_ros.nodes.operator_controls import SERVICES
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.thought import Thought

from .graph import Graph

TASKS = ['put the can in the wooden bin', 'put the lemon in the blue bin']
THOUGHT = Thought('lemon', None, None, 'carry', 'blue bin', 50, 0, 'place', ('forward', 'left',
                                                                           'still'))
PERIOD = 0.05
SPEED = 0.1  # along x [m/s]
HOME = [0.5, -0.4, 0.2, 0.0, 0.0, 0.0, 1.0]  # far beside the arm's way


class Operated:
    """What the node hears 20 times a second, and what it orders.

    ``heard`` of the graph: estop, told, override, mark, twist and grip of a person. ``orders``:
    (service, its data or None). ``driver``: of the gate.
    ``gate``, ``policy``: state and reason; ``values`` of the policy beside them. ``deaf``: neither
    obeys the e-stop.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.orders, self.refusal = graph, list[tuple[str, Any]](), ''
        self.driver = 'policy'
        self.gate, self.policy, self.deaf = ('RUN', ''), ('ACTING', ''), False
        self.values: dict[str, Any] = {
            'task': 1, 'step': 3, 'instruction': 'the lemon, please', 'understood': TASKS[1],
            'thought': THOUGHT.compact(), 'stamp': '1.0', 'latency_think': 0.03,
            'latency_total': 0.04, 'draft_proposed': 16, 'draft_accepted': 12,
            'decoded': 'place, move', 'confidence': '0.820'}
        self.scene: dict[str, Any] = {'state': 'playing', 'done': '', 'home': HOME}
        self._tick = 0
        node, sensor = graph.listen(), qos_profile_sensor_data
        for key, kind, topic in (('estop', Bool, '/estop'), ('told', String, '/instruction'),
                                 ('override', String, '/vla/thought_override'),
                                 ('mark', String, '/episode_mark'),
                                 ('twist', TwistStamped, '/human_twist'),
                                 ('grip', Float64, '/human_gripper')):
            graph.hear(key, kind, topic, qos.profile(10, reliable=True, latched=False))
        for kind, name in SERVICES.values():
            node.create_service(kind, name, lambda request, answer, name=name: self._obey(
                name, getattr(request, 'data', None), answer))
        node.create_service(SetBool, 'takeover', lambda request, answer: self._obey(
            'takeover', request.data, answer))
        node.create_service(Trigger, 'clear_fault', lambda request, answer: self._obey(
            'clear_fault', None, answer))
        self._states = {topic: node.create_publisher(DiagnosticStatus, topic, qos.LATCHED)
                        for topic in ('/vla/state', '/gate_state')}
        self._texts = {topic: node.create_publisher(String, topic, profile) for topic, profile in (
            ('/vla/tasks', qos.LATCHED), ('/sim/state', qos.LATCHED),
            ('/vla/reasoning', qos.LATCHED_10), ('/vla/reasoning_stream', qos.NEWEST),
            ('/sim/episode', qos.LATCHED_100))}
        self._record = node.create_publisher(DiagnosticStatus, '/record_state', qos.LATCHED)
        self._cameras = {c: node.create_publisher(Image, f'/image_{c}', sensor) for c in CAMERAS}
        self._infos = {c: node.create_publisher(CameraInfo, topic, sensor)
                       for c, topic in CAMERA_INFO.items()}
        self._pose = node.create_publisher(PoseStamped, '/ee_pose', sensor)
        self._twist = node.create_publisher(TwistStamped, '/twist_cmd', 5)
        self._chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
        self.say('/vla/tasks', json.dumps(TASKS))
        graph.every(PERIOD, self._publish)

    def say(self, topic: str, text: str) -> None:
        self._texts[topic].publish(String(data=text))

    def tell_of_record(self, state: str, level: bytes, reason: str) -> None:
        """Say what record_server says."""
        self._record.publish(conversions.status_message(
            'record_server', state, {'reason': reason}, level))

    def start(self, **parameters: object) -> str:
        """Start the node on a free port; return the page's address."""
        self.graph.start('operator', port=0, **parameters)
        self.graph.spin(lambda: 'page: http' in self.graph.log('operator'), 60, 'the page')
        found = re.search(r'page: (\S+)', self.graph.log('operator'))
        assert found
        return found[1]

    def _obey(self, name: str, data: Any, answer: Any) -> Any:
        self.orders.append((name, data))
        answer.success, answer.message = not self.refusal, self.refusal
        if name == 'takeover' and not self.refusal:
            self.driver = 'person' if data else 'policy'
        if name == 'clear_fault':
            self.gate, self.policy = ('STOP', 'cleared: e-stop'), ('THINKING', '')
        return answer

    def _publish(self) -> None:
        self._tick += 1
        stamp = self._tick * PERIOD
        if not self.deaf and self.graph.heard['estop'] and self.graph.last('estop').data:
            self.gate, self.policy = ('FAULT', 'e-stop'), ('FAULT', 'e-stop')
        for topic, (state, reason), values in (('/vla/state', self.policy, self.values),
                                               ('/gate_state', self.gate, {
                                                   'driver': self.driver})):
            self._states[topic].publish(conversions.status_message(
                topic, state, {'reason': reason, **values},
                DiagnosticStatus.ERROR if state == 'FAULT' else DiagnosticStatus.OK))
        self.say('/sim/state', json.dumps(self.scene))
        self._pose.publish(conversions.pose_message(
            conversions.header(stamp, 'base'), [0.3 + SPEED * stamp % 0.3, 0.0, 0.2],
            [0.0, 0.0, 0.0, 1.0]))
        twist = TwistStamped(header=conversions.header(stamp, 'base'))
        twist.twist.linear.x = SPEED
        self._twist.publish(twist)
        if self._tick % 4 == 1:
            rows = np.zeros((8, 7), np.float32)
            rows[:, 0], rows[4:, 6] = 1.0, 1.0
            self._chunks.publish(conversions.chunk_message(Chunk(stamp, PERIOD, rows)))
        for k, camera in enumerate(CAMERAS):
            pixels = np.full((96, 128, 3), (200, 20, 20) if k == 0 else (20, 20, 200), np.uint8)
            frame = f'camera_{camera}_optical_frame'
            self._cameras[camera].publish(images.serialize_image(
                pixels, conversions.time_message(stamp), frame))
            self._infos[camera].publish(CameraInfo(
                header=conversions.header(stamp, frame), width=128, height=96,
                distortion_model='plumb_bob', d=[0.0] * 5,
                k=[100.0, 0.0, 63.5, 0.0, 100.0, 47.5, 0.0, 0.0, 1.0]))
