"""Parameter declarations that explain themselves to ``ros2 param describe``."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from dtvla_ros.errors import UserError

_LARGEST_INT = 2**63 - 1


def declare(
    node: Node,
    name: str,
    default: Any,
    description: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    changeable: bool = False,
) -> Any:
    """Declare a parameter and return its value.

    It is fixed at start unless ``changeable``. A set to something outside ``choices`` or
    ``low`` .. ``high`` is refused, the old value kept.

    Raises
    ------
    UserError
        If the value given at start is outside of them.

    """
    if choices:
        description += ': ' + ', '.join(choices)
    descriptor = ParameterDescriptor(description=description, read_only=not changeable)
    if low is not None or high is not None:
        _bound(descriptor, default, low, high)
    node.declare_parameter(name, default, descriptor)
    value: Any = node.get_parameter(name).value
    if choices and value not in choices:
        raise UserError(f'parameter {name} = "{value}"; choose from {", ".join(choices)}')
    if low is not None and not value >= low:
        raise UserError(f'parameter {name} = {value} must be at least {low:g}')
    if high is not None and not value <= high:
        raise UserError(f'parameter {name} = {value} must be at most {high:g}')
    if choices and changeable:
        refuse_changes(node, (name,), lambda p: None if p.value in choices else (
            f'{name} = "{p.value}"; choose from {", ".join(choices)}'))
    return value


def refuse_changes(
    node: Node, names: Collection[str], why: Callable[[Parameter], str | None],
) -> None:
    """Ask ``why`` before any of the parameters ``names`` changes; a reason refuses the change."""
    def judge(parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            reason = why(parameter) if parameter.name in names else None
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)
    node.add_on_set_parameters_callback(judge)


def _bound(descriptor: Any, default: Any, low: float | None, high: float | None) -> None:
    if isinstance(default, int):
        descriptor.integer_range = [IntegerRange(
            from_value=-_LARGEST_INT if low is None else int(low),
            to_value=_LARGEST_INT if high is None else int(high), step=0)]
    else:
        largest = math.inf
        descriptor.floating_point_range = [FloatingPointRange(
            from_value=-largest if low is None else float(low),
            to_value=largest if high is None else float(high), step=0.0)]
