"""A node's parameters: declaration, types, ranges and change callbacks."""

from __future__ import annotations

import array
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from dtvla_ros.errors import UserError

from .message import Message
from .parameter_file import Override
from .types import message_class

ParameterDescriptor: Any = message_class('rcl_interfaces/msg/ParameterDescriptor')
SetParametersResult: Any = message_class('rcl_interfaces/msg/SetParametersResult')
_ParameterValue = message_class('rcl_interfaces/msg/ParameterValue')
_ParameterMessage = message_class('rcl_interfaces/msg/Parameter')

_FIELDS = {1: 'bool_value', 2: 'integer_value', 3: 'double_value', 4: 'string_value',
           5: 'byte_array_value', 6: 'bool_array_value', 7: 'integer_array_value',
           8: 'double_array_value', 9: 'string_array_value'}


class ParameterNotDeclaredException(KeyError):
    """The parameter was not declared."""


class ParameterAlreadyDeclaredException(ValueError):
    """The parameter was declared before."""


class InvalidParameterTypeException(TypeError):
    """The value has another type than the declaration."""


class InvalidParameterValueException(ValueError):
    """The value was refused."""


class Parameter:
    """A named, typed value."""

    class Type(IntEnum):
        """As in rcl_interfaces/msg/ParameterType."""

        NOT_SET = 0
        BOOL = 1
        INTEGER = 2
        DOUBLE = 3
        STRING = 4
        BYTE_ARRAY = 5
        BOOL_ARRAY = 6
        INTEGER_ARRAY = 7
        DOUBLE_ARRAY = 8
        STRING_ARRAY = 9

        @classmethod
        def from_parameter_value(cls, value: Any) -> Parameter.Type:
            """Return the type of a Python value; raise TypeError if it has none."""
            scalars = {bool: cls.BOOL, int: cls.INTEGER, float: cls.DOUBLE, str: cls.STRING}
            if value is None:
                return cls.NOT_SET
            if type(value) in scalars:
                return scalars[type(value)]
            if isinstance(value, (bytes, bytearray)):
                return cls.BYTE_ARRAY
            if isinstance(value, (list, tuple, array.array)):
                kinds = {type(item) for item in value}
                if not kinds:
                    # As rclpy: an empty list says nothing; a declared type decides.
                    return cls.BYTE_ARRAY
                if len(kinds) == 1 and (kind := kinds.pop()) in scalars:
                    return cls(scalars[kind] + 5)
            raise TypeError(f'{value!r} is no parameter value')

    def __init__(self, name: str, type_: Type | None = None, value: Any = None) -> None:
        """Make a parameter; the type follows from the value unless given."""
        self.name = name
        self.value = list(value) if isinstance(value, (tuple, array.array)) else value
        self.type_ = Parameter.Type.from_parameter_value(value) if type_ is None else type_

    def get_parameter_value(self) -> Message:
        """Return rcl_interfaces/msg/ParameterValue."""
        message = _ParameterValue(type=int(self.type_))
        if self.type_ in _FIELDS:
            setattr(message, _FIELDS[self.type_], self.value)
        return message

    def to_parameter_msg(self) -> Message:
        """Return rcl_interfaces/msg/Parameter."""
        return _ParameterMessage(name=self.name, value=self.get_parameter_value())

    @classmethod
    def from_parameter_msg(cls, message: Any) -> Parameter:
        """Read rcl_interfaces/msg/Parameter; raise ValueError for an unknown type."""
        kind = cls.Type(message.value.type)
        value = getattr(message.value, _FIELDS[kind]) if kind in _FIELDS else None
        if isinstance(value, np.ndarray):
            value = value.tobytes() if kind == cls.Type.BYTE_ARRAY else value.tolist()
        return cls(message.name, kind, value)


OnSet = Callable[[list[Parameter]], Any]


