"""Declaring, restricting, setting and asking for parameters, in process and remotely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterEvent,
    SetParametersResult,
    get_service,
)

Spin = Callable[..., bool]
Parameter = ros.Parameter
Kind = ros.Parameter.Type
VALUES = [(True, Kind.BOOL), (3, Kind.INTEGER), (0.5, Kind.DOUBLE), ('word', Kind.STRING),
          ([b'\x01', b'\xff'], Kind.BYTE_ARRAY), ([True, False], Kind.BOOL_ARRAY),
          ([1, -2], Kind.INTEGER_ARRAY), ([1.0, 2.5], Kind.DOUBLE_ARRAY),
          (['a', 'b'], Kind.STRING_ARRAY)]
SPEED = FloatingPointRange(from_value=0.0, to_value=0.5, step=0.1)
COUNT = IntegerRange(from_value=1, to_value=9, step=3)


@pytest.mark.parametrize(('value', 'kind'), VALUES)
def test_values_have_a_type(make_node: Any, value: Any, kind: Any) -> None:
    parameter = Parameter('p', value=value)
    assert (parameter.name, parameter.type_) == ('p', kind)
    again = Parameter.from_parameter_msg(parameter.to_parameter_msg())
    assert (again.type_, list(again.value) if isinstance(value, list) else again.value) == (
        kind, value)
    node = make_node()
    assert node.declare_parameter('p', value).value == value
    assert node.describe_parameter('p').type == kind.value
    wrong, = node.set_parameters([Parameter('p', value='word' if value != 'word' else 1)])
    assert not wrong.successful
    assert node.get_parameter('p').value == value


@pytest.mark.parametrize('value', [[1, 'a'], {'a': 1}, [[1]], object(), b'x'])
def test_what_is_no_value(value: Any) -> None:
    with pytest.raises(TypeError):
        Parameter('p', value=value)


def test_type_and_value_must_agree() -> None:
    with pytest.raises(ValueError):
        Parameter('p', Kind.INTEGER, 'word')
    with pytest.raises(AttributeError):
        Parameter('p', value=1).value = 2


def test_declared_or_not(make_node: Any) -> None:
    node = make_node()
    with pytest.raises(ros.ParameterNotDeclaredException):
        node.get_parameter('p')
    with pytest.raises(ros.ParameterNotDeclaredException):
        node.set_parameters([Parameter('p', value=1)])
    with pytest.raises(ros.ParameterNotDeclaredException):
        node.describe_parameter('p')
    assert node.get_parameter_or('p').type_ == Kind.NOT_SET
    assert node.get_parameter_or('p', Parameter('p', value=7)).value == 7
    node.declare_parameter('p', 1)
    with pytest.raises(ros.ParameterAlreadyDeclaredException):
        node.declare_parameter('p', 1)
    node.undeclare_parameter('p')
    assert not node.has_parameter('p')
    with pytest.raises(ros.ParameterNotDeclaredException):
        node.undeclare_parameter('p')
    with pytest.raises(ValueError):
        node.declare_parameter('nothing', None, ParameterDescriptor(description='no type'))


def test_a_type_without_a_value(make_node: Any) -> None:
    node = make_node()
    node.declare_parameter('p', Kind.DOUBLE)
    with pytest.raises(ros.ParameterUninitializedException):
        node.get_parameter('p')
    assert not node.set_parameters([Parameter('p', value=1)])[0].successful
    assert node.set_parameters([Parameter('p', value=1.0)])[0].successful
    assert node.get_parameter('p').value == 1.0


def test_dynamic_typing(make_node: Any) -> None:
    node = make_node()
    node.declare_parameter('p', 1, ParameterDescriptor(dynamic_typing=True))
    assert node.set_parameters([Parameter('p', value='word')])[0].successful
    assert node.get_parameter('p').type_ == Kind.STRING
    assert node.describe_parameter('p').type == Kind.STRING.value


@pytest.mark.parametrize(('value', 'fits'), [
    (0.0, True), (0.5, True), (0.3, True), (0.1 + 0.2, True), (0.25, False), (0.6, False),
    (-0.1, False), (float('nan'), False), (float('inf'), False)])
def test_floating_point_range(make_node: Any, value: float, fits: bool) -> None:
    node = make_node()
    node.declare_parameter('speed', 0.1, ParameterDescriptor(floating_point_range=[SPEED]))
    result, = node.set_parameters([Parameter('speed', value=value)])
    assert result.successful is fits
    assert bool(result.reason) is not fits
    assert node.get_parameter('speed').value == (value if fits else 0.1)


@pytest.mark.parametrize(('value', 'fits'), [
    (1, True), (4, True), (9, True), (8, False), (0, False), (10, False)])
def test_integer_range(make_node: Any, value: int, fits: bool) -> None:
    node = make_node()
    node.declare_parameter('count', 1, ParameterDescriptor(integer_range=[COUNT]))
    assert node.set_parameters([Parameter('count', value=value)])[0].successful is fits


@pytest.mark.parametrize(('value', 'error'), [
    (0.7, ros.InvalidParameterValueException), (1, ros.InvalidParameterTypeException),
    ('fast', ros.InvalidParameterTypeException)])
def test_overrides_are_held_to_the_declaration(make_node: Any, value: Any, error: Any) -> None:
    node = make_node('gate', parameter_overrides=[Parameter('speed', value=value)])
    with pytest.raises(error):
        node.declare_parameter('speed', 0.1, ParameterDescriptor(floating_point_range=[SPEED]))
    assert not node.has_parameter('speed')
    assert node.declare_parameter('speed', 0.1, ignore_override=True).value == 0.1


def test_read_only_is_set_from_outside_once(make_node: Any) -> None:
    node = make_node(args=('--ros-args', '-p', 'policy:=big'))
    assert node.declare_parameter('policy', 'nano', ParameterDescriptor(
        read_only=True)).value == 'big'
    assert not node.set_parameters([Parameter('policy', value='nano')])[0].successful
    assert node.get_parameter('policy').value == 'big'
    with pytest.raises(ros.ParameterImmutableException):
        node.undeclare_parameter('policy')


def test_callbacks_may_refuse(make_node: Any) -> None:
    node = make_node()
    node.declare_parameters('limits', [('low', 0), ('high', 10)])
    asked: list[list[str]] = []

    def ordered(parameters: list[Parameter]) -> SetParametersResult:
        asked.append([parameter.name for parameter in parameters])
        bad = any(parameter.value > 100 for parameter in parameters)
        return SetParametersResult(successful=not bad, reason='too much' if bad else '')
    node.add_on_set_parameters_callback(ordered)
    results = node.set_parameters([Parameter('limits.low', value=1),
                                   Parameter('limits.high', value=200)])
    assert [(r.successful, r.reason) for r in results] == [(True, ''), (False, 'too much')]
    together = node.set_parameters_atomically([Parameter('limits.low', value=5),
                                               Parameter('limits.high', value=200)])
    assert not together.successful
    assert (node.get_parameter('limits.low').value, node.get_parameter('limits.high').value) == (
        1, 10)
    assert asked == [['limits.low'], ['limits.high'], ['limits.low', 'limits.high']]
    node.remove_on_set_parameters_callback(ordered)
    assert node.set_parameters([Parameter('limits.high', value=200)])[0].successful
    assert {name: each.value for name, each in
            node.get_parameters_by_prefix('limits').items()} == {'low': 1, 'high': 200}


def test_changes_are_told_afterwards(make_node: Any) -> None:
    node = make_node()
    if not hasattr(node, 'add_post_set_parameters_callback'):
        pytest.skip('not in Humble')
    told: list[Any] = []
    node.declare_parameter('p', 1)
    node.add_post_set_parameters_callback(
        lambda parameters: told.extend(each.value for each in parameters))
    node.set_parameters([Parameter('p', value=2)])
    node.set_parameters([Parameter('p', value='refused')])
    assert told == [2]


def _ask(kind: str, ask: Any, asker: Any, node: Any, **fields: Any) -> Any:
    service = get_service(f'rcl_interfaces/srv/{kind}')
    snake = ''.join(f'_{c.lower()}' if c.isupper() else c for c in kind).lstrip('_')
    return ask(asker, service, f'/gate/{snake}', service.Request(**fields), node)


def test_remote_services(make_node: Any, ask: Any) -> None:
    node, asker = make_node('gate'), make_node('asker')
    for index, (value, _) in enumerate(VALUES):
        node.declare_parameter(f'v{index}', value)
    node.declare_parameter('limits.speed', 0.1, ParameterDescriptor(
        description='m/s', floating_point_range=[SPEED]))
    node.declare_parameter('limits.axes.x', 1, ParameterDescriptor(read_only=True))

    values = _ask('GetParameters', ask, asker, node,
                  names=[f'v{index}' for index in range(len(VALUES))]).values
    read = [Parameter.from_parameter_msg(_message(value)) for value in values]
    assert [(list(each.value) if each.type_.value >= Kind.BYTE_ARRAY.value else each.value,
             each.type_) for each in read] == VALUES
    assert list(_ask('GetParameters', ask, asker, node, names=['v0', 'nothing']).values) == []
    assert list(_ask('GetParameterTypes', ask, asker, node,
                     names=['v1', 'limits.speed']).types) == [2, 3]
    assert list(_ask('GetParameterTypes', ask, asker, node, names=['nothing']).types) == []

    def names(**fields: Any) -> list[str]:
        return sorted(_ask('ListParameters', ask, asker, node, **fields).result.names)
    assert {'limits.speed', 'limits.axes.x', 'v0', 'use_sim_time'} <= set(names())
    assert names(prefixes=['limits']) == ['limits.axes.x', 'limits.speed']
    assert names(prefixes=['limits'], depth=1) == ['limits.speed']
    assert 'limits.speed' not in names(depth=1)

    speed, = _ask('DescribeParameters', ask, asker, node, names=['limits.speed']).descriptors
    assert (speed.name, speed.type, speed.description) == ('limits.speed', 3, 'm/s')
    limit, = speed.floating_point_range
    assert (limit.from_value, limit.to_value, limit.step) == (0.0, 0.5, 0.1)
    fixed, = _ask('DescribeParameters', ask, asker, node, names=['limits.axes.x']).descriptors
    assert fixed.read_only

    def put(kind: str, *parameters: Parameter) -> list[bool]:
        answer = _ask(kind, ask, asker, node,
                      parameters=[parameter.to_parameter_msg() for parameter in parameters])
        return [r.successful for r in getattr(answer, 'results', None) or [answer.result]]
    assert put('SetParameters', Parameter('limits.speed', value=0.2),
               Parameter('limits.speed', value=0.9), Parameter('limits.axes.x', value=2),
               Parameter('nothing', value=1), Parameter('v3', value=1)) == [
                   True, False, False, False, False]
    assert node.get_parameter('limits.speed').value == 0.2
    assert put('SetParametersAtomically', Parameter('limits.speed', value=0.3),
               Parameter('v3', value=1)) == [False]
    assert node.get_parameter('limits.speed').value == 0.2


def _message(value: Any) -> Any:
    message = Parameter('p', value=1).to_parameter_msg()
    message.value = value
    return message


def test_events_tell_of_changes(make_node: Any, spin_until: Spin) -> None:
    node, other = make_node('gate'), make_node('other')
    heard: list[tuple[list[str], list[str]]] = []
    subscription = other.create_subscription(ParameterEvent, '/parameter_events', lambda m: (
        heard.append(([p.name for p in m.new_parameters], [p.name for p in m.changed_parameters]))
        if m.node == '/gate' else None), 100)
    assert spin_until(lambda: subscription.get_publisher_count() == 2
                      if hasattr(subscription, 'get_publisher_count')
                      else other.count_publishers('/parameter_events') == 2, node, other)
    node.declare_parameter('p', 1)
    node.set_parameters([Parameter('p', value=2)])
    assert spin_until(lambda: len(heard) == 2, node, other)
    assert heard == [(['p'], []), ([], ['p'])]


FILE = """\
/**:
  ros__parameters:
    everywhere: 1
    rate: 1.0
/robot/*:
  ros__parameters:
    below_robot: 1
/**/gate:
  ros__parameters:
    any_gate: 1
