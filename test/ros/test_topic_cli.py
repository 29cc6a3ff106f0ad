"""``dtvla topic`` against a second process, and messages as plain dictionaries."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String

from dtvla_ros import conventions
from dtvla_ros.ros import topic_cli
from dtvla_ros.ros.conversions import from_plain, to_plain

COMMAND = [sys.executable, '-m', 'dtvla_ros.cli', 'topic']


@pytest.fixture
def topic(dtvla: Any, start_peer: Any) -> Any:
    """Run ``dtvla topic`` here, beside a peer; return exit code, output and error."""
    assert start_peer().stdout.readline() == 'ready\n'
    return lambda *words: dtvla('topic', *words)


def test_list_shows_names_and_types(topic: Any) -> None:
    for seconds in (1, 5, 25):  # a busy machine needs more
        code, out, err = topic('list', '-t', '--spin-time', seconds)
        assert code == 0, err
        lines = out.splitlines()
        if '/echoed [sensor_msgs/msg/Image]' in lines:
            break
    assert {'/echoed [sensor_msgs/msg/Image]', '/word [std_msgs/msg/String]'} <= set(lines)
    assert lines == sorted(lines)


def test_echo_finds_type_and_qos(topic: Any) -> None:
    said = 'latched before you came\n---\n'
    assert topic('echo', 'word', '--once')[1] == f'data: {said}'
    assert topic('echo', '/word', '--once', '--field', 'data')[1] == said
    assert topic('echo', '/word', '--once', '--field', 'date') == (
        2, '', "error: --field date: 'String' object has no attribute 'date'\n")


def test_call_prints_the_answer_and_nobody_is_one_line(topic: Any) -> None:
    for asked, success in (('true', 'false'), ('false', 'true')):
        code, out, err = topic('call', 'invert', f'{{data: {asked}}}', '--timeout', '50')
        assert out == f'success: {success}\nmessage: inverted\n', err
        assert code == (success == 'false')
    code, out, err = topic('call', '/nothing', '--timeout', '0.5')
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('error: nobody offers /nothing; there is: ')
    assert '(ROS_DOMAIN_ID=' in err and '_parameters' not in err


def test_pub_once_is_heard_and_hz_measures(graph: Any) -> None:
    node = graph.listen()
    graph.hear('joints', JointState, 'joints', 5)
    publisher = node.create_publisher(String, 'beat', 5)
    graph.every(0.05, lambda: publisher.publish(String(data='x')))
    hz = subprocess.Popen([*COMMAND, 'hz', 'beat'], stdout=subprocess.PIPE, text=True)
    pub = subprocess.Popen([
        *COMMAND, 'pub', '/joints', 'sensor_msgs/msg/JointState',
        '{header: {frame_id: base}, name: [a, b], position: [1, 2.5]}', '--once'])
    graph.spin(lambda: graph.last('joints'))
    graph.spin(publisher.get_subscription_count)
    graph.wait(2.5)
    assert pub.wait(timeout=60) == 0
    (_, joints), = graph.of('joints')
    assert (joints.header.frame_id, joints.name, list(joints.position)) == (
        'base', ['a', 'b'], [1.0, 2.5])
    hz.terminate()
    out, _ = hz.communicate(timeout=60)
    rates = [float(line.split()[-1]) for line in out.splitlines() if 'average rate' in line]
    # A busy machine skips ticks; it never adds any.
    assert 12.0 < rates[-1] < 22.0


def test_pub_once_says_that_nobody_listens_and_what_is_near(
        topic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_cli, '_SAID_AFTER', 5.0)
    code, out, err = topic('pub', '/there/sent', 'sensor_msgs/msg/Image', '--once',
                           '--timeout', '5.2')
    assert (code, out) == (2, '')
    waiting, last = err.splitlines()
    assert waiting.startswith('nobody listens to /there/sent yet; did you mean /sent? ')
    assert f'ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} ' in waiting and 'peer' in waiting
    assert last == 'error: nobody listens to /there/sent: given up after 5.2 s'
    code, _, err = topic('pub', '/x', 'std_msgs/msg/String', '--timeout', '1')
    assert code == 2 and '--once' in err


def test_the_examples_of_pub_name_topics_that_nodes_hear(dtvla: Any) -> None:
    _, out, _ = dtvla('topic', 'pub', '--help')
    for name in (conventions.INSTRUCTION, conventions.ESTOP):
        assert f'dtvla topic pub {name} ' in out


@pytest.mark.parametrize(('words', 'reason'), [
    (('pub', '/x', 'std_msgs/msg/Strin'), 'msg/Strin'), (('pub', '/x', 'String'), 'String'),
    (('pub', '/x', 'std_msgs/msg/String', '{data: 3}'), 'data: string expected'),
    (('pub', '/x', 'std_msgs/msg/Float64', '{data: true}'), 'data: double expected'),
    (('pub', '/x', 'std_msgs/msg/Float64', '[1]'), 'fields of Float64'),
    (('pub', '/x', 'std_msgs/msg/String', '{date: x}'), "no field 'date'"),
    (('pub', '/x', 'std_msgs/msg/String', '{data: ['), 'std_msgs/msg/String'),
    (('echo', '/x', 'no/Type'), 'no/Type'), (('echo', 'bad name'), 'bad name')])
def test_bad_input_is_one_line(graph: Any, dtvla: Any, words: Any, reason: str) -> None:
    code, out, err = dtvla('topic', *words)
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith('error: ') and reason in err


def test_plain_round_trip() -> None:
    plain = to_plain(DiagnosticStatus(level=DiagnosticStatus.ERROR, values=[KeyValue(key='k')]))
    assert plain['level'] == 2 and plain['values'] == [{'key': 'k', 'value': ''}]
    assert to_plain(from_plain(DiagnosticStatus(), plain)) == plain


@pytest.mark.parametrize(('kind', 'values', 'why'), [
    (Image, {'height': -6}, 'uint32'), (Image, {'width': 2**32}, 'out of its range'),
    (Image, {'is_bigendian': 10**30}, 'uint8'), (Image, {'data': [256]}, 'out of its range'),
    (CameraInfo, {'k': [1.0] * 8}, r'double\[9\]'), (String, {'data': '\ud800'}, 'surrogates'),
    (String, {'data': 3}, 'string')])
def test_values_that_no_message_can_hold_are_refused(kind: Any, values: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_plain(kind(), values)
