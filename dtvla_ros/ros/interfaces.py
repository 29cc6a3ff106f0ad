"""The actions of dtvla_interfaces, a package of its own, which may not be installed."""

from __future__ import annotations

from typing import Any

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
