"""Managed nodes, as ``rclpy.lifecycle`` and rcl_lifecycle have them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from .endpoints import Publisher
from .message import Message
from .node import Node
from .qos import QoSProfile
from .types import message_class, service_class

_State: Any = message_class('lifecycle_msgs/msg/State')
_Transition: Any = message_class('lifecycle_msgs/msg/Transition')
_Description: Any = message_class('lifecycle_msgs/msg/TransitionDescription')
_Event: Any = message_class('lifecycle_msgs/msg/TransitionEvent')


class TransitionCallbackReturn(Enum):
    """What a transition's callback says about it."""

    SUCCESS = _Transition.TRANSITION_CALLBACK_SUCCESS
    FAILURE = _Transition.TRANSITION_CALLBACK_FAILURE
    ERROR = _Transition.TRANSITION_CALLBACK_ERROR

    def to_label(self) -> str:
        """Return the label of the transition that follows."""
        return f'transition_{self.name.lower()}'


class LifecycleState(NamedTuple):
    """A state by name and number, as in lifecycle_msgs/msg/State."""

    label: str
    state_id: int


_STATES = {name.rpartition('STATE_')[2].lower(): getattr(_State, name) for name in (
    'PRIMARY_STATE_UNKNOWN', 'PRIMARY_STATE_UNCONFIGURED', 'PRIMARY_STATE_INACTIVE',
    'PRIMARY_STATE_ACTIVE', 'PRIMARY_STATE_FINALIZED', 'TRANSITION_STATE_CONFIGURING',
    'TRANSITION_STATE_CLEANINGUP', 'TRANSITION_STATE_SHUTTINGDOWN',
    'TRANSITION_STATE_ACTIVATING', 'TRANSITION_STATE_DEACTIVATING',
    'TRANSITION_STATE_ERRORPROCESSING')}
_STEPS = (
    ('configure', ('unconfigured',), 'configuring', ('inactive', 'unconfigured')),
    ('cleanup', ('inactive',), 'cleaningup', ('unconfigured', 'inactive')),
    ('activate', ('inactive',), 'activating', ('active', 'inactive')),
    ('deactivate', ('active',), 'deactivating', ('inactive', 'active')),
    ('shutdown', ('unconfigured', 'inactive', 'active'), 'shuttingdown',
     ('finalized', 'finalized')),
)
"""Label, states it starts in, transition state, states after success and failure."""


class Transition(NamedTuple):
    """An edge of the state machine."""

    id: int
    label: str
    start: str
    goal: str

    def to_msg(self) -> Any:
        """Return lifecycle_msgs/msg/TransitionDescription."""
        return _Description(
            transition=_Transition(id=self.id, label=self.label),
            start_state=_State(id=_STATES[self.start], label=self.start),
            goal_state=_State(id=_STATES[self.goal], label=self.goal))


def _graph() -> list[Transition]:
    """Return every edge in the order of rcl's default state machine."""
    edges = []

    def outcomes(label: str, state: str, goals: tuple[str, ...]) -> None:
        for outcome, goal in zip(TransitionCallbackReturn, goals):
            number = getattr(_Transition, f'TRANSITION_ON_{label.upper()}_{outcome.name}')
            edges.append(Transition(number, outcome.to_label(), state, goal))
    for label, starts, state, goals in _STEPS:
        for start in starts:
            prefix = f'{start.upper()}_' if len(starts) > 1 else ''
            number = getattr(_Transition, f'TRANSITION_{prefix}{label.upper()}')
            edges.append(Transition(number, label, start, state))
        outcomes(label, state, (*goals, 'errorprocessing'))
    outcomes('error', 'errorprocessing', ('unconfigured', 'finalized', 'finalized'))
    return edges


