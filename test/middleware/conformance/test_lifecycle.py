"""Managed nodes, in process and over the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import (
    ChangeState,
    GetAvailableStates,
    GetAvailableTransitions,
    GetState,
    State,
    String,
    Transition,
    TransitionEvent,
)

Spin = Callable[..., bool]
OK, FAILURE, ERROR = (ros.TransitionCallbackReturn.SUCCESS, ros.TransitionCallbackReturn.FAILURE,
                      ros.TransitionCallbackReturn.ERROR)


class Managed(ros.LifecycleNode):
    """Answers each callback as it was told to; keeps what it was asked."""

    def __init__(self, name: str, **options: Any) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.answers: dict[str, Any] = {}
        super().__init__(name, **options)

    def _answer(self, name: str, state: ros.LifecycleState) -> Any:
        self.asked.append((name, state.label, state.state_id))
        answer = self.answers.get(name, OK)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def on_configure(self, state: ros.LifecycleState) -> Any:
        return self._answer('configure', state)

    def on_activate(self, state: ros.LifecycleState) -> Any:
        return self._answer('activate', state)

    def on_deactivate(self, state: ros.LifecycleState) -> Any:
        return self._answer('deactivate', state)

    def on_cleanup(self, state: ros.LifecycleState) -> Any:
        return self._answer('cleanup', state)

    def on_shutdown(self, state: ros.LifecycleState) -> Any:
        return self._answer('shutdown', state)

    def on_error(self, state: ros.LifecycleState) -> Any:
        return self._answer('error', state)


def _state(node: Any) -> str:
    return node._state_machine.current_state[1]


@pytest.fixture
def managed(make_node: Any) -> Managed:
    return make_node('managed', kind=Managed)


def test_the_whole_round(managed: Managed) -> None:
    for trigger, state in (('configure', 'inactive'), ('activate', 'active'),
                           ('deactivate', 'inactive'), ('cleanup', 'unconfigured'),
                           ('configure', 'inactive'), ('activate', 'active'),
                           ('shutdown', 'finalized')):
        assert getattr(managed, f'trigger_{trigger}')() == OK
        assert _state(managed) == state
    assert managed.asked == [
        ('configure', 'unconfigured', 1), ('activate', 'inactive', 2), ('deactivate', 'active', 3),
        ('cleanup', 'inactive', 2), ('configure', 'unconfigured', 1), ('activate', 'inactive', 2),
        ('shutdown', 'active', 3)]


@pytest.mark.parametrize('before', [[], ['configure'], ['configure', 'activate']])
def test_shutdown_from_everywhere_but_the_end(managed: Managed, before: list[str]) -> None:
    for trigger in before:
        getattr(managed, f'trigger_{trigger}')()
    assert managed.trigger_shutdown() == OK
    assert _state(managed) == 'finalized'
    with pytest.raises(RuntimeError):
        managed.trigger_shutdown()


@pytest.mark.parametrize(('before', 'impossible'), [
    ([], ['activate', 'deactivate', 'cleanup']), (['configure'], ['configure', 'deactivate']),
    (['configure', 'activate'], ['configure', 'activate', 'cleanup']),
    (['shutdown'], ['configure', 'activate', 'deactivate', 'cleanup'])])
def test_impossible_transitions_change_nothing(managed: Managed, before: list[str],
                                               impossible: list[str]) -> None:
    for trigger in before:
        assert getattr(managed, f'trigger_{trigger}')() == OK
    state, asked = _state(managed), len(managed.asked)
    for trigger in impossible:
        assert getattr(managed, f'trigger_{trigger}')() == ERROR
        assert _state(managed) == state
    assert len(managed.asked) == asked


@pytest.mark.parametrize(('trigger', 'before', 'after'), [
    ('configure', [], 'unconfigured'), ('activate', ['configure'], 'inactive'),
    ('deactivate', ['configure', 'activate'], 'active'), ('cleanup', ['configure'], 'inactive'),
    ('shutdown', [], 'finalized')])
def test_failure_goes_back(managed: Managed, trigger: str, before: list[str], after: str) -> None:
    for name in before:
        getattr(managed, f'trigger_{name}')()
    managed.answers[trigger] = FAILURE
    assert getattr(managed, f'trigger_{trigger}')() == FAILURE
    assert _state(managed) == after
    assert 'error' not in [name for name, *_ in managed.asked]


@pytest.mark.parametrize('trouble', [ERROR, ValueError('broken')])
@pytest.mark.parametrize(('recovery', 'after'), [
    (OK, 'unconfigured'), (FAILURE, 'finalized'), (ERROR, 'finalized'),
    (ValueError('worse'), 'finalized')])
def test_errors_are_processed(managed: Managed, trouble: Any, recovery: Any, after: str) -> None:
    managed.answers.update(activate=trouble, error=recovery)
    managed.trigger_configure()
    assert managed.trigger_activate() == ERROR
    assert _state(managed) == after
    assert managed.asked[-1] == ('error', 'inactive', 2)


def test_managed_publisher_speaks_only_while_active(make_node: Any, spin_until: Spin) -> None:
    node = make_node('plain_managed', kind=ros.LifecycleNode)
    heard: list[str] = []
    publisher = node.create_lifecycle_publisher(String, 'word', 10)
    node.create_subscription(String, 'word', lambda m: heard.append(m.data), 10)
    assert spin_until(publisher.get_subscription_count, node)

    def say(word: str) -> None:
        publisher.publish(String(data=word))
    say('unconfigured')
    assert node.trigger_configure() == OK
    say('inactive')
    assert node.trigger_activate() == OK
    assert publisher.is_activated
    say('active')
    assert spin_until(lambda: heard, node)
    assert node.trigger_deactivate() == OK
    say('inactive again')
    assert not spin_until(lambda: len(heard) > 1, node, timeout=0.3)
    assert heard == ['active']
    assert node.destroy_lifecycle_publisher(publisher)
    assert node.trigger_activate() == OK


def test_managed_entities_have_a_say(make_node: Any) -> None:
    class Camera(ros.ManagedEntity):
        def on_activate(self, state: ros.LifecycleState) -> Any:
            return FAILURE
    node = make_node('plain_managed', kind=ros.LifecycleNode)
    node.add_managed_entity(Camera())
    with pytest.raises(TypeError):
        node.add_managed_entity(object())
    assert node.trigger_configure() == OK
    assert node.trigger_activate() == FAILURE
    assert _state(node) == 'inactive'


def test_remote_change_and_state(managed: Managed, make_node: Any, ask: Any) -> None:
    other = make_node('other')

    def change(**transition: Any) -> bool:
        request = ChangeState.Request(transition=Transition(**transition))
        return ask(other, ChangeState, '/managed/change_state', request, managed).success

    def state() -> tuple[int, str]:
        answer = ask(other, GetState, '/managed/get_state', GetState.Request(), managed)
        return answer.current_state.id, answer.current_state.label
    assert state() == (State.PRIMARY_STATE_UNCONFIGURED, 'unconfigured')
    assert change(id=Transition.TRANSITION_CONFIGURE)
    assert change(label='activate')
    assert state() == (State.PRIMARY_STATE_ACTIVE, 'active')
    # The label decides when both are given; nothing that cannot be ends the node.
    assert not change(label='configure', id=Transition.TRANSITION_DEACTIVATE)
    assert not change(id=Transition.TRANSITION_CONFIGURE)
    assert not change(id=Transition.TRANSITION_ON_DEACTIVATE_SUCCESS)
    assert not change(id=255)
    assert not change(label='no such thing')
    assert state() == (State.PRIMARY_STATE_ACTIVE, 'active')
    managed.answers['deactivate'] = FAILURE
    assert not change(label='deactivate')
    assert change(label='shutdown')
    assert state() == (State.PRIMARY_STATE_FINALIZED, 'finalized')


def test_remote_lists(managed: Managed, make_node: Any, ask: Any) -> None:
    other = make_node('other')
    states = ask(other, GetAvailableStates, '/managed/get_available_states',
                 GetAvailableStates.Request(), managed).available_states
    assert [(state.id, state.label) for state in states] == [
        (0, 'unknown'), (1, 'unconfigured'), (2, 'inactive'), (3, 'active'), (4, 'finalized'),
        (10, 'configuring'), (11, 'cleaningup'), (12, 'shuttingdown'), (13, 'activating'),
        (14, 'deactivating'), (15, 'errorprocessing')]

    def edges(name: str) -> list[tuple[int, str, str, str]]:
        found = ask(other, GetAvailableTransitions, f'/managed/{name}',
                    GetAvailableTransitions.Request(), managed).available_transitions
        return [(edge.transition.id, edge.transition.label, edge.start_state.label,
                 edge.goal_state.label) for edge in found]
    managed.trigger_configure()
    assert edges('get_available_transitions') == [
        (2, 'cleanup', 'inactive', 'cleaningup'), (3, 'activate', 'inactive', 'activating'),
        (6, 'shutdown', 'inactive', 'shuttingdown')]
    graph = edges('get_transition_graph')
    assert [number for number, *_ in graph] == [
        1, 10, 11, 12, 2, 20, 21, 22, 3, 30, 31, 32, 4, 40, 41, 42, 5, 6, 7, 50, 51, 52, 60, 61,
        62]
    assert (41, 'transition_failure', 'deactivating', 'active') in graph
    assert (60, 'transition_success', 'errorprocessing', 'unconfigured') in graph


def test_transition_events(managed: Managed, spin_until: Spin) -> None:
    heard: list[tuple[str, str]] = []
    subscription = managed.create_subscription(
        TransitionEvent, '~/transition_event',
        lambda m: heard.append((m.start_state.label, m.goal_state.label)), 10)
    assert spin_until(subscription.get_publisher_count, managed)
    managed.answers['activate'] = ERROR
    managed.trigger_configure()
    managed.trigger_activate()
    assert spin_until(lambda: len(heard) == 5, managed)
    assert heard == [('unconfigured', 'configuring'), ('configuring', 'inactive'),
                     ('inactive', 'activating'), ('activating', 'errorprocessing'),
                     ('errorprocessing', 'unconfigured')]
