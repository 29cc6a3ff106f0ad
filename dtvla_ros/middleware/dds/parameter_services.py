"""The services behind ``ros2 param``, and /parameter_events."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .parameter_store import SetParametersResult
from .parameters import (
    Parameter,
    ParameterNotDeclaredException,
    ParameterUninitializedException,
)
from .qos import QoSProfile
from .types import message_class, service_class

if TYPE_CHECKING:
    from .node import Node

_Event = message_class('rcl_interfaces/msg/ParameterEvent')


class ParameterServices:
    """Offers a node's parameters to the graph."""

    def __init__(self, node: Node) -> None:
        """Create the six services and the event publisher."""
        self._node = node
        self._store = node._store
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

    # As in rclpy: one unknown name empties the answer.
    def _get(self, request: Any, response: Any) -> Any:
        with suppress(ParameterNotDeclaredException, ParameterUninitializedException):
            response.values = [self._store.get(name).get_parameter_value()
                               for name in request.names]
        return response

    def _get_types(self, request: Any, response: Any) -> Any:
        with suppress(ParameterNotDeclaredException):
            response.types = [self._store.type_of(name) for name in request.names]
        return response

    def _set_all(self, messages: list[Any]) -> Any:
        try:
            return self._store.set_atomically(
                [Parameter.from_parameter_msg(message) for message in messages])
        except (ValueError, ParameterNotDeclaredException) as error:
            return SetParametersResult(successful=False, reason=str(error))

    def _set(self, request: Any, response: Any) -> Any:
        response.results = [self._set_all([message]) for message in request.parameters]
        return response

    def _set_atomically(self, request: Any, response: Any) -> Any:
        response.result = self._set_all(request.parameters)
        return response

    def _list(self, request: Any, response: Any) -> Any:
        response.result = self._node.list_parameters(request.prefixes, request.depth)
        return response

    def _describe(self, request: Any, response: Any) -> Any:
        with suppress(ParameterNotDeclaredException):
            response.descriptors = [self._store.describe(name) for name in request.names]
        return response
