"""The state of the policy node, rule by rule, on a clock of the test's own."""

import pytest

from dtvla_ros.nodes.decision_monitor import (
    COMPLETE,
    INPUT_LOST,
    WAITING,
    DecisionMonitor,
    Readings,
)

PERIOD = 0.025
GOOD, BUSY = Readings(has_chunk=True), Readings(busy_since=0.0)
TROUBLE = Readings(trouble='ee_pose missing or late')


@pytest.fixture
def monitor():
    made = DecisionMonitor(PERIOD)
    made.configure(deadline=1.0, gate_timeout=0.15)
    return made


def judged(monitor, readings, now=0.0):
    """Return the state's name and reason after a tick."""
    state, reason = status = monitor.tick(now, readings)
    assert status is monitor.status
    return state.name, reason


def over_time(monitor, readings, seconds, start=0.0):
    """Return (time, state, reason) of every tick until ``seconds`` are over."""
    times = [start + k * PERIOD for k in range(round(seconds / PERIOD) + 1)]
    return [(now, *judged(monitor, readings, now)) for now in times]


def test_a_task_from_its_instruction_to_its_chunk_and_the_estop_that_wins(monitor):
    assert judged(monitor, Readings()) == ('IDLE', 'no instruction') and not monitor.ready
    monitor.begin_task()
    assert monitor.ready
    assert judged(monitor, Readings(missing='image')) == ('THINKING', 'waiting for image')
    assert judged(monitor, BUSY) == judged(monitor, Readings()) == ('THINKING', '')
    assert judged(monitor, GOOD) == ('ACTING', '')
    monitor.stopped, monitor.estop = 'failed', True
    assert judged(monitor, GOOD) == ('FAULT', 'e-stop') and not monitor.ready
    assert judged(monitor, Readings(next(iter(WAITING)))) == ('FAULT', 'e-stop')
    monitor.estop = False
    assert judged(monitor, GOOD) == ('STOPPED', 'failed')


def test_a_question_holds_for_as_long_as_it_stands(monitor):
    monitor.begin_task()
    monitor.question = 'Which bin?'
    track = over_time(monitor, TROUBLE, INPUT_LOST + 1.0)
    assert {(s, r) for _, s, r in track} == {('HOLDING', 'asks: Which bin?')}
    monitor.question = ''
    assert judged(monitor, TROUBLE, 7.0) == ('HOLDING', TROUBLE.trouble)
    monitor.question, monitor.estop = 'Which bin?', True
    assert judged(monitor, GOOD, 7.1) == ('FAULT', 'e-stop')


def test_a_task_that_is_done_waits_for_the_next_one_whatever_becomes_of_inputs_and_gate(monitor):
    monitor.begin_task()
    monitor.on_gate(0.0)
    monitor.done = True
    assert not monitor.ready
    track = over_time(monitor, TROUBLE, INPUT_LOST + 1.0)
    assert {(s, r) for _, s, r in track} == {('DONE', COMPLETE)}
    monitor.estop = True
    assert judged(monitor, GOOD) == ('FAULT', 'e-stop')
    monitor.estop = False
    monitor.begin_task()
    assert monitor.ready and judged(monitor, GOOD, 0.1) == ('ACTING', '')


def test_inputs_in_trouble_hold_and_after_a_while_without_a_break_stop(monitor):
    monitor.begin_task()
    for start in (0.0, 4.0, 8.0):
        over_time(monitor, TROUBLE, 3.0, start)
        assert judged(monitor, GOOD, start + 3.5)[0] == 'ACTING'
    track = over_time(monitor, TROUBLE, INPUT_LOST + 0.5, 20.0)
    assert {s for t, s, _ in track if t <= 20.0 + INPUT_LOST} == {'HOLDING'}
    assert {(s, r) for t, s, r in track if t > 20.0 + INPUT_LOST + PERIOD} == {
        ('STOPPED', 'ee_pose missing or late for 5 s')}


def test_a_gate_that_was_heard_must_not_fall_silent_but_an_idle_node_stops_for_nothing(monitor):
    assert {s for _, s, _ in over_time(monitor, GOOD, 1.0)} == {'IDLE'}
    monitor.on_gate(0.0)
    assert {s for _, s, _ in over_time(monitor, TROUBLE, INPUT_LOST + 1.0)} == {'IDLE'}
    monitor.begin_task()
    monitor.on_gate(10.0)
    track = over_time(monitor, GOOD, 0.3, 10.0)
    assert {s for t, s, _ in track if t < 10.15} == {'ACTING'}
    assert track[-1][1:] == ('STOPPED', 'command_gate is silent')


def test_only_the_heartbeat_judges(graph):
    """A diagnostics query, or any other reader, changes nothing."""
    from dtvla_ros.nodes.vla_node import VlaNode

    node = graph.join(VlaNode)
    node._monitor.begin_task()
    node._monitor.on_gate(0.0)  # silent for ever since: a tick of an active node would stop it
    node._is_active, before = True, node._monitor.status
    node._diagnose()
    assert node._monitor.status is before and not node._monitor.stopped
