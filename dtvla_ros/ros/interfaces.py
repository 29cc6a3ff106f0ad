"""The actions of dtvla_interfaces, a package of its own, which may not be installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import GoalEvent, ServerGoalHandle
from rclpy.node import Node

from dtvla_ros.ros.conversions import message_type

PACKAGE = 'dtvla_interfaces'
NOT_INSTALLED = (f'{PACKAGE} is not installed: make interfaces builds it beside the wheels of '
                 'ROS, colcon in a workspace (docs/install.md)')
SEND_GOAL = '/_action/send_goal'  # ends the name of a service that every action has


def action_type(name: str) -> Any:
    """Return an action's type by its name, such as 'RunTask'; None where it is not installed."""
    try:
        return message_type(f'{PACKAGE}/action/{name}')
    except KeyError:
        return None


def serve(node: Node, kind: Any, name: str, on_goal: Callable[[ServerGoalHandle], None],
          on_cancel: Callable[[ServerGoalHandle], None] = lambda handle: None) -> ActionServer:
    """Offer an action whose goals go on when ``on_goal`` has returned, until `notify_execute`.

    Not by ``execute``: its callback would have to wait, which keeps an events executor busy.
    """
    def accepted(handle: ServerGoalHandle) -> None:
        handle._update_state(GoalEvent.EXECUTE)
        on_goal(handle)

    def canceled(handle: ServerGoalHandle) -> CancelResponse:
        on_cancel(handle)
        return CancelResponse.ACCEPT

    return ActionServer(node, kind, name, lambda handle: None, handle_accepted_callback=accepted,
                        cancel_callback=canceled)
