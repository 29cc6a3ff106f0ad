"""Command lines, parameter files and environment variables: used or a UserError."""

from __future__ import annotations

import string
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtvla_ros.errors import UserError
from dtvla_ros.middleware import ros

if ros.BACKEND != 'dds':
    pytest.skip('rcl reads them under rclpy', allow_module_level=True)

from dtvla_ros.middleware.dds.arguments import parse_arguments
from dtvla_ros.middleware.dds.discovery import cyclone_config, domain_id
from dtvla_ros.middleware.dds.parameter_file import Override, read_parameter_file
from dtvla_ros.middleware.dds.parameters import Parameter
from dtvla_ros.middleware.dds.security import security_config

SOON = timedelta(seconds=2)
WORDS = st.text(max_size=30) | st.text(string.printable, max_size=30)
SCALARS = st.one_of(
    st.booleans(), st.none(), st.integers(), st.floats(), st.text(max_size=10),
    st.sampled_from(['1e999', '0x', '-', '.', '._', '1_000', '0b11', '2001-01-01', '!!python/none',
                     '*anchor', '&a b', '<<', '=', '9' * 5000, '[' * 200, '{' * 200, '08']))
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(['/**', 'gate', 'ros__parameters', 'a', '/x/y', '*', '']), inner,
    max_size=3), max_leaves=8)


def _check(overrides: list[Override]) -> None:
    for override in overrides:
        # Anything that was read can be a parameter and can be matched with a node.
        Parameter('p', value=override.value).get_parameter_value()
        override.applies_to('gate', '/robot')


def _yaml(tree: Any) -> str:
    if isinstance(tree, dict):
        inside = ', '.join(f'{key or "?"}: {_yaml(value)}' for key, value in tree.items())
        return '{' + inside + '}'
    if isinstance(tree, list):
        return '[' + ', '.join(map(_yaml, tree)) + ']'
    return str(tree)


@settings(max_examples=400, deadline=SOON)
@given(content=st.text(max_size=80).map(lambda t: t.encode('utf-8', 'surrogatepass'))
       | st.binary(max_size=60) | TREES.map(_yaml).map(lambda t: t.encode('utf-8', 'replace')))
def test_any_file(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / 'noise.yaml'
    path.write_bytes(content)
    try:
        _check(read_parameter_file(str(path)))
    except UserError as error:
        assert str(path) in str(error)


@settings(max_examples=400, deadline=SOON)
@given(tree=st.dictionaries(st.sampled_from(['a', 'b.c', '']), TREES, max_size=3))
def test_any_parameters(tmp_path_factory: Any, tree: Any) -> None:
    path = tmp_path_factory.getbasetemp() / 'tree.yaml'
    path.write_text('{"/**": {ros__parameters: ' + _yaml(tree) + '}}', 'utf-8', 'replace')
    try:
        _check(read_parameter_file(str(path)))
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize('content', [
    'a: &a [*a]', 'a: &x {ros__parameters: {b: *x}}', '[' * 5000, '{a: ' * 3000, '- ' * 3000,
    '&a ' + '[*a,' * 9, 'a: &a [' + 'x,' * 99 + ']\nb: [' + '*a,' * 999 + ']',
    '{"/**": {ros__parameters: {a: ' + '9' * 10000 + '}}}',
    '{"/**": {ros__parameters: {a: 1e400}}}',
    '{"/**": {ros__parameters: {a: 99999999999999999999}}}'])
def test_files_made_to_hurt(tmp_path: Path, content: str) -> None:
    path = tmp_path / 'hurt.yaml'
    path.write_text(content)
    try:
        _check(read_parameter_file(str(path)))
    except UserError as error:
        assert str(path) in str(error)


@settings(max_examples=500, deadline=SOON)
@given(words=st.lists(st.sampled_from(['-p', '-r', '--params-file', '--log-level', '-e', '--',
                                       '--ros-args', '--enclave']) | WORDS
                      | st.tuples(WORDS, SCALARS).map(lambda pair: f'{pair[0]}:={pair[1]}')
                      | TREES.map(lambda tree: 'p:=' + _yaml(tree)), max_size=5))
def test_any_command_line(words: list[str]) -> None:
    try:
        arguments = parse_arguments(['--ros-args', *words])
    except UserError as error:
        assert str(error)
    else:
        _check(arguments.overrides)


@settings(max_examples=300, deadline=SOON)
@given(environment=st.dictionaries(
    st.sampled_from(['ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_STATIC_PEERS',
                     'CYCLONEDDS_URI', 'ROS_SECURITY_ENABLE', 'ROS_SECURITY_STRATEGY',
                     'ROS_SECURITY_KEYSTORE', 'ROS_SECURITY_ENCLAVE_OVERRIDE']),
    st.text(st.characters(exclude_characters='\0'), max_size=12)
    | st.sampled_from(['true', 'Enforce', 'SUBNET', 'OFF', '7', '٣', '127.0.0.1;10.0.0.1'])))
def test_any_environment(environment: dict[str, str]) -> None:
    for read in (domain_id, cyclone_config, lambda e: security_config(e, '/')):
        try:
            read(environment)  # type: ignore[operator]
        except UserError as error:
            assert str(error)