class StateMachine:
    """Where a managed node is, and which ways lead on."""

    def __init__(self, notify: Callable[[Transition], None]) -> None:
        """Start unconfigured; ``notify`` hears of every step."""
        self._state = 'unconfigured'
        self._notify = notify
        self.transition_graph = _graph()

    @property
    def current_state(self) -> tuple[int, str]:
        """Return number and label, in rclpy's order."""
        return _STATES[self._state], self._state

    @property
    def available_transitions(self) -> list[Transition]:
        """Return the edges that leave the present state."""
        return [edge for edge in self.transition_graph if edge.start == self._state]

    def find(self, wanted: int | str) -> Transition | None:
        """Return the edge with an id or label that leaves the present state."""
        for edge in self.available_transitions:
            if wanted in (edge.id, edge.label):
                return edge
        return None

    def follow(self, edge: Transition) -> None:
        """Go to an edge's goal."""
        self._state = edge.goal
        self._notify(edge)


class ManagedEntity:
    """Something that takes part in its node's transitions."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Get ready; ``state`` is the one before."""
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Undo ``on_configure``."""
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let everything go, for good."""
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to work."""
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop working."""
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Clean up after a callback that failed badly; SUCCESS leads to unconfigured."""
        return TransitionCallbackReturn.SUCCESS


class LifecyclePublisher(Publisher, ManagedEntity):
    """A publisher that is silent unless its node is active."""

    _enabled = False

    @property
    def is_activated(self) -> bool:
        """Return whether it publishes."""
        return self._enabled

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._enabled = True
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._enabled = False
        return TransitionCallbackReturn.SUCCESS

    def publish(self, message: Message) -> None:
        """Send a message, or nothing while inactive."""
        if self._enabled:
            super().publish(message)


class LifecycleNode(Node, ManagedEntity):
    """A node whose start and stop can be ordered, ``ros2 lifecycle set`` included.

    Override ``on_configure`` and its kin; the default ones ask the managed entities.
    """

    def __init__(self, node_name: str, *, enable_communication_interface: bool = True,
                 **options: Any) -> None:
        """Join the graph unconfigured; ``options`` are Node's."""
        super().__init__(node_name, **options)
        self._managed_entities: list[ManagedEntity] = []
        self._transition_event = self.create_publisher(_Event, '~/transition_event', 10)
        self._state_machine = StateMachine(self._publish_step)
        if enable_communication_interface:
            for kind, name, answer in (
                    ('ChangeState', 'change_state', self._on_change_state),
                    ('GetState', 'get_state', self._on_get_state),
                    ('GetAvailableStates', 'get_available_states', self._on_get_states),
                    ('GetAvailableTransitions', 'get_available_transitions',
                     self._on_get_transitions),
                    ('GetAvailableTransitions', 'get_transition_graph', self._on_get_graph)):
                self.create_service(service_class(f'lifecycle_msgs/srv/{kind}'), f'~/{name}',
                                    answer)

    def trigger_configure(self) -> TransitionCallbackReturn:
        """Go from unconfigured to inactive; ERROR also where that is not possible."""
        return self._change_state(_Transition.TRANSITION_CONFIGURE)

    def trigger_cleanup(self) -> TransitionCallbackReturn:
        """Go from inactive to unconfigured; ERROR also where that is not possible."""
        return self._change_state(_Transition.TRANSITION_CLEANUP)

    def trigger_activate(self) -> TransitionCallbackReturn:
        """Go from inactive to active; ERROR also where that is not possible."""
        return self._change_state(_Transition.TRANSITION_ACTIVATE)

    def trigger_deactivate(self) -> TransitionCallbackReturn:
        """Go from active to inactive; ERROR also where that is not possible."""
        return self._change_state(_Transition.TRANSITION_DEACTIVATE)

    def trigger_shutdown(self) -> TransitionCallbackReturn:
        """Go to finalized; raise RuntimeError when no way leads there, as rclpy does."""
        edge = self._state_machine.find('shutdown')
        if edge is None:
            raise RuntimeError(
                f'cannot shut down in state {self._state_machine.current_state[1]}')
        return self._change_state(edge.id)

    def add_managed_entity(self, entity: ManagedEntity) -> None:
        """Let something take part in the transitions."""
        if not isinstance(entity, ManagedEntity):
            raise TypeError(f'a ManagedEntity expected, got {type(entity).__name__}')
        if entity not in self._managed_entities:
            self._managed_entities.append(entity)

    def create_lifecycle_publisher(self, msg_type: type[Message], topic: str,
                                   qos_profile: QoSProfile | int) -> LifecyclePublisher:
        """Offer a topic that is silent unless the node is active."""
        publisher = self.create_publisher(msg_type, topic, qos_profile,
                                          publisher_class=LifecyclePublisher)
        assert isinstance(publisher, LifecyclePublisher)
        self.add_managed_entity(publisher)
        return publisher

    def destroy_lifecycle_publisher(self, publisher: LifecyclePublisher) -> bool:
        """Stop offering a topic."""
        if publisher in self._managed_entities:
            self._managed_entities.remove(publisher)
        return self.destroy_publisher(publisher)

    def _ask_entities(self, name: str, state: LifecycleState) -> TransitionCallbackReturn:
        for entity in self._managed_entities:
            result = getattr(entity, name)(state)
            if not isinstance(result, TransitionCallbackReturn):
                raise TypeError(f'{type(entity).__name__}.{name} must return '
                                f'TransitionCallbackReturn, not {result!r}')
            if result != TransitionCallbackReturn.SUCCESS:
                return result
        return TransitionCallbackReturn.SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities('on_configure', state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities('on_cleanup', state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities('on_shutdown', state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities('on_activate', state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities('on_deactivate', state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._ask_entities('on_error', state)

    def _call(self, previous: LifecycleState) -> TransitionCallbackReturn:
        """Run the callback of the present transition state."""
        name = {'configuring': 'on_configure', 'cleaningup': 'on_cleanup',
                'shuttingdown': 'on_shutdown', 'activating': 'on_activate',
                'deactivating': 'on_deactivate', 'errorprocessing': 'on_error'}[
                    self._state_machine.current_state[1]]
        try:
            result = getattr(self, name)(previous)
        except Exception:
            self.get_logger().error(f'{name} failed: {traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR
        if not isinstance(result, TransitionCallbackReturn):
            self.get_logger().error(
                f'{name} must return TransitionCallbackReturn, not {result!r}')
            return TransitionCallbackReturn.ERROR
        return result

    def _change_state(self, transition_id: int) -> TransitionCallbackReturn:
        machine = self._state_machine
        number, label = machine.current_state
        edge = machine.find(transition_id)
        # The outcomes have ids too; only a callback may choose among them.
        if edge is None or label not in ('unconfigured', 'inactive', 'active'):
            self.get_logger().error(
                f'Unable to start transition {transition_id} from current state {label}')
            return TransitionCallbackReturn.ERROR
        previous = LifecycleState(label=label, state_id=number)
        machine.follow(edge)
        result = self._finish(previous)
        if result == TransitionCallbackReturn.ERROR:
            self._finish(previous)
        return result

    def _finish(self, previous: LifecycleState) -> TransitionCallbackReturn:
        result = self._call(previous)
        edge = self._state_machine.find(result.to_label())
        assert edge is not None  # every transition state has all three outcomes
        self._state_machine.follow(edge)
        return result

    def _publish_step(self, edge: Transition) -> None:
        # rcl sends the two states only.
        message = edge.to_msg()
        self._transition_event.publish(
            _Event(start_state=message.start_state, goal_state=message.goal_state))

    def _on_change_state(self, request: Any, response: Any) -> Any:
        wanted = request.transition.label or request.transition.id
        edge = self._state_machine.find(wanted)
        if edge is None and isinstance(wanted, str):
            return response
        response.success = self._change_state(edge.id if edge else wanted) == (
            TransitionCallbackReturn.SUCCESS)
        return response

    def _on_get_state(self, request: Any, response: Any) -> Any:
        number, label = self._state_machine.current_state
        response.current_state = _State(id=number, label=label)
        return response

    def _on_get_states(self, request: Any, response: Any) -> Any:
        response.available_states = [_State(id=number, label=label)
                                     for label, number in _STATES.items()]
        return response

    def _on_get_transitions(self, request: Any, response: Any) -> Any:
        response.available_transitions = [
            edge.to_msg() for edge in self._state_machine.available_transitions]
        return response

    def _on_get_graph(self, request: Any, response: Any) -> Any:
        response.available_transitions = [
            edge.to_msg() for edge in self._state_machine.transition_graph]
        return response
