"""What a node has declared: overrides, types, ranges, and who may object to a change."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .parameter_file import Override
from .parameters import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    Parameter,
    ParameterAlreadyDeclaredException,
    ParameterImmutableException,
    ParameterNotDeclaredException,
    ParameterUninitializedException,
)
from .types import message_class

ParameterDescriptor: Any = message_class('rcl_interfaces/msg/ParameterDescriptor')
SetParametersResult: Any = message_class('rcl_interfaces/msg/SetParametersResult')
_REL_TOL = 1e-6  # rclpy's, for floating point ranges

OnSet = Callable[[list[Parameter]], Any]
PostSet = Callable[[list[Parameter]], None]


class ParameterStore:
    """A node's parameters."""

    def __init__(self, node_name: str, overrides: Sequence[Override]) -> None:
        """Keep the overrides that apply to the node; later ones win."""
        self._node_name = node_name
        self.overrides = {override.name: override for override in overrides}
        self._values: dict[str, Parameter] = {}
        self._descriptors: dict[str, Any] = {}
        self.on_set: list[OnSet] = []
        self.post_set: list[PostSet] = []
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

        Raise InvalidParameterTypeException or InvalidParameterValueException, both UserErrors,
        naming the source of an override that does not fit.
        """
        if name in self._values:
            raise ParameterAlreadyDeclaredException(name)
        if descriptor is None:
            # As rclpy, which deprecates it: a name alone may take a value of any type.
            descriptor = ParameterDescriptor(dynamic_typing=default is None)
        # rclpy also takes a bare type as the default: a parameter that must be set from outside.
        if isinstance(default, Parameter.Type):
            kind, value = default, None
        else:
            kind, value = Parameter.Type.from_parameter_value(default), default
        if isinstance(value, (list, tuple)) and not value and descriptor.type:
            kind = Parameter.Type(descriptor.type)
        if kind == Parameter.Type.NOT_SET and not descriptor.dynamic_typing:
            raise ValueError(f'parameter {name} needs a default value, a type or a descriptor '
                             'with dynamic_typing')
        override = None if ignore_override else self.overrides.get(name)
        if override is not None:
            value = override.value
        descriptor.name = name
        descriptor.type = kind.value
        parameter = _typed(name, value, descriptor)
        refusal = self._objection([parameter], {name: descriptor}, declaring=True)
        if refusal:
            where = f'{override.source}: ' if override else ''
            raise refusal.exception(f'{where}parameter {name} = {value!r} of node '
                                    f'{self._node_name}: {refusal}')
        if descriptor.dynamic_typing:
            descriptor.type = parameter.type_.value
        with self._lock:
            self._values[name] = parameter
            self._descriptors[name] = descriptor
        self._tell([parameter], [])
        return parameter

    def undeclare(self, name: str) -> None:
        """Forget a parameter."""
        if self.describe(name).read_only:
            raise ParameterImmutableException(name)
        with self._lock:
            del self._values[name], self._descriptors[name]

    def _tell(self, new: list[Parameter], changed: list[Parameter]) -> None:
        if self.on_changed:
            self.on_changed(new, changed)
        for callback in list(self.post_set):
            callback(new + changed)

    def get(self, name: str) -> Parameter:
        """Return a declared parameter that has a value."""
        try:
            parameter = self._values[name]
        except KeyError:
            raise ParameterNotDeclaredException(f'{name} is not declared') from None
        if parameter.type_ == Parameter.Type.NOT_SET and not (
                self._descriptors[name].dynamic_typing):
            raise ParameterUninitializedException(f'{name} has no value')
        return parameter

    def type_of(self, name: str) -> int:
        """Return the number of a declared parameter's present type."""
        if name not in self._values:
            raise ParameterNotDeclaredException(f'{name} is not declared')
        return self._values[name].type_.value

    def describe(self, name: str) -> Any:
        """Return a declared parameter's descriptor."""
        if name not in self._values:
            raise ParameterNotDeclaredException(f'{name} is not declared')
        return self._descriptors[name]

    def below(self, prefixes: Sequence[str], depth: int) -> tuple[list[str], list[str]]:
        """Return the names below prefixes, ``depth`` levels deep (0 for all), and their own."""
        names = [name for name in self._values if _wanted(name, prefixes, depth)]
        found = dict.fromkeys(name.rpartition('.')[0] for name in names if '.' in name)
        return names, [*found]

    def set_atomically(self, parameters: Sequence[Parameter]) -> Any:
        """Set all or none; return SetParametersResult with the reason of a refusal.

        Raise ParameterNotDeclaredException, as rclpy does.
        """
        with self._lock:
            unknown = [each.name for each in parameters if each.name not in self._values]
            if unknown:
                raise ParameterNotDeclaredException(f'{", ".join(unknown)} is not declared')
            wanted = [_typed(each.name, each.value, self._descriptors[each.name])
                      for each in parameters]
            refusal = self._objection(wanted, self._descriptors, declaring=False)
            if refusal:
                return SetParametersResult(successful=False, reason=str(refusal))
            for parameter in wanted:
                self._values[parameter.name] = parameter
                if self._descriptors[parameter.name].dynamic_typing:
                    self._descriptors[parameter.name].type = parameter.type_.value
        self._tell([], wanted)
        return SetParametersResult(successful=True)

    def _objection(self, parameters: list[Parameter], descriptors: dict[str, Any],
                   declaring: bool) -> _Refusal | None:
        for parameter in parameters:
            reason = _against(parameter, descriptors[parameter.name], declaring)
            if reason:
                return reason
        for callback in list(self.on_set):
            result = callback(parameters)
            if not result.successful:
                return _Refusal(result.reason or 'refused')
        return None


