"""Gripper adapters: the gripper's channel of an action to the messages of its controller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from builtin_interfaces.msg import Duration
from rclpy.action import ActionClient
from rclpy.node import Node
from std_msgs.msg import Float64, Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dtvla_ros.conventions import FINGER_JOINTS, GRIPPER, parameter, relative
from dtvla_ros.nodes.settings import installed
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.settings import GRIPPER_ACTIONS, GRIPPER_TOPICS

STROKE_TIME = Duration(nanosec=500_000_000)  # in which a trajectory opens or closes


@dataclass(frozen=True, slots=True)
class GripperSettings:
    """Parameters of the gripper's interface, of arms that have one."""

    gripper: str = parameter('topic', 'interface of the gripper',
                             choices=(*GRIPPER_TOPICS, *GRIPPER_ACTIONS))
    gripper_open_position: float = parameter(
        0.04, "command of the open gripper in its driver's unit, metres or radians; Franka: half "
        'the width; gripper topic: always 1')
    gripper_closed_position: float = parameter(
        0.0, 'command of the closed gripper in the same unit; gripper topic: always 0')
    gripper_max_effort: float = parameter(20.0, 'of a grasp [N]', low=0)
    gripper_joint: str = parameter(
        FINGER_JOINTS[0], 'joint of a parallel_gripper_command or a joint_trajectory')

    def position(self, channel: float) -> float:
        """Return the driver's command for a channel: -1 open, +1 closed."""
        share = (1.0 - channel) / 2.0
        wide, shut = self.gripper_open_position, self.gripper_closed_position
        return shut + (wide - shut) * share


class GripperTopic:
    """Gripper command on a topic, once there is one; a trajectory only when it changes.

    The channel of an action is -1 for open, +1 for closed, 0 for no command. ``topic``: the
    topic's name after remapping.
    """

    def __init__(self, node: Node, settings: GripperSettings) -> None:
        self._publisher = node.create_publisher(
            conversions.message_type(GRIPPER_TOPICS[settings.gripper]), relative(GRIPPER),
            qos.LATEST)
        self.topic: str = self._publisher.topic_name
        self._again = settings.gripper != 'joint_trajectory'  # else it would begin anew each time
        self._last = 0.0
        self._make: Callable[[float], Any] = {
            'topic': lambda channel: Float64(data=float((1.0 - channel) / 2.0)),
            'float64': lambda channel: Float64(data=settings.position(channel)),
            'float64_multi_array': lambda channel: Float64MultiArray(
                data=[settings.position(channel)]),
            'joint_trajectory': lambda channel: JointTrajectory(
                joint_names=[settings.gripper_joint], points=[JointTrajectoryPoint(
                    positions=[settings.position(channel)], time_from_start=STROKE_TIME)]),
        }[settings.gripper]

    def send(self, channel: float) -> None:
        if channel and (self._again or (channel != self._last and self.listeners())):
            self._last = channel
            self._publisher.publish(self._make(channel))

    def listeners(self) -> int:
        return self._publisher.get_subscription_count()


class GripperAction:
    """A goal of control_msgs' actions whenever the command changes.

    A grasp ends in a stall, which ParallelGripperCommand reports as a failure by default, so
    the action's own result is not asked for; whether a goal was reached is measured elsewhere.
    """

    topic = ''

    def __init__(self, node: Node, settings: GripperSettings) -> None:
        kind, self._settings = settings.gripper, settings
        self._parallel = kind == 'parallel_gripper_command'
        self._type = installed(GRIPPER_ACTIONS[kind], f'gripper = "{kind}"', '"topic"')
        self._client = ActionClient(node, self._type, 'gripper_action')
        self._last = 0.0

    def send(self, channel: float) -> None:
        if not channel or channel == self._last or not self._client.server_is_ready():
            return
        given, goal = self._settings, self._type.Goal()
        self._last, position, effort = channel, given.position(channel), given.gripper_max_effort
        command = {'position': position, 'max_effort': effort} if not self._parallel else {
            'name': [given.gripper_joint], 'position': [position], 'effort': [effort]}
        for name, value in command.items():
            setattr(goal.command, name, value)
        self._client.send_goal_async(goal)

    def listeners(self) -> int:
        return int(self._client.server_is_ready())


def make_gripper(node: Node, settings: GripperSettings) -> GripperTopic | GripperAction:
    """Build what commands a gripper; UserError if the action's type is not installed."""
    made = GripperTopic if settings.gripper in GRIPPER_TOPICS else GripperAction
    return made(node, settings)
