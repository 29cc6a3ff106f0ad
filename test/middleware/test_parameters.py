"""Parameters from code, command line and ROS YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)

pytestmark = pytest.mark.skipif(ros.BACKEND != 'dds', reason='rcl reads the files under rclpy')

GATE = """\
/**:
  ros__parameters:
    rate: 10.0
    verbose: true
/vla/gate:
  ros__parameters:
    rate: 20.0
    limits:
      speed: 0.25
      axes: [x, 'y', z]
    box: [-1.0, 1.0e-1, .5]
    name: "7"
    steps: 0x10
elsewhere:
  ros__parameters:
    rate: 99.0
"""


def _file(folder: Path, text: str) -> str:
    path = folder / 'gate.yaml'
    path.write_text(text)
    return str(path)


def test_yaml_reaches_the_right_node(make_node: Any, tmp_path: Path) -> None:
    args = ('--ros-args', '--params-file', _file(tmp_path, GATE))
    node = make_node('gate', args, namespace='/vla')
    declared = {name: node.declare_parameter(name, default).value for name, default in (
        ('rate', 1.0), ('verbose', False), ('limits.speed', 1.0), ('limits.axes', ['q']),
        ('box', [0.0]), ('name', ''), ('steps', 1), ('untouched', 'default'))}
    assert declared == {'rate': 20.0, 'verbose': True, 'limits.speed': 0.25,
                        'limits.axes': ['x', 'y', 'z'], 'box': [-1.0, 0.1, 0.5], 'name': '7',
                        'steps': 16, 'untouched': 'default'}
    assert make_node('other').declare_parameter('rate', 1.0).value == 10.0


def test_later_arguments_win(make_node: Any, tmp_path: Path) -> None:
    args = ('--ros-args', '--params-file', _file(tmp_path, GATE), '-p', 'rate:=30.0',
            '-p', 'gate:verbose:=false', '-p', 'other:rate:=1.0')
    node = make_node('gate', args)
    assert node.declare_parameter('rate', 1.0).value == 30.0
    assert node.declare_parameter('verbose', True).value is False


@pytest.mark.parametrize(('text', 'line', 'reason'), [
    ('/**:\n  ros__parameters:\n    rate: 20\n', 3, 'double expected, got integer'),
    ('gate:\n  ros__parameters:\n    rate: fast\n', 3, 'double expected, got string'),
    ('gate:\n  ros__parameters:\n    rate: [1.0]\n', 3, 'double expected, got double_array')])
def test_wrong_type_names_file_and_line(make_node: Any, tmp_path: Path, text: str, line: int,
                                        reason: str) -> None:
    path = _file(tmp_path, text)
    node = make_node('gate', ('--ros-args', '--params-file', path))
    with pytest.raises(UserError) as caught:
        node.declare_parameter('rate', 1.0)
    assert str(caught.value).startswith(f'{path}:{line}: parameter rate')
    assert reason in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('text', 'line', 'reason'), [
    ('gate:\n  ros__parameters:\n    a: [1, 2.0]\n', 3, 'one type'),
    ('gate:\n  ros__parameters:\n    a: [x, y, z]\n', 3, 'y, n, on, off are bool'),
    ('gate:\n  ros__parameters:\n    a: [1, [2]]\n', 3, 'one type'),
    ('gate:\n  ros__parameters: 3\n', 2, 'parameters, name: value'),
    ('gate: 3\n', 1, 'ros__parameters'), ('- a\n', 1, 'node names'),
    ('ros__parameters:\n  a: 1\n', 1, 'node name'),
    ('gate:\n  ros__parameters:\n    a: "x\n', 4, 'not YAML'), ('a: b: c\n', 1, 'not YAML'),
    ('? [a]\n: b\n', 1, 'collection')])
def test_malformed_yaml_names_file_and_line(make_node: Any, tmp_path: Path, text: str, line: int,
                                            reason: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(UserError) as caught:
        make_node('gate', ('--ros-args', '--params-file', path))
    assert str(caught.value).startswith(f'{path}:{line}:'), str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(('args', 'reason'), [
    (('--params-file', '/nowhere.yaml'), '/nowhere.yaml'), (('--params-file',), 'needs a value'),
    (('-p', 'rate'), 'name:=value'), (('-r', 'a:='), 'from:=to'),
    (('--log-level', 'loud'), 'loud'),
    (('--what',), 'no ROS argument'), (('-p', 'a:=[1'), '-p')])
def test_bad_arguments_are_named(make_node: Any, args: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_node('gate', ('--ros-args', *args))


def test_ranges_and_read_only(make_node: Any) -> None:
    node = make_node()
    node.declare_parameter('speed', 0.2, ParameterDescriptor(floating_point_range=[
        FloatingPointRange(from_value=0.0, to_value=0.25)]))
    node.declare_parameter('steps', 3, ParameterDescriptor(integer_range=[
        IntegerRange(from_value=1, to_value=10)]))
    node.declare_parameter('policy', 'nano', ParameterDescriptor(read_only=True))
    for name, value, reason in (('speed', 0.3, 'outside'), ('steps', 0, 'outside'),
                                ('policy', 'big', 'read-only'), ('speed', 1, 'double expected')):
        result, = node.set_parameters([ros.Parameter(name, value=value)])
        assert not result.successful
        assert reason in result.reason
    assert node.get_parameter('speed').value == 0.2
    result, = node.set_parameters([ros.Parameter('speed', value=0.1)])
    assert result.successful
    assert node.get_parameter('speed').value == 0.1
    with pytest.raises(UserError, match='outside'):
        node.declare_parameter('rate', 9.0, ParameterDescriptor(floating_point_range=[
            FloatingPointRange(from_value=0.0, to_value=1.0)]))


def test_callback_can_refuse(make_node: Any) -> None:
    node = make_node(parameter_overrides=[ros.Parameter('mode', value='masked')])
    assert node.declare_parameter('mode', 'full').value == 'masked'

    def only_known(parameters: list[ros.Parameter]) -> SetParametersResult:
        bad = [p.value for p in parameters if p.name == 'mode' and p.value not in ('full', 'no')]
        return SetParametersResult(successful=not bad, reason=f'unknown: {bad}' if bad else '')
    node.add_on_set_parameters_callback(only_known)
    refused, = node.set_parameters([ros.Parameter('mode', value='what')])
    assert (refused.successful, refused.reason) == (False, "unknown: ['what']")
    assert node.get_parameter('mode').value == 'masked'
    taken, = node.set_parameters([ros.Parameter('mode', value='full')])
    assert taken.successful
    atomic = node.set_parameters_atomically([ros.Parameter('mode', value='no'),
                                             ros.Parameter('mode', value='what')])
    assert not atomic.successful
    assert node.get_parameter('mode').value == 'full'


def test_undeclared_and_twice_declared(make_node: Any) -> None:
    node = make_node()
    with pytest.raises(ros.ParameterNotDeclaredException):
        node.get_parameter('nothing')
    node.declare_parameter('once', 1)
    with pytest.raises(ros.ParameterAlreadyDeclaredException):
        node.declare_parameter('once', 1)
    assert [p.value for p in node.declare_parameters('gate', [('a', 1), ('b', 'x')])] == [1, 'x']
    assert node.has_parameter('gate.b')


def test_empty_list_keeps_the_declared_type(make_node: Any) -> None:
    node = make_node('gate', ('--ros-args', '-p', 'tasks:=[]'))
    assert node.declare_parameter('tasks', ['push']).value == []
    result, = node.set_parameters([ros.Parameter('tasks', value=['stack'])])
    assert result.successful, result.reason
    result, = node.set_parameters([ros.Parameter('tasks', value=[])])
    assert result.successful, result.reason
    assert node.get_parameter('tasks').type_ == ros.Parameter.Type.STRING_ARRAY