class _Refusal(str):
    """Why a value is refused."""

    exception: type[Exception] = InvalidParameterValueException


class _WrongType(_Refusal):
    exception = InvalidParameterTypeException


def _typed(name: str, value: Any, descriptor: Any) -> Parameter:
    """Return the parameter; an empty list takes the declared type."""
    if isinstance(value, (list, tuple)) and not value and (
            descriptor.type >= Parameter.Type.BYTE_ARRAY.value):
        return Parameter(name, Parameter.Type(descriptor.type), value)
    return Parameter(name, value=value)


def _against(parameter: Parameter, descriptor: Any, declaring: bool) -> _Refusal | None:
    kind = parameter.type_
    if descriptor.read_only and not declaring:
        return _Refusal(f'{parameter.name} is read-only')
    if not descriptor.dynamic_typing and kind.value != descriptor.type and not (
            declaring and kind == Parameter.Type.NOT_SET):
        expected = Parameter.Type(descriptor.type).name.lower()
        return _WrongType(f'{expected} expected, got {kind.name.lower()}')
    reason = ''
    if kind == Parameter.Type.INTEGER and descriptor.integer_range:
        reason = _outside_integers(parameter.value, descriptor.integer_range[0])
    elif kind == Parameter.Type.DOUBLE and descriptor.floating_point_range:
        reason = _outside_floats(parameter.value, descriptor.floating_point_range[0])
    return _Refusal(f'{parameter.name} = {parameter.value} {reason}') if reason else None


def _outside_integers(value: int, limit: Any) -> str:
    low, high = sorted((limit.from_value, limit.to_value))
    if value in (low, high):
        return ''
    if not low < value < high:
        return f'is outside {low} to {high}'
    if limit.step and (value - low) % limit.step:
        return f'is not a step of {limit.step} from {low}'
    return ''


def _outside_floats(value: float, limit: Any) -> str:
    low, high = sorted((limit.from_value, limit.to_value))

    def near(other: float) -> bool:
        return math.isclose(value, other, rel_tol=_REL_TOL)
    if near(low) or near(high):
        return ''
    if not low < value < high:
        return f'is outside {low} to {high}'
    if limit.step and not near(low + round((value - low) / limit.step) * limit.step):
        return f'is not a step of {limit.step} from {low}'
    return ''


def _wanted(name: str, prefixes: Sequence[str], depth: int) -> bool:
    if not prefixes:
        return depth == 0 or name.count('.') < depth
    for prefix in prefixes:
        if name == prefix or name.startswith(f'{prefix}.'):
            return depth == 0 or name[len(prefix) + 1:].count('.') < depth
    return False
