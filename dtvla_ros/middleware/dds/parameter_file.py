"""ROS parameter YAML, with the file and line of every value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from dtvla_ros.errors import UserError

_BOOLS = {'true': True, 'yes': True, 'on': True, 'y': True,
          'false': False, 'no': False, 'off': False, 'n': False}
_INT = re.compile(r'[-+]?(0x[0-9a-fA-F]+|0o?[0-7]+|[0-9]+)')
_FLOAT = re.compile(r'[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?')
_SPECIAL = {'.inf': float('inf'), '+.inf': float('inf'), '-.inf': float('-inf'),
            '.nan': float('nan')}


@dataclass(frozen=True, slots=True)
class Override:
    """A parameter value from outside; ``node`` is a pattern such as '/**' or 'vla_node'."""

    node: str
    name: str
    value: Any
    source: str

    def applies_to(self, node_name: str, namespace: str) -> bool:
        """Return whether it is meant for this node: ``*`` is one name, ``**`` any number."""
        pattern = re.escape(f'/{self.node.lstrip("/")}').replace(r'/\*\*', '(/[^/]+)*')
        full_name = f'{namespace.rstrip("/")}/{node_name}'
        return re.fullmatch(pattern.replace(r'\*', '[^/]+'), full_name) is not None


def parse_override(text: str) -> Override:
    """Read ``[node:]name:=value``; raise UserError when it is none."""
    left, separator, right = text.partition(':=')
    node, colon, name = left.rpartition(':')
    if not separator or not name:
        raise UserError(f'-p {text!r}: write [node:]name:=value')
    try:
        value = _read(yaml.compose(right, Loader=yaml.SafeLoader), f'-p {text}') if right else ''
    except yaml.YAMLError as error:
        raise UserError(f'-p {text!r}: {_reason(error)}') from error
    return Override(node if colon else '/**', name, value, f'-p {text}')


def read_parameter_file(path: str) -> list[Override]:
    """Read a ROS parameter file; raise UserError naming the file and line that is wrong."""
    try:
        with open(path, encoding='utf-8') as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(f'cannot read parameter file {path}: {reason}') from error
    except yaml.YAMLError as error:
        raise UserError(f'{path}:{_line(error)}: not YAML: {_reason(error)}') from error
    if root is None:
        return []
    return list(_nodes(root, '', path))


def _nodes(node: yaml.Node, prefix: str, path: str) -> Iterator[Override]:
    for name, line, child in _entries(node, path, 'node names with ros__parameters below'):
        if name == 'ros__parameters':
            if not prefix:
                raise UserError(f'{path}:{line}: put a node name or /** above ros__parameters')
            yield from _parameters(child, '', prefix, path)
        else:
            yield from _nodes(child, f'{prefix}/{name.strip("/")}' if prefix else name, path)


def _parameters(node: yaml.Node, prefix: str, target: str, path: str) -> Iterator[Override]:
    for name, line, child in _entries(node, path, 'parameters, name: value'):
        full = f'{prefix}{name}'
        if isinstance(child, yaml.MappingNode):
            yield from _parameters(child, f'{full}.', target, path)
        else:
            yield Override(target, full, _read(child, f'{path}:{line}'), f'{path}:{line}')


def _entries(node: yaml.Node, path: str,
             expected: str) -> Iterator[tuple[str, int, yaml.Node]]:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f'{path}:{line}: expected {expected}')
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f'{path}:{key.start_mark.line + 1}: a name cannot be a collection')
        yield key.value, key.start_mark.line + 1, child


def _read(node: yaml.Node | None, source: str) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        values = [_read(item, source) for item in node.value]
        kinds = {type(value) for value in values}
        if len(kinds) > 1 or kinds & {list, type(None)}:
            raise UserError(f'{source}: a list needs values of one type, all bool, int, float or '
                            'str (among floats write 1.0, not 1; y, n, on, off are bool unless '
                            'quoted)')
        return values
    raise UserError(f'{source}: a value or a list of values expected')


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style is not None:  # quoted or block text
        return text
    lowered = text.lower()
    if lowered in _BOOLS:
        return _BOOLS[lowered]
    if lowered in ('', '~', 'null'):
        return None
    if _INT.fullmatch(text):
        sign, digits = (-1, text[1:]) if text[0] == '-' else (1, text.lstrip('+'))
        base = 16 if digits[:2].lower() == '0x' else 8 if digits[:2].lower() == '0o' else 10
        return sign * int(digits, base)
    if lowered in _SPECIAL:
        return _SPECIAL[lowered]
    return float(text) if _FLOAT.fullmatch(text) else text


def _line(error: yaml.YAMLError) -> int:
    mark = getattr(error, 'problem_mark', None)
    return mark.line + 1 if mark else 1


def _reason(error: yaml.YAMLError) -> str:
    return str(getattr(error, 'problem', None) or error).splitlines()[0]
