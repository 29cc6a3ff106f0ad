"""Parameters of the nodes, from tables: declared, described and checked."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from rcl_interfaces import msg
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.node import Node
from rclpy.parameter import Parameter

from dtvla_ros.errors import UserError
from dtvla_ros.ros.conversions import message_type

_LARGEST_INT = 2**63 - 1
Table = TypeVar('Table')


def declare(
    node: Node, name: str, default: Any, description: str, *, choices: Collection[str] = (),
    low: float | None = None, high: float | None = None, length: int | None = None,
    distinct: bool = False, changeable: bool = False, hint: str = '') -> Any:
    """Declare a parameter and return its value.

    Fixed at start unless ``changeable``. A set outside ``choices`` or ``low`` .. ``high`` is
    refused (``hint`` ends that of a choice), and a list of another ``length``, of no or equal
    entries where they are ``distinct``; at start UserError or InvalidParameterValueException.
    """
    listed = ', '.join(filter(None, choices))

    def refuse(value: Any) -> str | None:
        if value is None:
            return f'{name} is empty: give it a value, or leave it out for {default}'
        if choices and value not in choices:
            return f'{name} = "{value}"; choose from {listed}{hint}'
        if length is not None and len(value) != length:
            return f'{name} = {list(value)}: {len(value)} values, {length} expected'
        if distinct and not (value and all(value) and len(set(value)) == len(value)):
            return f'{name} = {list(value)}: names expected, none empty or twice'
        return None

    if choices:
        description += f': {listed}'
    descriptor = msg.ParameterDescriptor(description=description, read_only=not changeable)
    if (low, high) != (None, None):
        kind, most = (int, _LARGEST_INT) if isinstance(default, int) else (float, math.inf)
        ends = {'from_value': kind(-most if low is None else low),
                'to_value': kind(most if high is None else high)}
        if kind is int:
            descriptor.integer_range = [msg.IntegerRange(**ends)]
        else:
            descriptor.floating_point_range = [msg.FloatingPointRange(**ends)]
    default = list(default) if isinstance(default, tuple) else default
    try:
        value: Any = node.declare_parameter(name, default, descriptor).value
    except InvalidParameterTypeException as error:
        integer = "'INTEGER" in str(error) and "'DOUBLE" in str(error)
        raise UserError(f'{error}{"; write 2.0 for 2" if integer else ""}') from error
    if refusal := refuse(value):
        raise UserError(f'parameter {refusal}')
    if changeable:
        guard(node, (name,), lambda p: refuse(p.value))
    return value


def guard(node: Node, names: Collection[str], why: Callable[[Parameter], str | None]) -> None:
    """Ask ``why`` before any of the parameters ``names`` changes; a reason refuses the change."""
    def judge(parameters: list[Parameter]) -> msg.SetParametersResult:
        reason = next(filter(None, [why(p) for p in parameters if p.name in names]), '')
        return msg.SetParametersResult(successful=not reason, reason=reason)
    node.add_on_set_parameters_callback(judge)


def declare_all(node: Node, defaults: Table, changeable: bool = False) -> Table:
    """Declare every `parameter` of a table, its values the defaults; raise as `declare` does."""
    for entry in dataclasses.fields(defaults):  # type: ignore[arg-type]
        declare(node, entry.name, getattr(defaults, entry.name),
                **{'changeable': changeable, **entry.metadata})
    return read_all(node, type(defaults))


def read_all(node: Node, table: type[Table], **changed: Any) -> Table:
    """Return the present values of a table, some of them ``changed``; lists become tuples."""
    values = {entry.name: node.get_parameter(entry.name).value
              for entry in dataclasses.fields(table)} | changed  # type: ignore[arg-type]
    return table(**{name: tuple(value) if isinstance(value, (list, array)) else value
                    for name, value in values.items()})


def installed(name: str, parameter: str, instead: str) -> Any:
    """Return the type 'pkg/msg/Type' of a parameter's value; UserError if it is not installed."""
    try:
        return message_type(name)
    except KeyError:
        raise UserError(f'parameter {parameter}: {name} is not installed; install ros-$ROS_DISTRO-'
                        f'{name.partition("/")[0].replace("_", "-")}, or use {instead}') from None


WITHOUT_EFFECT = ('seed', 'keep_thought')  # of thoughts that only `dtvla eval --mode` replaces


def declare_former(node: Node) -> None:
    """Declare the policy node's former parameters, read-only; warn once if some are given."""
    descriptor = msg.ParameterDescriptor(
        description='without effect', read_only=True, dynamic_typing=True)
    given = [name for name in WITHOUT_EFFECT
             if node.declare_parameter(name, None, descriptor).value is not None]
    if given:
        node.get_logger().warning(f'parameter {" and ".join(given)}: without effect; remove it, '
                                  'and use dtvla eval --mode for other thoughts')
