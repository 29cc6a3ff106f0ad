"""Parameter declarations that explain themselves to ``ros2 param describe``."""

from __future__ import annotations

from typing import Any

from dtvla_ros.errors import UserError
from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import ParameterDescriptor


def declare(
    node: ros.Node,
    name: str,
    default: Any,
    description: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
) -> Any:
    """Declare a parameter that is fixed at start and return its value.

    Raises
    ------
    UserError
        If the value is not among ``choices`` or is below ``low``.

    """
    if choices:
        description += ': ' + ', '.join(choices)
    node.declare_parameter(
        name, default, ParameterDescriptor(description=description, read_only=True))
    value: Any = node.get_parameter(name).value
    if choices and value not in choices:
        raise UserError(f'parameter {name} = "{value}"; choose from {", ".join(choices)}')
    if low is not None and not value >= low:
        raise UserError(f'parameter {name} = {value} must be at least {low:g}')
    return value
