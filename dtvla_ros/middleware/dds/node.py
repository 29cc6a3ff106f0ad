"""A ROS 2 node over Cyclone DDS, with the names of ``rclpy.node.Node``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any

from .clock import Clock, Duration, ROSClock, Time
from .context import Context, NotInitializedException, get_default_context
from .endpoints import Client, Publisher, Service, Subscription
from .executor import GuardCondition
from .logging import Logger, LoggingSeverity
from .message import Message
from .names import Remapper, check_node_name, normalize_namespace
from .node_graph import NodeGraph
from .node_parameters import NodeParameters
from .parameter_file import Override, in_order
from .parameter_services import ParameterServices
from .parameter_store import ParameterStore
from .parameters import Parameter
from .qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, as_profile
from .timer import Timer
from .transport import close_entity
from .types import message_class

if TYPE_CHECKING:
    from .executor import SingleThreadedExecutor


_ROSOUT = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL,
                     lifespan=Duration(seconds=10))


class Node(NodeParameters, NodeGraph):
    """Publishers, subscriptions, timers, services and parameters under one name."""

    def __init__(self, node_name: str, *, namespace: str | None = None,
                 parameter_overrides: Sequence[Parameter] | None = None,
                 use_global_arguments: bool = True,
                 automatically_declare_parameters_from_overrides: bool = False) -> None:
        """Join the graph. Raise UserError for a bad name or a bad ``use_sim_time``."""
        self.context: Context = get_default_context()
        if not self.context.ok():
            raise NotInitializedException('call init() before creating nodes')
        self.executor: SingleThreadedExecutor | None = None
        self.version = 0
        arguments = self.context.arguments
        self._remapper = Remapper(arguments.remaps if use_global_arguments else [], node_name)
        self._name = check_node_name(self._remapper.node_name)
        self._namespace = normalize_namespace(self._remapper.namespace or namespace or '')
        self._logger = Logger(f'{self._namespace[1:].replace("/", ".")}.{self._name}'.lstrip('.'))
        self._publishers: list[Publisher] = []
        self._subscriptions: list[Subscription] = []
        self._services: list[Service] = []
        self._clients: list[Client] = []
        self._timers: list[Timer] = []
        self._guards: list[GuardCondition] = []
        self._clock = ROSClock()
        self._time_source: Subscription | None = None
        self._destroyed = False
        self.context.participant  # noqa: B018  joins the domain on first use
        self.context.announcer.add(self)
        overrides = [override for override in arguments.overrides if use_global_arguments
                     and override.applies_to(self._name, self._namespace)]
        overrides = in_order(overrides)
        overrides += [Override('', parameter.name, parameter.value, 'parameter_overrides')
                      for parameter in parameter_overrides or ()]
        self._rosout = self.create_publisher(message_class('rcl_interfaces/msg/Log'), '/rosout',
                                             _ROSOUT)
        self._logger.sink = self._publish_log
        self._store = ParameterStore(self._name, overrides)
        ParameterServices(self)
        self._follow_clock(bool(self.declare_parameter('use_sim_time', False).value))
        self.add_on_set_parameters_callback(self._on_set_use_sim_time)
        if automatically_declare_parameters_from_overrides:
            for override in list(self._store.overrides.values()):
                if override.name not in self._store:
                    self.declare_parameter(override.name, override.value)

    def _publish_log(self, level: LoggingSeverity, stamp_ns: int, text: str, code: CodeType,
                     line: int) -> None:
        if self.context.ok() and not self._destroyed:
            self._rosout.publish(self._rosout.msg_type(
                stamp=Time(nanoseconds=stamp_ns).to_msg(), level=int(level), msg=text, line=line,
                name=self._logger.name, file=code.co_filename, function=code.co_name))

    def get_name(self) -> str:
        """Return the node's name after remapping."""
        return self._name

    def get_namespace(self) -> str:
        """Return the node's namespace after remapping."""
        return self._namespace

    def get_fully_qualified_name(self) -> str:
        """Return namespace and name."""
        return f'{self._namespace.rstrip("/")}/{self._name}'

    def get_logger(self) -> Logger:
        """Return the node's logger."""
        return self._logger

    def get_clock(self) -> Clock:
        """Return the node's clock; it follows /clock while ``use_sim_time`` is set."""
        return self._clock

    def resolve_topic_name(self, topic: str) -> str:
        """Return the absolute topic name after remapping."""
        return self._remapper.resolve(topic, self._name, self._namespace, 'rostopic')

    def resolve_service_name(self, service: str) -> str:
        """Return the absolute service name after remapping."""
        return self._remapper.resolve(service, self._name, self._namespace, 'rosservice')

    def _changed(self) -> None:
        self.version += 1
        if not self._destroyed:
            self.context.announcer.publish()
        if self.executor is not None:
            self.executor.wake()

    def create_publisher(self, msg_type: type[Message], topic: str,
                         qos_profile: QoSProfile | int, *,
                         publisher_class: type[Publisher] = Publisher) -> Publisher:
        """Offer a topic."""
        publisher = publisher_class(self, msg_type, self.resolve_topic_name(topic),
                                    as_profile(qos_profile))
        self._publishers.append(publisher)
        self._changed()
        return publisher

    def create_subscription(self, msg_type: type[Message], topic: str,
                            callback: Callable[[Any], Any], qos_profile: QoSProfile | int, *,
                            raw: bool = False) -> Subscription:
        """Receive a topic; with ``raw`` the callback gets the serialised bytes."""
        subscription = Subscription(self, msg_type, self.resolve_topic_name(topic), callback,
                                    as_profile(qos_profile), raw)
        self._subscriptions.append(subscription)
        self._changed()
        return subscription

    def create_service(self, srv_type: Any, srv_name: str,
                       callback: Callable[[Any, Any], Any]) -> Service:
        """Answer a service."""
        service = Service(self, srv_type, self.resolve_service_name(srv_name), callback)
        self._services.append(service)
        self._changed()
        return service

    def create_client(self, srv_type: Any, srv_name: str) -> Client:
        """Call a service."""
        client = Client(self, srv_type, self.resolve_service_name(srv_name))
        self._clients.append(client)
        self._changed()
        return client

    def create_timer(self, timer_period_sec: float, callback: Callable[[], Any],
                     callback_group: None = None, clock: Clock | None = None,
                     autostart: bool = True) -> Timer:
        """Call back regularly, on the node's clock unless another is given."""
        timer = Timer(int(timer_period_sec * 1e9), callback, clock or self._clock, self._wake,
                      autostart)
        self._timers.append(timer)
        self._wake()
        return timer

    def create_guard_condition(self, callback: Callable[[], Any]) -> GuardCondition:
        """Let another thread run ``callback`` in the spinning one."""
        guard = GuardCondition(self.context.participant, callback)
        self._guards.append(guard)
        self.version += 1
        self._wake()
        return guard

    def _wake(self) -> None:
        if self.executor is not None:
            self.executor.wake()

    def timers(self) -> Iterable[Timer]:
        """Return the timers (for executors)."""
        return tuple(self._timers)

    def sources(self) -> Iterable[Any]:
        """Return everything with a ``condition`` and an ``execute`` (for executors)."""
        return (*self._guards, *self._subscriptions, *self._services, *self._clients)

    def readers(self) -> Iterable[Any]:
        """Return the DDS readers that belong to the node."""
        ends: tuple[Any, ...] = (*self._subscriptions, *self._services, *self._clients)
        yield from (end.source.reader for end in ends)

    def writers(self) -> Iterable[Any]:
        """Return the DDS writers that belong to the node."""
        ends: tuple[Any, ...] = (*self._services, *self._clients)
        yield from (publisher.writer for publisher in self._publishers)
        yield from (end.end.writer for end in ends)

    def _on_set_use_sim_time(self, parameters: list[Parameter]) -> Any:
        for parameter in parameters:
            if parameter.name == 'use_sim_time':
                self._follow_clock(bool(parameter.value))
        return message_class('rcl_interfaces/msg/SetParametersResult')(successful=True)

    def _follow_clock(self, simulated: bool) -> None:
        if simulated and self._time_source is None:
            self._clock.set_override(0)
            self._time_source = self.create_subscription(
                message_class('rosgraph_msgs/msg/Clock'), '/clock', self._on_clock,
                QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
        elif not simulated and self._time_source is not None:
            self.destroy_subscription(self._time_source)
            self._time_source = None
            self._clock.set_override(None)

    def _on_clock(self, message: Any) -> None:
        self._clock.set_override(message.clock.sec * 10**9 + message.clock.nanosec)

    def destroy_publisher(self, publisher: Publisher) -> bool:
        """Stop offering a topic."""
        return self._destroy(self._publishers, publisher, publisher.writer)

    def destroy_subscription(self, subscription: Subscription) -> bool:
        """Stop receiving a topic."""
        return self._destroy(self._subscriptions, subscription, subscription.condition,
                             subscription.source.reader)

    def destroy_service(self, service: Service) -> bool:
        """Stop answering a service."""
        return self._destroy(self._services, service, service.condition,
                             service.end.reader, service.end.writer)

    def destroy_client(self, client: Client) -> bool:
        """Stop calling a service."""
        return self._destroy(self._clients, client, client.condition, client.end.reader,
                             client.end.writer)

    def destroy_timer(self, timer: Timer) -> bool:
        """Stop a timer for good."""
        timer.cancel()
        if timer in self._timers:
            self._timers.remove(timer)
            return True
        return False

    def destroy_guard_condition(self, guard: GuardCondition) -> bool:
        """Remove a guard condition."""
        return self._destroy(self._guards, guard, guard.condition)

    def _destroy(self, owned: list[Any], item: Any, *entities: Any) -> bool:
        if item not in owned:
            return False
        owned.remove(item)
        self._changed()
        for entity in entities:
            close_entity(entity)
        return True

    def destroy_node(self) -> None:
        """Leave the graph; nothing happens the second time."""
        if self._destroyed:
            return
        self._destroyed = True
        if self.executor is not None:
            self.executor.remove_node(self)
        self.context.announcer.remove(self)
        for timer in list(self._timers):
            self.destroy_timer(timer)
        owners: tuple[tuple[Callable[[Any], bool], list[Any]], ...] = (
            (self.destroy_publisher, self._publishers),
            (self.destroy_subscription, self._subscriptions),
            (self.destroy_service, self._services), (self.destroy_client, self._clients),
            (self.destroy_guard_condition, self._guards))
        for destroy, owned in owners:
            for item in list(owned):
                destroy(item)
