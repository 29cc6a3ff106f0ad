"""The topic on which an arm's controller reports that it is halted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from std_msgs.msg import Bool

from dtvla_ros.errors import UserError
from dtvla_ros.nodes.settings import declare
from dtvla_ros.ros.conversions import message_type

KINDS = {'none': '', 'bool': 'std_msgs/msg/Bool', 'int8': 'std_msgs/msg/Int8',
         'servo': 'moveit_msgs/msg/ServoStatus'}


class ArmStatus:
    """Follows ``arm_status`` and calls ``on_change(why the arm does not follow, or '')``.

    A Bool is true while the controller follows commands. Int8 (MoveIt Servo on Humble) and
    ServoStatus (since Jazzy) carry a code; ``arm_unable_codes`` are those of a halt.
    """

    def __init__(self, node: Node, on_change: Callable[[str], None]) -> None:
        kind = declare(node, 'arm_status', 'none', 'type of the topic arm_status',
                       choices=tuple(KINDS))
        self._unable = set(declare(
            node, 'arm_unable_codes', [-1, 2, 4, 5],
            "codes of MoveIt Servo's status in which the arm is halted"))
        self._on_change = on_change
        self._last = ''
        if kind == 'none':
            return
        try:
            message = message_type(KINDS[kind])
        except KeyError:
            raise UserError(f'parameter arm_status = "{kind}": {KINDS[kind]} is not installed '
                            'here; use "bool" or "int8"') from None
        node.create_subscription(message, 'arm_status', self._receive, 1)

    def _receive(self, message: Any) -> None:
        if isinstance(message, Bool):
            unable = '' if message.data else 'the controller does not follow commands'
        else:
            code = message.code if hasattr(message, 'code') else message.data
            text = getattr(message, 'message', '')
            unable = f'the controller is halted: status {code} {text}'.rstrip() if (
                code in self._unable) else ''
        if unable != self._last:
            self._last = unable
            self._on_change(unable)
