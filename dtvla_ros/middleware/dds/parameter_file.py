"""ROS parameter YAML, with the file and line of every value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dtvla_ros.errors import UserError

_TRUE = {'y', 'Y', 'yes', 'Yes', 'YES', 'true', 'True', 'TRUE', 'on', 'On', 'ON'}
_FALSE = {'n', 'N', 'no', 'No', 'NO', 'false', 'False', 'FALSE', 'off', 'Off', 'OFF'}
# What C's strtoll and strtod read to the end, as rcl uses them.
_INT = re.compile(r'[-+]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)')
_FLOAT = re.compile(r'[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|inf(inity)?|nan)', re.I)
_HEX_FLOAT = re.compile(
    r'[-+]?0x([0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(p[-+]?[0-9]+)?', re.I)
_SPECIAL = re.compile(r'[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)')


class _Loader(yaml.SafeLoader):
    """Leaves scalars as they are written and refuses aliases, as rcl does."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        """Keep only tags that are written out."""
        return ''

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose anything but an alias, whose expansion has no bound."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, 'aliases are not supported', self.get_event().start_mark)
        return super().compose_node(parent, index)


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


def in_order(overrides: Sequence[Override]) -> list[Override]:
    """Return overrides so that the last of a name is the one that counts, as in rcl.

    rcl collects them by node pattern, ``-p`` among those of ``/**``; the pattern that appears
    first, in any file or argument, counts least.
    """
    first: dict[str, int] = {}
    for override in overrides:
        first.setdefault(override.node.lstrip('/'), len(first))
    return sorted(overrides, key=lambda override: first[override.node.lstrip('/')])


def parse_override(text: str) -> Override:
    """Read ``[node:]name:=value``; raise UserError when it is none."""
    left, separator, right = text.partition(':=')
    node, colon, name = left.rpartition(':')
    if not separator or not name:
        raise UserError(f'-p {text!r}: write [node:]name:=value')
    try:
        value = _read(yaml.compose(right, Loader=_Loader), f'-p {text}') if right else ''
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f'-p {text!r}: {_reason(error)}') from error
    return Override(node if colon else '/**', name, value, f'-p {text}')


def read_parameter_file(path: str) -> list[Override]:
    """Read a ROS parameter file; raise UserError naming the file and line that is wrong."""
    try:
        with open(path, encoding='utf-8') as file:
            root = yaml.compose(file, Loader=_Loader)
        return [] if root is None else list(_nodes(root, '', path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserError(f'cannot read parameter file {path}: {reason}') from error
    except yaml.YAMLError as error:
        raise UserError(f'{path}:{_line(error)}: not YAML: {_reason(error)}') from error
    except RecursionError as error:
        raise UserError(f'{path}: nested too deeply') from error


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
        if not node.value and node.style not in ("'", '"'):
            raise UserError(f'{source}: a value is missing')
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
    """Return what rcl makes of a scalar."""
    text = node.value
    if node.style in ("'", '"') or node.tag == 'tag:yaml.org,2002:str':
        return text
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text) and len(text) < _LONGEST_INT:
        digits = text.lstrip('+-')
        base = 16 if digits[:2] in ('0x', '0X') else 8 if digits[0] == '0' else 10
        value = int(text, base)
        if -2**63 <= value < 2**63:
            return value
    if _SPECIAL.fullmatch(text):
        return float(text.replace('.', ''))
    if _FLOAT.fullmatch(text) or _HEX_FLOAT.fullmatch(text):
        return _float(text)
    return text


_LONGEST_INT = 80  # characters; longer ones do not fit 64 bits, not even in octal


def _float(text: str) -> float | str:
    """Return the number, or the text when it is too large or too small for one."""
    spelled = text.lower().lstrip('+-')
    try:
        number = float.fromhex(text) if spelled.startswith('0x') else float(text)
    except OverflowError:
        return text
    if spelled in ('inf', 'infinity', 'nan'):
        return number
    mantissa = spelled.partition('p' if spelled.startswith('0x') else 'e')[0]
    vanished = number == 0.0 and any(digit not in '0.x' for digit in mantissa)
    return text if number in (float('inf'), float('-inf')) or vanished else number


def _line(error: yaml.YAMLError) -> int:
    mark = getattr(error, 'problem_mark', None)
    return mark.line + 1 if mark else 1


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return 'nested too deeply'
    return str(getattr(error, 'problem', None) or error).splitlines()[0]