class ParameterStore:
    """What a node has declared, and who may object to a change."""

    def __init__(self, node_name: str, overrides: Sequence[Override]) -> None:
        """Keep the overrides that apply to the node; later ones win."""
        self._node_name = node_name
        self.overrides = {override.name: override for override in overrides}
        self._values: dict[str, Parameter] = {}
        self._descriptors: dict[str, Any] = {}
        self.on_set: list[OnSet] = []
        self.on_changed: Callable[[list[Parameter], list[Parameter]], None] | None = None
        self._lock = threading.RLock()

    def names(self) -> list[str]:
        """Return the declared names in order of declaration."""
        return list(self._values)

    def __contains__(self, name: str) -> bool:
        """Return whether a parameter is declared."""
        return name in self._values

    def declare(self, name: str, default: Any, descriptor: Any | None,
                ignore_override: bool) -> Parameter:
        """Declare a parameter; its value is the override's if there is one.

        Raise UserError naming the source of an override that does not fit.
        """
        if name in self._values:
            raise ParameterAlreadyDeclaredException(name)
        # rclpy also takes a bare type as the default: a parameter that must be set from outside.
        kind = default if isinstance(default, Parameter.Type) else (
            Parameter.Type.from_parameter_value(default))
        value = None if isinstance(default, Parameter.Type) else default
        descriptor = ParameterDescriptor() if descriptor is None else descriptor
        if isinstance(value, (list, tuple)) and not value and descriptor.type:
            kind = Parameter.Type(descriptor.type)
        override = None if ignore_override else self.overrides.get(name)
        if override is not None:
            value = override.value
        descriptor.name = name
        if not descriptor.dynamic_typing:
            descriptor.type = int(kind)
        parameter = self._typed(name, value, descriptor)
        reason = 'a value is required' if parameter is None else self._objection(
            [parameter], {name: descriptor}, declaring=True)
        if reason:
            where = f'{override.source}: ' if override else ''
            found = '' if parameter is None else f' = {value!r}'
            raise UserError(f'{where}parameter {name}{found} of node {self._node_name}: {reason}')
        assert parameter is not None
        with self._lock:
            self._values[name] = parameter
            self._descriptors[name] = descriptor
        if self.on_changed:
            self.on_changed([parameter], [])
        return parameter

    @staticmethod
    def _typed(name: str, value: Any, descriptor: Any) -> Parameter | None:
        if value is None and descriptor.type != Parameter.Type.NOT_SET:
            return None
        if isinstance(value, (list, tuple)) and not value and descriptor.type:
            return Parameter(name, Parameter.Type(descriptor.type), value)
        return Parameter(name, value=value)

    def get(self, name: str) -> Parameter:
        """Return a declared parameter."""
        try:
            return self._values[name]
        except KeyError:
            raise ParameterNotDeclaredException(name) from None

    def describe(self, name: str) -> Any:
        """Return a declared parameter's descriptor."""
        self.get(name)
        return self._descriptors[name]

    def set_atomically(self, parameters: list[Parameter]) -> Any:
        """Set all or none; return SetParametersResult with the reason of a refusal."""
        with self._lock:
            for parameter in parameters:
                if parameter.name not in self._values:
                    return SetParametersResult(
                        successful=False, reason=f'{parameter.name} is not declared')
                declared = self._descriptors[parameter.name].type
                if not parameter.value and isinstance(parameter.value, (list, bytes)):
                    parameter.type_ = Parameter.Type(declared)
                    parameter.value = []
            reason = self._objection(parameters, self._descriptors, declaring=False)
            if reason:
                return SetParametersResult(successful=False, reason=reason)
            for parameter in parameters:
                self._values[parameter.name] = parameter
        if self.on_changed:
            self.on_changed([], parameters)
        return SetParametersResult(successful=True)

    def _objection(self, parameters: list[Parameter], descriptors: dict[str, Any],
                   declaring: bool) -> str:
        for parameter in parameters:
            descriptor = descriptors[parameter.name]
            if descriptor.read_only and not declaring:
                return f'{parameter.name} is read-only'
            if not descriptor.dynamic_typing and parameter.type_ != descriptor.type:
                return (f'{Parameter.Type(descriptor.type).name.lower()} expected, '
                        f'got {parameter.type_.name.lower()}')
            reason = _out_of_range(parameter, descriptor)
            if reason:
                return reason
        for callback in list(self.on_set):
            result = callback(parameters)
            if not result.successful:
                return result.reason or 'refused'
        return ''


def _out_of_range(parameter: Parameter, descriptor: Any) -> str:
    limits = {Parameter.Type.INTEGER: descriptor.integer_range,
              Parameter.Type.DOUBLE: descriptor.floating_point_range}.get(parameter.type_, [])
    for limit in limits:
        if not limit.from_value <= parameter.value <= limit.to_value:
            return (f'{parameter.name} = {parameter.value} is outside '
                    f'{limit.from_value} to {limit.to_value}')
    return ''
