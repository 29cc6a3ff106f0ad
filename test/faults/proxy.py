"""A proxy between the robot and the nodes that spoils topics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.ros import qos

Fault = Callable[[Any], Any]


class FaultProxy:
    """Forwards every topic between its publisher and its subscriber, spoiled where asked.

    A fault takes a message and returns what to forward: a message, serialized or not, a list of
    them, or None. What is not to be spoiled is forwarded as it came, never deserialized.
    """

    ROUTES: dict[str, tuple[Any, str, str, QoSProfile]] = {
        **{f'image_{c}': (Image, f'/robot/image_{c}', f'/image_{c}', qos_profile_sensor_data)
           for c in CAMERAS},
        'joint_states': (
            JointState, '/robot/joint_states', '/joint_states', qos_profile_sensor_data),
        'ee_pose': (PoseStamped, '/robot/ee_pose', '/ee_pose', qos_profile_sensor_data),
        'action_chunk': (
            JointTrajectory, '/vla/action_chunk', '/proxied/action_chunk', qos.LATEST),
        'state': (DiagnosticStatus, '/vla/state', '/proxied/state', qos.LATCHED),
    }

    def __init__(self, node: Node) -> None:
        self.faults: dict[str, Fault] = {}
        for name, (kind, source, sink, profile) in self.ROUTES.items():
            publisher = node.create_publisher(kind, sink, profile)
            node.create_subscription(
                kind, source, self._forward(name, kind, publisher), profile, raw=True)

    def _forward(self, name: str, kind: Any, publisher: Publisher) -> Callable[[bytes], None]:
        def receive(data: bytes) -> None:
            fault = self.faults.get(name)
            result = fault(deserialize_message(data, kind)) if fault else data
            for out in result if isinstance(result, list) else [result]:
                if out is not None:
                    publisher.publish(out)
        return receive


def drop(_: Any) -> None:
    """Forward nothing."""
