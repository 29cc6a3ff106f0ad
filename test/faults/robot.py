"""A kinematic arm with two cameras on the wall clock, and a proxy that spoils its topics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dtvla_ros.middleware import images, ros
from dtvla_ros.middleware.messages import (
    DiagnosticStatus,
    Float64,
    Image,
    JointState,
    JointTrajectory,
    Point,
    Pose,
    PoseStamped,
    Quaternion,
    TwistStamped,
)
from dtvla_ros.nodes import wire

ARM = [f'panda_joint{i}' for i in range(1, 8)]
FINGERS = ['panda_finger_joint1', 'panda_finger_joint2']
STATE_PERIOD, CAMERA_PERIOD = 0.02, 0.04
SERVO_TIMEOUT = 0.1  # MoveIt Servo halts after this much silence [s]
GAIN = 5.34  # 1/s: a pose target 0.05 m away is approached at 0.267 m/s, as in the simulator
HOME = np.array([0.5, 0.0, 0.2])
CAMERAS = ('primary', 'wrist')


class Robot:
    """Follows ``twist_cmd`` or ``target_pose``; publishes below ``/robot``."""

    def __init__(self, node: ros.Node) -> None:
        sensor = ros.qos_profile_sensor_data
        self._node = node
        self._random = np.random.default_rng(0)
        self.position, self.twist, self.target = HOME.copy(), np.zeros(3), None
        self.opening, self.grip, self.grip_moves = 0.08, 0.0, True
        self._twist_at = 0.0
        self._cameras = {c: node.create_publisher(Image, f'/robot/image_{c}', sensor)
                         for c in CAMERAS}
        self._joints = node.create_publisher(JointState, '/robot/joint_states', sensor)
        self._pose = node.create_publisher(PoseStamped, '/robot/ee_pose', sensor)
        node.create_subscription(TwistStamped, '/twist_cmd', self._on_twist, 1)
        node.create_subscription(PoseStamped, '/target_pose', self._on_target, 1)
        self.gripper = node.create_subscription(Float64, '/gripper_cmd', self._on_gripper, 1)
        steady = ros.Clock(clock_type=ros.ClockType.STEADY_TIME)
        node.create_timer(STATE_PERIOD, self._move, clock=steady)
        node.create_timer(CAMERA_PERIOD, self._film, clock=steady)

    def _on_twist(self, message: TwistStamped) -> None:
        v = message.twist.linear
        self.twist, self._twist_at = np.array([v.x, v.y, v.z]), time.monotonic()

    def _on_target(self, message: PoseStamped) -> None:
        self.target = wire.pose_arrays(message.pose)[0]

    def _on_gripper(self, message: Float64) -> None:
        self.grip = message.data

    def _move(self) -> None:
        if time.monotonic() - self._twist_at > SERVO_TIMEOUT:
            self.twist = np.zeros(3)
        speed = self.twist if self.target is None else GAIN * (self.target - self.position)
        self.position = self.position + STATE_PERIOD * speed
        # A table to go round on, so that a long test never leaves the workspace.
        self.position = HOME + np.clip(self.position - HOME, -0.12, 0.12)
        if self.grip_moves:
            self.opening += 0.2 * (0.08 * self.grip - self.opening)
        head = wire.header(self._node.get_clock().now().nanoseconds * 1e-9, 'base')
        # Joints that move whenever the commands say so, even against the edge of the table.
        self._phase = getattr(self, '_phase', 0.0) + STATE_PERIOD * float(np.abs(speed).sum())
        self._joints.publish(JointState(
            header=head, name=ARM + FINGERS,
            position=[0.1 + self._phase] * 7 + [self.opening / 2] * 2))
        p = wire.floats(self.position)
        self._pose.publish(PoseStamped(header=head, pose=Pose(
            position=Point(x=p[0], y=p[1], z=p[2]),
            orientation=Quaternion(x=1.0, y=0.0, z=0.0, w=0.0))))

    def _film(self) -> None:
        stamp = self._node.get_clock().now().to_msg()
        for publisher in self._cameras.values():
            picture = self._random.integers(0, 255, (128, 128, 3), np.uint8)
            publisher.publish(images.numpy_to_image(picture, stamp))


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

    def __init__(self, node: ros.Node) -> None:
        self.faults: dict[str, Fault] = {}
        self.seen: dict[str, float] = {}  # steady time of the last message of each topic
        self._publishers = {}
        for name, (kind, source, sink) in self.ROUTES.items():
            qos = (wire.LATEST if name == 'action_chunk' else wire.LATCHED if name == 'state'
                   else ros.qos_profile_sensor_data)
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
