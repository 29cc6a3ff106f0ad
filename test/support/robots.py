"""Arms with their drivers' own topics, joints, frames and units, played by the test.

Written from the lines that are quoted, and not from config/robots, which is held against them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from control_msgs.action import GripperCommand, ParallelGripperCommand
from geometry_msgs.msg import PoseStamped, Transform, TransformStamped, TwistStamped, Vector3
from rclpy.action import ActionServer
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray
from tf2_msgs.msg import TFMessage
from trajectory_msgs.msg import JointTrajectory

from benchmarks.arm import GAIN, HOME, SERVO_TIMEOUT
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.run import STEADY

from .controllers import ForwardController, TrajectoryController

PERIOD = 0.03  # of joint states and poses [s]
IMAGES_PERIOD = 0.1
DOWN = [1.0, 0.0, 0.0, 0.0]  # the gripper's orientation
HALF_TURN = [0.0, 0.0, 1.0, 0.0]  # about z


@dataclass(frozen=True)
class Driver:
    """What an arm's and a gripper's drivers publish and take.

    ``links``: frames from the base to the tool, the first joint of which moves. ``turned``: a
    frame where the base is, turned by half a turn. ``pose``: topic and frame_id of a pose.
    ``closes``: what the gripper's joints say from open to closed; ``takes``: of its goals.
    """

    arm: tuple[str, ...]
    gripper_joints: tuple[str, ...]
    closes: tuple[float, float]
    gripper: str
    takes: tuple[float, float]
    command: str
    kind: Any
    links: tuple[str, ...]
    turned: str = ''
    pose: tuple[str, str] = ('', '')
    gripper_type: Any = GripperCommand
    cameras: tuple[str, str] = (
        '/camera/primary/color/image_raw', '/camera/wrist/color/image_raw')
    joint_states: str = '/joint_states'

    @property
    def by_joints(self) -> bool:
        """Whether its controller takes positions of the joints."""
        return self.kind in CONTROLLERS


CONTROLLERS = {JointTrajectory: TrajectoryController, Float64MultiArray: ForwardController}


# franka_ros2, franka_bringup/config/controllers.yaml: "- fr3_joint1"; franka_gripper,
# gripper_action_server.cpp: "joint_states.position.push_back(current_gripper_state_.width / 2)";
# a goal of "2 * kGoal->command.position > max_width or < 0" is aborted there.
_FRANKA: dict[str, Any] = {
    'arm': tuple(f'fr3_joint{k}' for k in range(1, 8)),
    'gripper_joints': ('fr3_finger_joint1', 'fr3_finger_joint2'), 'closes': (0.04, 0.0),
    'gripper': '/fr3_gripper/gripper_action', 'takes': (0.0, 0.04)}
# franka_description, franka_arm.xacro and franka_hand.xacro: "${arm_id}_link0", "_hand_tcp".
_FRANKA_LINKS = ('fr3_link0', 'fr3_link7', 'fr3_link8', 'fr3_hand', 'fr3_hand_tcp')
DRIVERS = {
    # crisp_controllers, pose_broadcaster.cpp: "current_pose", "frame_id = params_.base_frame",
    # by crisp_controllers_demos "base_frame: base"; cartesian_controller.cpp: "target_pose".
    'fr3_crisp': Driver(**_FRANKA, command='/target_pose', kind=PoseStamped,
                        links=('base', *_FRANKA_LINKS), pose=('/current_pose', 'base')),
    # moveit_servo, servo_parameters.yaml: cartesian_command_in_topic "~/delta_twist_cmds".
    'fr3_servo': Driver(**_FRANKA, command='/servo_node/delta_twist_cmds', kind=TwistStamped,
                        links=_FRANKA_LINKS),
    # cartesian_controllers: target_frame in robot_base_link, below the controller's name.
    'fr3_fzi': Driver(**_FRANKA, command='/cartesian_compliance_controller/target_frame',
                      kind=PoseStamped, links=_FRANKA_LINKS),
    # ur_robot_driver, ur_controllers.yaml: "- $(var tf_prefix)shoulder_pan_joint"; ur_description:
    # base is turned by pi against base_link. robotiq_2f_85_macro.urdf.xacro: left_knuckle_joint,
    # limit lower="0.0" upper="0.8", with the prefix robotiq_85_.
    'ur5e_servo': Driver(
        arm=('shoulder_pan_joint', 'shoulder_lift_joint', 'elbow_joint', 'wrist_1_joint',
             'wrist_2_joint', 'wrist_3_joint'),
        gripper_joints=('robotiq_85_left_knuckle_joint',), closes=(0.0, 0.8),
        gripper='/robotiq_gripper_controller/gripper_cmd', takes=(0.0, 0.8),
        command='/servo_node/delta_twist_cmds', kind=TwistStamped,
        links=('base_link', 'wrist_3_link', 'flange', 'tool0'), turned='base')}
DRIVERS['ur5e_jtc'] = replace(  # ur_controllers.yaml: "scaled_joint_trajectory_controller:"
    DRIVERS['ur5e_servo'], kind=JointTrajectory,
    command='/scaled_joint_trajectory_controller/joint_trajectory')
# so101-ros-physical-ai, moveit_controllers.yaml: "follower/arm_trajectory_controller",
# "- wrist_roll", "type: ParallelGripperCommand"; so101.yaml: "/follower/joint_states",
# "/follower/image_raw", "/static_camera/image_raw". lerobot-ros, config.py: the gripper's
# gripper_open_position=1.74533.
DRIVERS['so101'] = Driver(
    arm=('shoulder_pan', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll'),
    gripper_joints=('gripper',), closes=(1.74533, 0.0),
    gripper='/follower/gripper_controller/gripper_cmd', takes=(0.0, 1.74533),
    gripper_type=ParallelGripperCommand, kind=JointTrajectory,
    command='/follower/arm_trajectory_controller/joint_trajectory',
    joint_states='/follower/joint_states',
    cameras=('/static_camera/image_raw', '/follower/image_raw'),
    links=('base_link', 'shoulder_link', 'wrist_link', 'gripper_link'))


class DrivenArm:
    """Publishes as its drivers do, and follows what its controller is told in the base frame.

    ``goals``: positions that the gripper was told; ``refused``: what a driver would refuse.
    """

    def __init__(self, node: Node, driver: Driver) -> None:
        self._node, self._driver, sensor = node, driver, qos_profile_sensor_data
        self.position, self._twist, self._twist_at = HOME.copy(), np.zeros(3), 0.0
        self._target: Any = None
        self._closed = 0.0  # 0 open, 1 closed
        self.controller = CONTROLLERS[driver.kind](
            driver.arm, np.zeros(len(driver.arm))) if driver.by_joints else None
        self.goals: list[float] = []
        self.refused: list[str] = []
        self._joints = node.create_publisher(JointState, driver.joint_states, 10)
        self._pose = node.create_publisher(
            PoseStamped, driver.pose[0], QoSProfile(depth=10)) if driver.pose[0] else None
        self._tf = node.create_publisher(TFMessage, '/tf', 100)
        static = node.create_publisher(
            TFMessage, '/tf_static', qos.profile(100, reliable=True, latched=True))
        fixed = [self._transform(parent, child, [0.0, 0.0, 0.0]) for parent, child in zip(
            driver.links[1:], driver.links[2:])]
        if driver.turned:
            fixed.append(self._transform(
                driver.links[0], driver.turned, [0.0, 0.0, 0.0], HALF_TURN))
        static.publish(TFMessage(transforms=fixed))
        self._cameras = [node.create_publisher(Image, name, sensor) for name in driver.cameras]
        node.create_subscription(driver.kind, driver.command, {
            TwistStamped: self._on_twist, PoseStamped: self._on_target}.get(
                driver.kind, self._on_joints), 10)
        self.server = ActionServer(node, driver.gripper_type, driver.gripper, self._on_goal)
        self._noise = np.random.default_rng(0)
        node.create_timer(PERIOD, self._move, clock=STEADY)
        node.create_timer(IMAGES_PERIOD, self._publish_images, clock=STEADY)

    def _transform(self, parent: str, child: str, place: Any, turn: Any = (0.0, 0.0, 0.0, 1.0),
                   ) -> TransformStamped:
        pose = conversions.pose_message(self._head(parent), place, turn).pose
        return TransformStamped(
            header=self._head(parent), child_frame_id=child, transform=Transform(
                translation=Vector3(x=pose.position.x, y=pose.position.y, z=pose.position.z),
                rotation=pose.orientation))

    def _head(self, frame: str = '') -> Any:
        return conversions.header(self._node.get_clock().now().nanoseconds * 1e-9, frame)

    def _in_base(self, message: Any) -> bool:
        if message.header.frame_id == (self._driver.pose[1] or self._driver.links[0]):
            return True
        self.refused.append(f'a command in {message.header.frame_id}')
        return False

    def _on_twist(self, message: TwistStamped) -> None:
        if self._in_base(message):
            self._twist = conversions.twist_array(message.twist)[:3]
            self._twist_at = time.monotonic()

    def _on_target(self, message: PoseStamped) -> None:
        if self._in_base(message):
            self._target = conversions.pose_arrays(message.pose)[0]

    def _on_joints(self, message: Any) -> None:
        assert self.controller is not None
        self.controller.take(message, time.monotonic())

    def _on_goal(self, goal: Any) -> Any:
        told, (low, high) = np.ravel(goal.request.command.position)[0], self._driver.takes
        self.goals.append(told)
        if low <= told <= high:
            wide, shut = self._driver.closes
            self._closed = (told - wide) / (shut - wide)
            goal.succeed()
        else:
            self.refused.append(f'a goal of {told}')
            goal.abort()
        return self._driver.gripper_type.Result()

    def _move(self) -> None:
        if time.monotonic() - self._twist_at > SERVO_TIMEOUT:
            self._twist = np.zeros(3)
        speed = self._twist if self._target is None else GAIN * (self._target - self.position)
        self.position = self.position + PERIOD * speed
        driver, (wide, shut) = self._driver, self._driver.closes
        angles = [float(self.position.sum())] * len(driver.arm)
        if self.controller is not None:
            angles = self.controller.move(time.monotonic()).tolist()
            self.position = HOME + 0.1 * np.array(angles[:3])
        finger = wide + (shut - wide) * self._closed
        # joint_state_broadcaster, or joint_state_publisher over both drivers, merges them.
        self._joints.publish(JointState(
            header=self._head(), name=[*driver.arm, *driver.gripper_joints],
            position=angles + [finger] * len(driver.gripper_joints)))
        self._tf.publish(TFMessage(transforms=[self._transform(
            driver.links[0], driver.links[1], self.position, DOWN)]))
        if self._pose is not None:
            self._pose.publish(conversions.pose_message(
                self._head(driver.pose[1]), self.position, DOWN))

    def _publish_images(self) -> None:
        stamp = self._node.get_clock().now().to_msg()
        for publisher in self._cameras:
            pixels = self._noise.integers(0, 255, (48, 64, 3), np.uint8)
            publisher.publish(images.serialize_image(pixels, stamp))


def moved(arm: DrivenArm, distance: float = 0.01) -> Callable[[], bool]:
    """Return what tells whether an arm has moved so far [m] from where it is now."""
    place = arm.position.copy()
    return lambda: bool(np.linalg.norm(arm.position - place) > distance)
