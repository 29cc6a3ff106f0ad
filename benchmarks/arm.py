"""A kinematic arm with two cameras on the wall clock, for tests and measurements of the nodes.

``python -m benchmarks.arm --ros-args -p width:=640 -p height:=480 -p frame_rate:=30.0``
"""

from __future__ import annotations

import time

import numpy as np
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, TwistStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64, Header

from dtvla_ros.conventions import ARM_JOINTS, CAMERAS, FINGER_JOINTS, GRIPPER, TARGET_POSE, TWIST
from dtvla_ros.ros import images
from dtvla_ros.ros.run import STEADY, run

STATE_PERIOD = 0.02  # s
SERVO_TIMEOUT = 0.1  # MoveIt Servo halts after this much silence [s]
GAIN = 5.34  # 1/s: a pose target 0.05 m away is approached at 0.267 m/s, as in the simulator
HOME = np.array([0.5, 0.0, 0.2])
REACH = 0.12  # the arm stays this near to HOME in every direction [m]
WIDE = 0.08  # opening of the gripper [m]
IMAGES = 16


class Robot:
    """Follows ``/twist_cmd`` or ``/target_pose``; publishes below ``prefix``.

    Joints move as the arm is told to, even out of reach. Images of ``size`` (height, width) are
    noise and never the same twice in a row.
    """

    def __init__(self, node: Node, prefix: str = '/robot', size: tuple[int, int] = (128, 128),
                 frame_rate: float = 25.0, base_frame: str = 'base') -> None:
        sensor = qos_profile_sensor_data
        self._node, self._base_frame = node, base_frame
        self._images = np.random.default_rng(0).integers(0, 255, (IMAGES, *size, 3), np.uint8)
        self._frame = 0
        self.position, self.twist = HOME.copy(), np.zeros(3)
        self.target: NDArray[np.float64] | None = None
        self.opening, self.grip, self.grip_moves = WIDE, 1.0, True
        self._travelled, self._twist_at = 0.0, 0.0
        self._cameras = [node.create_publisher(Image, f'{prefix}/image_{c}', sensor)
                         for c in CAMERAS]
        self._joints = node.create_publisher(JointState, f'{prefix}/joint_states', sensor)
        self._pose = node.create_publisher(PoseStamped, f'{prefix}/ee_pose', sensor)
        node.create_subscription(TwistStamped, TWIST, self._on_twist, 1)
        node.create_subscription(PoseStamped, TARGET_POSE, self._on_target, 1)
        self.gripper: Subscription | None = None
        self.connect_gripper()
        node.create_timer(STATE_PERIOD, self._move, clock=STEADY)
        node.create_timer(1.0 / frame_rate, self._publish_images, clock=STEADY)

    def connect_gripper(self) -> None:
        """Listen to ``/gripper_cmd``."""
        self.gripper = self._node.create_subscription(Float64, GRIPPER, self._on_gripper, 1)

    def disconnect_gripper(self) -> None:
        """Listen no more."""
        if self.gripper is not None:
            self._node.destroy_subscription(self.gripper)
            self.gripper = None

    def _on_twist(self, message: TwistStamped) -> None:
        v = message.twist.linear
        self.twist, self._twist_at = np.array([v.x, v.y, v.z]), time.monotonic()

    def _on_target(self, message: PoseStamped) -> None:
        p = message.pose.position
        self.target = np.array([p.x, p.y, p.z])

    def _on_gripper(self, message: Float64) -> None:
        self.grip = message.data

    def _move(self) -> None:
        if time.monotonic() - self._twist_at > SERVO_TIMEOUT:
            self.twist = np.zeros(3)
        speed = self.twist if self.target is None else GAIN * (self.target - self.position)
        reached = self.position + STATE_PERIOD * speed
        self.position = HOME + np.clip(reached - HOME, -REACH, REACH)
        self._travelled += STATE_PERIOD * float(np.abs(speed).sum())
        if self.grip_moves:
            self.opening += 0.2 * (WIDE * self.grip - self.opening)
        head = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._base_frame)
        self._joints.publish(JointState(
            header=head, name=[*ARM_JOINTS, *FINGER_JOINTS],
            position=[0.1 + self._travelled] * 7 + [self.opening / 2] * 2))
        x, y, z = (float(value) for value in self.position)
        self._pose.publish(PoseStamped(header=head, pose=Pose(
            position=Point(x=x, y=y, z=z), orientation=Quaternion(x=1.0, y=0.0, z=0.0, w=0.0))))

    def _publish_images(self) -> None:
        stamp = self._node.get_clock().now().to_msg()
        for offset, publisher in enumerate(self._cameras):
            image = self._images[(self._frame + offset) % IMAGES]
            publisher.publish(images.serialize_image(image, stamp))
        self._frame += 1


class RobotNode(Node):
    """A `Robot` in a process of its own."""

    def __init__(self) -> None:
        super().__init__('robot')
        height, width, rate = (self.declare_parameter(name, default).value for name, default in (
            ('height', 480), ('width', 640), ('frame_rate', 30.0)))
        self._robot = Robot(self, '', (height, width), rate)


if __name__ == '__main__':
    raise SystemExit(run(RobotNode))
