"""The services behind ``ros2 param``, and /parameter_events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .parameters import Parameter, SetParametersResult
from .qos import QoSProfile
from .types import message_class, service_class

if TYPE_CHECKING:
    from .node import Node

_Event = message_class('rcl_interfaces/msg/ParameterEvent')
_Value = message_class('rcl_interfaces/msg/ParameterValue')
_Descriptor = message_class('rcl_interfaces/msg/ParameterDescriptor')
_ListResult = message_class('rcl_interfaces/msg/ListParametersResult')


class ParameterServices:
    """Offers a node's parameters to the graph."""

    def __init__(self, node: Node) -> None:
        """Create the six services and the event publisher."""
        self._node = node
        self._store = node.parameters
        self._events = node.create_publisher(_Event, '/parameter_events', QoSProfile(depth=1000))
        self._store.on_changed = self._publish
        for name, handler in (('GetParameters', self._get),
                              ('GetParameterTypes', self._get_types),
                              ('SetParameters', self._set),
                              ('SetParametersAtomically', self._set_atomically),
                              ('ListParameters', self._list),
                              ('DescribeParameters', self._describe)):
            snake = ''.join(f'_{c.lower()}' if c.isupper() else c for c in name).lstrip('_')
            node.create_service(service_class(f'rcl_interfaces/srv/{name}'), f'~/{snake}', handler)

    def _publish(self, new: list[Parameter], changed: list[Parameter]) -> None:
        self._events.publish(_Event(
            stamp=self._node.get_clock().now().to_msg(),
            node=self._node.get_fully_qualified_name(),
            new_parameters=[parameter.to_parameter_msg() for parameter in new],
            changed_parameters=[parameter.to_parameter_msg() for parameter in changed]))

    def _get(self, request: Any, response: Any) -> Any:
        response.values = [self._store.get(name).get_parameter_value()
                           if name in self._store else _Value() for name in request.names]
        return response

    def _get_types(self, request: Any, response: Any) -> Any:
        response.types = np.array([int(self._store.get(name).type_) if name in self._store else 0
                                   for name in request.names], np.uint8)
        return response

    def _read(self, messages: list[Any]) -> list[Parameter] | Any:
        try:
            return [Parameter.from_parameter_msg(message) for message in messages]
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))

    def _set(self, request: Any, response: Any) -> Any:
        results = []
        for message in request.parameters:
            parameters = self._read([message])
            results.append(self._store.set_atomically(parameters)
                           if isinstance(parameters, list) else parameters)
        response.results = results
        return response

    def _set_atomically(self, request: Any, response: Any) -> Any:
        parameters = self._read(request.parameters)
        response.result = (self._store.set_atomically(parameters)
                           if isinstance(parameters, list) else parameters)
        return response

    def _list(self, request: Any, response: Any) -> Any:
        names, prefixes = [], set()
        for name in self._store.names():
            if _wanted(name, request.prefixes, request.depth):
                names.append(name)
                if '.' in name:
                    prefixes.add(name.rpartition('.')[0])
        response.result = _ListResult(names=names, prefixes=sorted(prefixes))
        return response

    def _describe(self, request: Any, response: Any) -> Any:
        response.descriptors = [self._store.describe(name) if name in self._store
                                else _Descriptor(name=name) for name in request.names]
        return response


def _wanted(name: str, prefixes: list[str], depth: int) -> bool:
    if not prefixes:
        return depth == 0 or name.count('.') < depth
    for prefix in prefixes:
        if name == prefix or name.startswith(f'{prefix}.'):
            return depth == 0 or name[len(prefix) + 1:].count('.') < depth
    return False
