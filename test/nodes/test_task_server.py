"""The action run_task over ROS: goal, feedback, result, cancel, preemption, and who goes away."""

from __future__ import annotations

import pytest
from action_msgs.msg import GoalStatus
from std_msgs.msg import String
from support.tasked import TASKS, Client, Tasked

from dtvla_ros.nodes.task_run import Outcome
from dtvla_ros.ros import interfaces, qos

CAN, LEMON = TASKS
DONE = 'the policy says that the task is complete'
SUCCEEDED, CANCELED, ABORTED = (GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED,
                                GoalStatus.STATUS_ABORTED)
needs_interfaces = pytest.mark.skipif(
    interfaces.action_type('RunTask') is None, reason=interfaces.NOT_INSTALLED)


@pytest.fixture
def tasked(graph):
    return Tasked(graph)


@needs_interfaces
def test_a_task_from_its_goal_to_every_way_it_can_end(tasked, graph):
    tasked.start()
    client = Client(graph)

    # done, with feedback
    goal = client.send(f' {LEMON} ')
    graph.spin(lambda: tasked.values['instruction'] == LEMON, 60, 'the instruction')
    graph.spin(lambda: any(f.state == 'policy ACTING' for f in client.feedback), 20, 'feedback')
    tasked.think('The lemon is on the left.')
    graph.spin(lambda: client.feedback[-1].thought == 'The lemon is on the left.', 20, 'a thought')
    tasked.policy = 'DONE', DONE
    assert client.result(goal) == (SUCCEEDED, Outcome.DONE, DONE)
    assert tasked.orders == [], 'nothing but the instruction is told'

    # refused while another task is being done, which goes on
    first = client.send(CAN)
    graph.spin(lambda: tasked.values['instruction'] == CAN, 20, 'the task')
    assert client.result(client.send('dance')) == (
        ABORTED, Outcome.REFUSED, f'it is none of its tasks; it takes: {CAN}, {LEMON}')
    assert tasked.values['instruction'] == CAN and tasked.orders == []

    # another goal takes its place
    second = client.send(LEMON)
    assert client.result(first) == (
        ABORTED, Outcome.PREEMPTED, f'another goal took its place: "{LEMON}"')
    assert tasked.orders == [], 'the arm is not stopped in between'

    # somebody else tells the policy
    told = graph.node.create_publisher(String, '/instruction', qos.LATEST)
    graph.spin(lambda: told.get_subscription_count() > 1, 20, 'a listener')
    told.publish(String(data=CAN))
    assert client.result(second) == (
        ABORTED, Outcome.PREEMPTED, f'the policy was told "{CAN}"')

    # canceled in motion: the gate stops the arm
    goal = client.send(LEMON)
    graph.spin(lambda: tasked.values['instruction'] == LEMON, 20, 'the task')
    client.cancel(goal)
    assert client.result(goal) == (CANCELED, Outcome.CANCELED, 'canceled')
    assert tasked.orders == ['stop'] and tasked.gate[0] == 'STOP'

    # the time is over
    goal = client.send(CAN, seconds=2)
    assert client.result(goal) == (ABORTED, Outcome.TIMED_OUT, 'not done within 2 s')
    assert tasked.orders == ['stop', 'stop']

    # a fault of the gate
    goal = client.send(LEMON)
    graph.spin(lambda: tasked.values['instruction'] == LEMON, 20, 'the task')
    tasked.gate = 'FAULT', 'e-stop'
    assert client.result(goal) == (
        ABORTED, Outcome.STOPPED, 'gate FAULT: e-stop; dtvla stop --clear')

    # the policy is gone
    tasked.gate = 'HOLD', 'policy is idle'
    goal = client.send(CAN)
    graph.spin(lambda: tasked.values['instruction'] == CAN, 20, 'the task')
    tasked.policy = None
    assert client.result(goal) == (
        ABORTED, Outcome.STOPPED, 'nothing is heard of the policy')
    assert tasked.orders[-1] == 'stop'


@needs_interfaces
@pytest.mark.parametrize('how', ['client', 'server'])
def test_the_arm_is_stopped_when_client_or_server_leave(tasked, graph, how):
    tasked.start()
    client = Client(graph)
    client.send(LEMON)
    graph.spin(lambda: any(f.state == 'policy ACTING' for f in client.feedback), 60, 'the task')
    if how == 'client':
        client.leave()
    else:
        graph.kill('task_server', 2)
    graph.spin(lambda: tasked.orders == ['stop'], 60, 'the stop')


@needs_interfaces
@pytest.mark.parametrize('start_gate', [False, True])
def test_a_gate_is_started_by_a_goal_only_where_that_is_set(tasked, graph, start_gate):
    tasked.auto_start, tasked.gate = False, ('STOP', 'not started')
    tasked.start(start_gate=str(start_gate).lower())
    client = Client(graph)
    client.send(LEMON)
    if start_gate:
        graph.spin(lambda: tasked.gate[0] == 'RUN', 60, 'a start')
    else:
        said = 'gate STOP: not started; dtvla topic call /start'
        graph.spin(lambda: client.feedback and client.feedback[-1].state == said
                   and tasked.values['instruction'], 60, said)
    assert tasked.orders == ['start'] * start_gate


def test_without_the_interfaces_it_is_said_once_and_the_node_lives(graph):
    graph.listen()
    graph.start('task_server', code="import sys; sys.modules['dtvla_interfaces'] = None")
    graph.spin(lambda: 'run_task is not offered' in graph.log('task_server'), 60, 'the warning')
    assert graph.log('task_server').count(interfaces.NOT_INSTALLED) == 1
    assert graph.interrupt('task_server') == 0
