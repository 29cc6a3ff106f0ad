"""``dtvla tell``, ``think``, ``stop``, ``tasks``, ``watch`` against the real policy and gate."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from std_msgs.msg import String
from support.beside import fresh_domain
from support.graph import NANO, Graph

from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.ros import talk

LEMON = 'put the lemon in the blue bin'


@pytest.fixture(scope='module')
def nodes(tmp_path_factory: Any) -> Iterator[Graph]:
    """Policy and gate without a robot: what is said to them does not need one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', fresh_domain())
        graph = Graph(tmp_path_factory.mktemp('talk'))
        graph.start('vla_node', policy=NANO)
        graph.start('command_gate')
        yield graph
        graph.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer: nodes start meanwhile, and a busy machine discovers late."""
    monkeypatch.setattr(talk, 'DISCOVERY', 60.0)
    monkeypatch.setattr(talk, 'OTHER', 30.0)
    monkeypatch.setattr(talk, 'SETTLING', 0.0)  # only what has to be heard is waited for
    monkeypatch.setattr(talk, 'ANSWER', 30.0)


def test_tasks_are_listed_and_a_task_is_taken_however_it_is_written(
        nodes: Graph, patient: None, dtvla: Any) -> None:
    code, out, err = dtvla('tasks')
    assert (code, err) == (0, '')
    assert out.splitlines() == ['policy:', *(f'  {t}' for t in PolicyManifest.read(NANO).tasks)]
    code, out, err = dtvla('tell', 'Put', 'the', 'lemon', 'in the blue bin.')
    assert (code, err) == (0, '')
    taken, meaning, policy, gate = out.splitlines()
    assert (taken, meaning) == (
        'taken: Put the lemon in the blue bin.', f'understood as: {LEMON}')
    assert policy.split()[1] in ('THINKING', 'HOLDING')
    assert gate == 'gate STOP not started; then: dtvla topic call /start'


@pytest.mark.parametrize(('words', 'nearest'), [
    ('stack green on red', 'stack the red cube on the green cube'),
    ("please don't drop the lemon into the blue box", LEMON), ('', 'it is empty')])
def test_what_the_policy_refuses_ends_with_the_reason(
        nodes: Graph, patient: None, dtvla: Any, words: str, nearest: str) -> None:
    code, out, err = dtvla('tell', words)
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('error: refused: ') and nearest in err and 'dtvla tasks' in err


def test_a_thought_is_corrected_and_nonsense_refused_with_what_could_be_said(
        nodes: Graph, patient: None, dtvla: Any) -> None:
    for _ in range(20):  # until it is active
        assert dtvla('tell', LEMON)[0] == 0
        answer = dtvla('think', 'the', 'other', 'bin')
        if 'no task is being done' not in answer[2]:
            break
    assert answer == (0, 'taken: the other bin, until dtvla think --clear\n', '')
    code, out, err = dtvla('think', 'asdf')
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('error: refused: "asdf": thought: "asdf" is no thing of this policy')
    assert 'can, lemon' in err and '"then PHASE"' in err
    assert dtvla('think', '--clear') == (0, 'cleared: it thinks for itself\n', '')
    code, _, err = dtvla('think')
    assert code == 2 and err == 'error: say the words that it should think, or --clear\n'


def test_watch_tells_the_task_and_the_stop_that_dtvla_stop_makes_and_clears(
        nodes: Graph, patient: None, dtvla: Any) -> None:
    assert dtvla('tell', LEMON)[0] == 0
    watch = subprocess.Popen([sys.executable, '-m', 'dtvla_ros.cli', 'watch'], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watch.stdout is not None

    def shows(*lines: str) -> None:
        """Read until all of these lines were there."""
        missing = set(lines)
        while missing:
            missing.discard(next(watch.stdout).rstrip())  # type: ignore[call-overload]
    try:
        shows(f'told: {LEMON}', 'gate: STOP not started')
        code, out, err = dtvla('stop')
        assert (code, err) == (0, '')
        assert out.startswith('stopped: gate FAULT e-stop, ') and 'dtvla stop --clear' in out
        shows('policy: FAULT e-stop', 'gate: FAULT e-stop')
        code, out, _ = dtvla('tell', LEMON)
        assert code == 0 and out.endswith('gate FAULT e-stop; then: dtvla stop --clear\n')
        code, out, err = dtvla('stop', '--clear')
        assert (code, err) == (0, '')
        assert out.startswith('cleared: gate STOP: cleared: e-stop\n')
        shows('gate: STOP cleared: e-stop')
        watch.send_signal(signal.SIGINT)
        _, errors = watch.communicate(timeout=30)
    finally:
        watch.kill()
    assert (watch.returncode, errors) == (0, '')


@pytest.mark.parametrize(('words', 'topic'), [
    (('tell', LEMON), '/vla/state'), (('think', '--clear'), '/vla/state'),
    (('stop',), '/gate_state'), (('stop', '--clear'), '/gate_state'), (('tasks',), '/vla/tasks')])
def test_where_nobody_runs_the_settings_of_discovery_are_named(
        monkeypatch: pytest.MonkeyPatch, dtvla: Any, words: Any, topic: str) -> None:
    monkeypatch.setattr(talk, 'DISCOVERY', 0.2)
    monkeypatch.setenv('ROS_DOMAIN_ID', '0')  # drawn by no test, so no killed node is left there
    code, out, err = dtvla(*words)
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith(f'error: nothing is heard on {topic}; nodes found with ROS_DOMAIN_ID=')
    assert 'ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST: none' in err


def test_a_policy_that_names_no_tasks_yet_says_what_it_is_about(
        graph: Graph, monkeypatch: pytest.MonkeyPatch, dtvla: Any) -> None:
    graph.start('vla_node', policy=NANO, autostart='false')
    monkeypatch.setattr(talk, 'DISCOVERY', 60.0)
    assert dtvla('tell', LEMON)[1].startswith(
        f'taken: {LEMON}\npolicy UNCONFIGURED not configured\n')
    monkeypatch.setattr(talk, 'DISCOVERY', 5.0)
    code, _, err = dtvla('tasks')
    assert code == 2
    assert err == ('error: nothing is heard on /vla/tasks; the policy is UNCONFIGURED not '
                   'configured\n')


def test_the_screen_keeps_the_thought_in_place_and_what_happened_above_it() -> None:
    out = io.StringIO()
    screen = talk.Screen(Console(file=out, force_terminal=True, width=60, highlight=False))
    policy = {'state': 'ACTING', 'task': '1', 'instruction': LEMON, 'refusals': '0',
              'understood': 'put it in', 'rejected': '', 'rejected_instruction': ''}
    refused = policy | {'refusals': '1', 'rejected': 'no', 'rejected_instruction': 'fly'}
    runs, late = {'state': 'RUN'}, {'state': 'STOP', 'reason': 'heartbeat is 0.30 s old'}
    with screen.live:
        for status, gate in (
                (policy, runs), (policy, runs), (refused, late),
                (refused, late | {'reason': 'heartbeat is 0.35 s old'}), (policy, runs),
                (policy | {'state': 'DONE'}, runs), (policy | {'state': 'DONE'}, runs)):
            screen.reasoning(String(data='now reach.'))
            screen.show(status, gate)
    shown = out.getvalue()
    for text in (f'\x1b[1mtold: {LEMON}', f'\x1b[1;32mdone: {LEMON}',
                 '\x1b[1munderstood as: put it in',
                 '\x1b[31mrefused: fly: no', '\x1b[32mgate: goes on',
                 '\x1b[1;31mgate: STOP heartbeat'):
        assert shown.count(text) == 1, text
    assert shown.count('\x1b[2K') >= 2 * shown.count('now reach.') > 0, 'drawn over'


def test_a_thought_is_forgotten_when_a_task_begins_or_is_stopped() -> None:
    out = io.StringIO()
    screen = talk.Screen(Console(file=out, force_terminal=True, width=60, highlight=False))
    policy = {'state': 'ACTING', 'task': '1', 'instruction': LEMON, 'refusals': '0'}

    def shows_its_thought(policy: dict[str, str], gate: dict[str, str]) -> bool:
        screen.show(policy, gate)  # a line above it draws the former thought once more
        out.truncate(out.seek(0))
        screen.show(policy, gate)
        return 'now reach' in out.getvalue()
    with screen.live:
        for changes, gate, shown in (
                ({}, 'RUN', False), ({}, 'RUN', True), ({'task': '2'}, 'RUN', False),
                ({}, 'STOP', False), ({'state': 'UNCONFIGURED'}, 'STOP', False)):
            policy |= changes
            assert shows_its_thought(policy, {'state': gate}) is shown, (changes, gate)
            if gate == 'RUN':
                screen.reasoning(String(data='now reach'))


def test_a_thought_that_differs_from_the_last_is_shown_while_it_is_written() -> None:
    out = io.StringIO()
    screen = talk.Screen(Console(file=out, force_terminal=True, width=60, highlight=False))

    def shown() -> str:
        out.truncate(out.seek(0))
        screen.show({'state': 'ACTING'}, {'state': 'RUN'})
        return out.getvalue()
    last, following = 'Nothing in hand. Grasping the can.', 'Holding the can. Lifting it.'
    with screen.live:
        screen.reasoning(String(data=last))
        screen.stream(String(data='Nothing in hand.'))  # late, or of the next one
        assert last in shown()
        screen.stream(String(data='Holding the can.'))
        assert 'Holding the can.' in shown() and last not in shown()
        screen.reasoning(String(data=following))
        assert following in shown()