/robot/gate:
  ros__parameters:
    rate: 20.0
    limits: {speed: 0.25, axes: [x, z]}
gate:
  ros__parameters:
    root_gate: 1
/robot/arm/gate:
  ros__parameters:
    deep: 1
"""


@pytest.mark.parametrize(('name', 'namespace', 'expected'), [
    ('gate', '/robot', {'everywhere': 1, 'below_robot': 1, 'any_gate': 1, 'rate': 20.0,
                        'limits.speed': 0.25, 'limits.axes': ['x', 'z']}),
    ('gate', '', {'everywhere': 1, 'any_gate': 1, 'root_gate': 1, 'rate': 1.0}),
    ('gate', '/robot/arm', {'everywhere': 1, 'any_gate': 1, 'deep': 1, 'rate': 1.0}),
    ('lone', '/robot', {'everywhere': 1, 'below_robot': 1, 'rate': 1.0}),
    ('lone', '', {'everywhere': 1, 'rate': 1.0})])
def test_files_reach_nodes_by_pattern(make_node: Any, tmp_path: Path, name: str, namespace: str,
                                      expected: dict[str, Any]) -> None:
    path = tmp_path / 'parameters.yaml'
    path.write_text(FILE)
    node = make_node(name, ('--ros-args', '--params-file', str(path)), namespace=namespace,
                     automatically_declare_parameters_from_overrides=True)
    found = {key: each.value for key, each in node.get_parameters_by_prefix('').items()}
    # Jazzy's rclpy declares this one by itself.
    for own in ('use_sim_time', 'start_type_description_service'):
        found.pop(own, None)
    assert found == expected


def test_later_arguments_win(make_node: Any, tmp_path: Path) -> None:
    path = tmp_path / 'parameters.yaml'
    path.write_text(FILE)
    node = make_node('gate', ('--ros-args', '-p', 'everywhere:=3', '--params-file', str(path),
                              '-p', 'rate:=30.0', '-p', 'gate:any_gate:=5',
                              '-p', 'other:root_gate:=7'))
    assert [node.declare_parameter(name, default).value for name, default in (
        ('everywhere', 0), ('rate', 0.0), ('any_gate', 0), ('root_gate', 0))] == [1, 30.0, 5, 1]


@pytest.mark.parametrize(('files', 'more', 'value'), [
    (['/**: {a: 1}\n/gate: {a: 2}', '/**: {a: 3}'], [], 2),
    (['/**: {a: 1}\n/gate: {a: 2}'], ['-p', 'a:=8'], 2),
    (['/gate: {a: 2}'], ['-p', 'a:=8'], 8),
    (['/gate: {a: 2}\n/**: {b: 1}'], ['-p', 'a:=8'], 8),
    (['/gate: {a: 2}', '/**: {a: 3}\n/gate: {a: 4}'], [], 3)])
def test_patterns_that_appear_later_win(make_node: Any, tmp_path: Path, files: list[str],
                                        more: list[str], value: int) -> None:
    arguments = ['--ros-args']
    for index, text in enumerate(files):
        path = tmp_path / f'{index}.yaml'
        path.write_text(text.replace(': {', ': {ros__parameters: {').replace('}', '}}'))
        arguments += ['--params-file', str(path)]
    node = make_node('gate', (*arguments, *more))
    assert node.declare_parameter('a', 0).value == value


@pytest.mark.parametrize(('text', 'value'), [
    ('true', True), ('7', 7), ('-0x10', -16), ('7.0', 7.0), ('1e3', 1000.0), ('.5', 0.5),
    ('word', 'word'), ('"7"', '7'), ("'true'", 'true'), ('[1, 2]', [1, 2]),
    ('[1.0, .inf]', [1.0, float('inf')]), ('["1", a]', ['1', 'a']), ('[true, no]', [True, False]),
    ('a:b', 'a:b'), ('~/x', '~/x'), ('~', '~'), ('null', 'null'), ('010', 8), ('08', 8.0),
    ('0o10', '0o10'), ('0X1f', 31), ('1_000', '1_000'), ('yEs', 'yEs'), ('ON', True),
    ('inf', float('inf')), ('-.Inf', float('-inf')), ('0x1p3', 8.0), ('1e999', '1e999'),
    ('1e-400', '1e-400'), ('99999999999999999999', 1e20), ('9223372036854775808', 2.0**63),
    ('-9223372036854775808', -2**63), ('0b11', '0b11'), ('1e+', '1e+'), ('5.', 5.0)])
def test_values_on_the_command_line(make_node: Any, text: str, value: Any) -> None:
    node = make_node(args=('--ros-args', '-p', f'p:={text}'))
    declared = node.declare_parameter('p', value)
    assert (declared.value, declared.type_) == (value, Kind.from_parameter_value(value))
