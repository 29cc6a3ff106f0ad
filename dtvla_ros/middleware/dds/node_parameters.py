"""The part of a node that is about its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .parameter_store import OnSet, ParameterStore, PostSet
from .parameters import Parameter
from .types import message_class

_ListResult: Any = message_class('rcl_interfaces/msg/ListParametersResult')


class NodeParameters:
    """Methods of ``rclpy.node.Node`` over a ParameterStore."""

    _store: ParameterStore

    def declare_parameter(self, name: str, value: Any = None, descriptor: Any = None,
                          ignore_override: bool = False) -> Parameter:
        """Declare a parameter; raise UserError when an override does not fit it."""
        return self._store.declare(name, value, descriptor, ignore_override)

    def declare_parameters(self, namespace: str, parameters: Iterable[tuple[Any, ...]],
                           ignore_override: bool = False) -> list[Parameter]:
        """Declare (name, default[, descriptor]) tuples under a prefix."""
        prefix = f'{namespace}.' if namespace else ''
        return [self.declare_parameter(f'{prefix}{name}', rest[0] if rest else None,
                                       rest[1] if len(rest) > 1 else None, ignore_override)
                for name, *rest in parameters]

    def undeclare_parameter(self, name: str) -> None:
        """Forget a parameter; raise ParameterImmutableException if it is read-only."""
        self._store.undeclare(name)

    def has_parameter(self, name: str) -> bool:
        """Return whether a parameter is declared."""
        return name in self._store

    def get_parameter(self, name: str) -> Parameter:
        """Return a declared parameter."""
        return self._store.get(name)

    def get_parameters(self, names: list[str]) -> list[Parameter]:
        """Return declared parameters."""
        return [self._store.get(name) for name in names]

    def get_parameter_type(self, name: str) -> int:
        """Return the number of a declared parameter's type, as rclpy does."""
        return self._store.type_of(name)

    def get_parameter_or(self, name: str, alternative_value: Parameter | None = None) -> Parameter:
        """Return a parameter, or the alternative if it is not declared or has no value."""
        if name in self._store and self._store.type_of(name):
            return self._store.get(name)
        return alternative_value or Parameter(name, Parameter.Type.NOT_SET)

    def get_parameters_by_prefix(self, prefix: str) -> dict[str, Parameter]:
        """Return the parameters below a prefix by the rest of their names."""
        start = f'{prefix}.' if prefix else ''
        return {name[len(start):]: self._store.get(name) for name in self._store.names()
                if name.startswith(start)}

    def list_parameters(self, prefixes: list[str], depth: int) -> Any:
        """Return ListParametersResult: names below prefixes, ``depth`` levels deep (0: all)."""
        names, found = self._store.below(prefixes, depth)
        return _ListResult(names=names, prefixes=found)

    def describe_parameter(self, name: str) -> Any:
        """Return a parameter's descriptor."""
        return self._store.describe(name)

    def describe_parameters(self, names: list[str]) -> list[Any]:
        """Return parameters' descriptors."""
        return [self._store.describe(name) for name in names]

    def set_parameters(self, parameter_list: list[Parameter]) -> list[Any]:
        """Set each parameter; return one SetParametersResult per parameter."""
        return [self._store.set_atomically([parameter]) for parameter in parameter_list]

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> Any:
        """Set all parameters or none."""
        return self._store.set_atomically(parameter_list)

    def add_on_set_parameters_callback(self, callback: OnSet) -> None:
        """Let ``callback`` refuse changes; the latest is asked first."""
        self._store.on_set.insert(0, callback)

    def remove_on_set_parameters_callback(self, callback: OnSet) -> None:
        """Stop asking ``callback``."""
        self._store.on_set.remove(callback)

    def add_post_set_parameters_callback(self, callback: PostSet) -> None:
        """Tell ``callback`` of every change that was made (not in Humble's rclpy)."""
        self._store.post_set.insert(0, callback)

    def remove_post_set_parameters_callback(self, callback: PostSet) -> None:
        """Stop telling ``callback``."""
        self._store.post_set.remove(callback)
