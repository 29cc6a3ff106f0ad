"""``dtvla topic`` as a user types it, against a second process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from dtvla_ros.ros.run import STEADY


def _topic(*words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-m', 'dtvla_ros.cli', 'topic', *words], text=True,
                          capture_output=True, timeout=timeout)


def test_list_shows_names_and_types(start_peer: Any) -> None:
    assert start_peer().stdout.readline() == 'ready\n'
    lines: list[str] = []
    for seconds in ('1', '5', '25'):  # a busy machine needs more
        done = _topic('list', '-t', '--spin-time', seconds)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        if '/echoed [sensor_msgs/msg/Image]' in lines:
            break
    assert '/echoed [sensor_msgs/msg/Image]' in lines
    assert '/word [std_msgs/msg/String]' in lines
    assert lines == sorted(lines)


def test_echo_finds_type_and_qos(start_peer: Any) -> None:
    assert start_peer().stdout.readline() == 'ready\n'
    assert _topic('echo', 'word', '--once').stdout == 'data: latched before you came\n---\n'
    done = _topic('echo', '/word', '--once', '--field', 'data')
    assert done.stdout == 'latched before you came\n---\n'
    wrong = _topic('echo', '/word', '--once', '--field', 'date')
    assert (wrong.returncode, wrong.stdout) == (2, '')
    assert wrong.stderr == "error: --field date: String has no field 'date'\n"


def test_pub_once_is_heard(make_node: Any, spin_until: Any) -> None:
    node = make_node()
    got: list[Any] = []
    node.create_subscription(JointState, 'joints', got.append, 5)
    command = subprocess.Popen([
        sys.executable, '-m', 'dtvla_ros.cli', 'topic', 'pub', '/joints',
        'sensor_msgs/msg/JointState',
        '{header: {frame_id: base}, name: [a, b], position: [1, 2.5]}', '--once'])
    assert spin_until(lambda: got, timeout=60.0)
    assert command.wait(timeout=60) == 0
    assert (got[0].header.frame_id, got[0].name, list(got[0].position)) == (
        'base', ['a', 'b'], [1.0, 2.5])
    assert len(got) == 1


@pytest.mark.parametrize('asked', ['true', 'false'])
def test_call_prints_the_answer(start_peer: Any, asked: str) -> None:
    assert start_peer().stdout.readline() == 'ready\n'
    done = _topic('call', 'invert', f'{{data: {asked}}}', '--timeout', '50')
    success = 'false' if asked == 'true' else 'true'
    assert done.stdout == f'success: {success}\nmessage: inverted\n', done.stderr
    assert done.returncode == (0 if success == 'true' else 1)


def test_call_of_nothing_is_one_line(start_peer: Any) -> None:
    done = _topic('call', '/nothing', '--timeout', '0.5')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('error: nobody offers /nothing')
    assert done.stderr.count('\n') == 1


def test_hz_measures(make_node: Any, spin_until: Any) -> None:
    node = make_node()
    publisher = node.create_publisher(String, 'beat', 5)
    node.create_timer(0.05, lambda: publisher.publish(String(data='x')),
                      clock=STEADY)
    command = subprocess.Popen([sys.executable, '-m', 'dtvla_ros.cli', 'topic', 'hz', 'beat'],
                               stdout=subprocess.PIPE, text=True)
    assert spin_until(publisher.get_subscription_count, timeout=60.0)
    assert not spin_until(lambda: False, timeout=2.5)
    command.terminate()
    out, _ = command.communicate(timeout=60)
    rates = [float(line.split()[-1]) for line in out.splitlines() if 'average rate' in line]
    # A busy machine skips ticks; it never adds any.
    assert 12.0 < rates[-1] < 22.0


@pytest.mark.parametrize(('words', 'reason'), [
    (('pub', '/x', 'std_msgs/msg/Strin'), 'std_msgs/msg/Strin'),
    (('pub', '/x', 'String'), 'String'),
    (('pub', '/x', 'std_msgs/msg/String', '{data: 3}'), 'data: string expected'),
    (('pub', '/x', 'std_msgs/msg/String', '{date: x}'), "no field 'date'"),
    (('pub', '/x', 'std_msgs/msg/String', '{data: ['), 'std_msgs/msg/String'),
    (('echo', '/x', 'no/Type'), 'no/Type'), (('echo', 'bad name'), 'bad name')])
def test_bad_input_is_one_line(words: tuple[str, ...], reason: str) -> None:
    done = _topic(*words)
    assert done.returncode == 2
    assert done.stdout == ''
    assert done.stderr.startswith('error: ')
    assert reason in done.stderr
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('command', ['list', 'echo', 'hz', 'pub', 'call'])
def test_help_teaches(command: str) -> None:
    done = _topic(command, '--help')
    assert done.returncode == 0
    assert 'dtvla topic' in done.stdout
