"""How nodes begin and end, as real processes: exit codes, one-line errors, signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from std_msgs.msg import String

TIMEOUT = 60.0


def _one_line(peer: Any, *parts: str) -> None:
    out, err = peer.communicate(timeout=TIMEOUT)
    assert (peer.returncode, out) == (2, ''), err
    assert err.startswith('error: ')
    assert err.count('\n') == 1, err
    for part in parts:
        assert part in err


@pytest.mark.parametrize(('name', 'value'), [
    ('ROS_DOMAIN_ID', 'x'), ('ROS_DOMAIN_ID', '1000'), ('ROS_DOMAIN_ID', '-1'),
    ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'moon'),
    ('ROS_STATIC_PEERS', 'no host'),
    ('FASTRTPS_DEFAULT_PROFILES_FILE', 'no/such/file.xml')])
def test_bad_variable_is_one_line(start_peer: Any, name: str, value: str) -> None:
    _one_line(start_peer(**{name: value}), value,
              *([name] if name != 'ROS_STATIC_PEERS' else ()))


def test_broken_profile_is_one_line(start_peer: Any, tmp_path: Path) -> None:
    broken = tmp_path / 'broken.xml'
    broken.write_text('<dds><profiles>')
    _one_line(start_peer(FASTRTPS_DEFAULT_PROFILES_FILE=str(broken)), str(broken))


@pytest.mark.parametrize(('words', 'reason'), [
    (('--moon',), '--moon'),
    (('--ros-args', '--moon'), '--moon'),
    (('--ros-args', '-p', 'rate:=fast'), "'fast'"),
    (('--ros-args', '-p', 'rate'), '-p rate'),
    (('--ros-args', '-r', '__node:=a-b'), '__node:=a-b'),
    (('--ros-args', '--log-level', 'moon'), 'moon'),
    (('--ros-args', '--params-file', 'no/such/file.yaml'), 'no/such/file.yaml')])
def test_bad_argument_is_one_line(start_peer: Any, words: tuple[str, ...], reason: str) -> None:
    _one_line(start_peer(*words), reason)


@pytest.mark.parametrize('text', ['a: [', 'peer: {rate: 3}',
                                  '/**: {ros__parameters: {rate: fast}}'])
def test_broken_parameter_file_is_one_line(start_peer: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / 'parameters.yaml'
    path.write_text(text)
    _one_line(start_peer('--ros-args', '--params-file', str(path)))


def test_log_level_of_rcl_is_heeded(start_peer: Any) -> None:
    peer = start_peer('--ros-args', '--log-level', 'rcl:=debug', PEER='ending')
    _, err = peer.communicate(timeout=TIMEOUT)
    assert '[DEBUG]' in err


def test_end_gives_the_exit_code(start_peer: Any) -> None:
    peer = start_peer(PEER='ending')
    assert peer.communicate(timeout=TIMEOUT) == ('', '')
    assert peer.returncode == 3


def test_error_of_a_task_from_a_thread_ends_the_node(start_peer: Any) -> None:
    peer = start_peer(PEER='threaded')
    _, err = peer.communicate(timeout=TIMEOUT)
    assert peer.returncode == 1
    assert err.splitlines()[-1] == 'RuntimeError: from a task'
    _one_line(start_peer(PEER='threaded user'), 'no such thing')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_waiting_node_and_its_last_word_is_heard(
        make_node: Any, spin_until: Any, start_peer: Any, number: int) -> None:
    node = make_node()
    last: list[str] = []
    node.create_subscription(String, 'last_word', lambda m: last.append(m.data), 5)
    peer = start_peer()
    assert [peer.stdout.readline() for _ in range(2)] == ['ready\n', 'heard\n']
    os.kill(peer.pid, number)
    assert spin_until(lambda: last)
    assert peer.wait(timeout=TIMEOUT) == 0
    assert last == ['stop commands go out last']
    assert peer.stderr.read() == ''


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_interrupts_a_loop_that_has_joined(start_peer: Any, number: int) -> None:
    peer = start_peer(PEER='joined')
    assert peer.stdout.readline() == 'ready\n'
    os.kill(peer.pid, number)
    assert peer.communicate(timeout=TIMEOUT) == ('interrupted\n', '')
    assert peer.returncode == 0
