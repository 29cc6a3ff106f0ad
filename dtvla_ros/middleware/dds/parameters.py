"""Parameters as typed values, and what can be wrong with them."""

from __future__ import annotations

import array
from enum import Enum
from typing import Any

import numpy as np

from dtvla_ros.errors import UserError

from .message import Message
from .types import message_class

_ParameterValue = message_class('rcl_interfaces/msg/ParameterValue')
_ParameterMessage = message_class('rcl_interfaces/msg/Parameter')

_FIELDS = {1: 'bool_value', 2: 'integer_value', 3: 'double_value', 4: 'string_value',
           5: 'byte_array_value', 6: 'bool_array_value', 7: 'integer_array_value',
           8: 'double_array_value', 9: 'string_array_value'}


class ParameterException(Exception):
    """Base of what can be wrong with a parameter."""


class ParameterNotDeclaredException(ParameterException):
    """The parameter was not declared."""


class ParameterAlreadyDeclaredException(ParameterException):
    """The parameter was declared before."""


class ParameterUninitializedException(ParameterException, UserError):
    """The parameter was declared with a type only, and nobody has set it."""


class ParameterImmutableException(ParameterException):
    """The parameter is read-only."""


class InvalidParameterTypeException(ParameterException, UserError):
    """The value has another type than the declaration."""


class InvalidParameterValueException(ParameterException, UserError):
    """The value was refused."""


class Parameter:
    """A named, typed value."""

    class Type(Enum):
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
            if value is None:
                return cls.NOT_SET
            if type(value) in _SCALARS:
                return cls(_SCALARS[type(value)])
            if isinstance(value, (list, tuple, array.array)):
                kinds = {type(item) for item in value}
                if kinds <= {bytes}:
                    # As rclpy: an empty list says nothing; a declared type decides.
                    return cls.BYTE_ARRAY
                if len(kinds) == 1 and (kind := kinds.pop()) in _SCALARS:
                    return cls(_SCALARS[kind] + 5)
            raise TypeError(f'{value!r} is no parameter value')

        def check(self, value: Any) -> bool:
            """Return whether a value is of this type; an empty list is of every array type."""
            if isinstance(value, (list, tuple, array.array)) and not len(value):
                return self.value >= Parameter.Type.BYTE_ARRAY.value
            try:
                return Parameter.Type.from_parameter_value(value) == self
            except TypeError:
                return False

    def __init__(self, name: str, type_: Type | None = None, value: Any = None) -> None:
        """Make a parameter; the type follows from the value unless given.

        Raise TypeError for a value no parameter can have, ValueError if type and value disagree.
        """
        if type_ is None:
            type_ = Parameter.Type.from_parameter_value(value)
        if not isinstance(type_, Parameter.Type):
            raise TypeError(f'a Parameter.Type expected, got {type_!r}')
        if not type_.check(value):
            raise ValueError(f'{name}: {value!r} is not of type {type_.name.lower()}')
        self._name, self._type = name, type_
        self._value = list(value) if isinstance(value, (tuple, array.array)) else value

    @property
    def name(self) -> str:
        """Return the name."""
        return self._name

    @property
    def type_(self) -> Type:
        """Return the type."""
        return self._type

    @property
    def value(self) -> Any:
        """Return the value."""
        return self._value

    def get_parameter_value(self) -> Message:
        """Return rcl_interfaces/msg/ParameterValue."""
        number = self.type_.value
        message = _ParameterValue(type=number)
        if number == Parameter.Type.BYTE_ARRAY.value:
            setattr(message, _FIELDS[number], b''.join(self.value))
        elif number in _FIELDS:
            setattr(message, _FIELDS[number], self.value)
        return message

    def to_parameter_msg(self) -> Message:
        """Return rcl_interfaces/msg/Parameter."""
        return _ParameterMessage(name=self.name, value=self.get_parameter_value())

    @classmethod
    def from_parameter_msg(cls, message: Any) -> Parameter:
        """Read rcl_interfaces/msg/Parameter; raise ValueError for an unknown type."""
        kind = cls.Type(message.value.type)
        value: Any = (getattr(message.value, _FIELDS[kind.value])
                      if kind.value in _FIELDS else None)
        if kind == cls.Type.BYTE_ARRAY:
            value = [bytes([item]) for item in value.view(np.uint8)]
        elif isinstance(value, np.ndarray):
            value = value.tolist()
        return cls(message.name, kind, value)


_SCALARS = {bool: 1, int: 2, float: 3, str: 4}
