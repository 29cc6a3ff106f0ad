"""Grippers behind control_msgs' actions; genuine ROS 2 only."""

from __future__ import annotations

from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from dtvla_ros.conventions import FINGER_JOINTS
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.settings import declare


class GripperAction:
    """Sends a goal whenever the command changes; whether it was reached is measured elsewhere.

    A grasp ends in a stall, which ParallelGripperCommand reports as a failure by default, so
    the action's own result is not asked for.
    """

    def __init__(self, node: Node, kind: str) -> None:
        self._open = declare(node, 'gripper_open_position', 0.04,
                             'position of the open gripper; Franka: half the width [m]', low=0)
        self._effort = declare(node, 'gripper_max_effort', 20.0, 'of a grasp [N]', low=0)
        self._joint = declare(node, 'gripper_joint', FINGER_JOINTS[0],
                              'joint of a parallel_gripper_command')
        self._parallel = kind == 'parallel_gripper_command'
        try:
            from control_msgs import action
            self._type: Any = (action.ParallelGripperCommand if self._parallel
                               else action.GripperCommand)
        except (ImportError, AttributeError) as error:
            raise UserError(f'parameter gripper = "{kind}": {error}; install '
                            'ros-$ROS_DISTRO-control-msgs or use "topic"') from error
        self._client = ActionClient(node, self._type, 'gripper_action')
        self._told = 0.0

    def send(self, channel: float) -> None:
        """Send a goal if the command is new: -1 open, +1 closed, 0 none."""
        if not channel or channel == self._told or not self._client.server_is_ready():
            return
        self._told = channel
        goal = self._type.Goal()
        position = self._open if channel < 0 else 0.0
        if self._parallel:
            goal.command.name = [self._joint]
            goal.command.position = [position]
            goal.command.effort = [self._effort]
        else:
            goal.command.position = position
            goal.command.max_effort = self._effort
        self._client.send_goal_async(goal)

    def listeners(self) -> int:
        """Return 1 while the action's server is there."""
        return int(self._client.server_is_ready())
