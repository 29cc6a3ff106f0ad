"""A proxy between the robot and the nodes that spoils topics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.measure.robot import CAMERAS
from dtvla_ros.ros import qos

Fault = Callable[[Any], Any]


class FaultProxy:
    """Forwards every topic between its publisher and its subscriber, spoiled where asked.

    A fault takes a message and returns what to forward: a message, a list of them, or None.
    """

    ROUTES = {
        **{f'image_{c}': (Image, f'/robot/image_{c}', f'/image_{c}') for c in CAMERAS},
        'joint_states': (JointState, '/robot/joint_states', '/joint_states'),
        'ee_pose': (PoseStamped, '/robot/ee_pose', '/ee_pose'),
        'action_chunk': (JointTrajectory, '/vla/action_chunk', '/proxied/action_chunk'),
        'state': (DiagnosticStatus, '/vla/state', '/proxied/state'),
    }

    def __init__(self, node: Node) -> None:
        self.faults: dict[str, Fault] = {}
        self.seen: dict[str, float] = {}  # steady time of the last message of each topic
        self._publishers = {}
        for name, (kind, source, sink) in self.ROUTES.items():
            qos = (qos.LATEST if name == 'action_chunk' else qos.LATCHED if name == 'state'
                   else qos_profile_sensor_data)
            self._publishers[name] = node.create_publisher(kind, sink, qos)
            node.create_subscription(kind, source, self._forward(name), qos)

    def _forward(self, name: str) -> Callable[[Any], None]:
        def receive(message: Any) -> None:
            self.seen[name] = time.monotonic()
            fault = self.faults.get(name)
            result = fault(message) if fault else message
            for out in result if isinstance(result, list) else [result]:
                if out is not None:
                    self._publishers[name].publish(out)
        return receive


def drop(_: Any) -> None:
    """Forward nothing."""
