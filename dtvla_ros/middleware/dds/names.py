"""ROS names: validity, resolution and remapping."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dtvla_ros.errors import UserError

_TOKEN = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')
_NAME = re.compile(r'(~(?=/|$))?/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*|~')


def check_node_name(name: str) -> str:
    """Return ``name`` or raise UserError."""
    if not _TOKEN.fullmatch(name):
        raise UserError(f'node name {name!r}: use letters, digits and _, '
                        'not starting with a digit')
    return name


def normalize_namespace(namespace: str) -> str:
    """Return an absolute namespace without a trailing slash ('/' for the root)."""
    result = '/' + namespace.strip('/')
    if result != '/' and not _NAME.fullmatch(result):
        raise UserError(f'namespace {namespace!r}: use /letters_and_digits/...')
    return result


def join(namespace: str, name: str) -> str:
    """Return ``name`` inside ``namespace``."""
    return f'{namespace.rstrip("/")}/{name}'


def expand(name: str, node_name: str, namespace: str) -> str:
    """Return the absolute form of a topic or service name; raise UserError if it has none."""
    if not _NAME.fullmatch(name):
        raise UserError(f'topic or service name {name!r}: use letters, digits, _ and /')
    if name.startswith('/'):
        return name
    if name.startswith('~'):
        return (join(namespace, node_name) + name[1:])
    return join(namespace, name)


@dataclass(frozen=True, slots=True)
class Remap:
    """One ``[node:]from:=to`` rule; ``kind`` is '', 'rostopic' or 'rosservice'."""

    node: str
    match: str
    replacement: str
    kind: str = ''


def parse_remap(text: str) -> Remap:
    """Read a remap rule; raise UserError when it is none."""
    left, separator, right = text.partition(':=')
    node, colon, match = left.partition(':') if '://' not in left else ('', '', left)
    if not colon:
        node, match = '', left
    kind, scheme, rest = match.partition('://')
    if not scheme:
        kind, rest = '', match
    if not separator or not rest or not right or kind not in ('', 'rostopic', 'rosservice'):
        raise UserError(f'remap {text!r}: write [node:]from:=to')
    return Remap(node, rest, right, kind)


class Remapper:
    """The rules that hold for one node."""

    def __init__(self, rules: list[Remap], node_name: str) -> None:
        """Find the node's name; as in rcl, the other rules go by the new one."""
        self.node_name = self._special(rules, node_name, '__node', '__name') or node_name
        self._rules = [rule for rule in rules if rule.node in ('', self.node_name)]
        self.namespace = self._special(rules, self.node_name, '__ns')

    @staticmethod
    def _special(rules: list[Remap], node_name: str, *names: str) -> str | None:
        for rule in rules:
            if rule.match in names and rule.node in ('', node_name):
                return rule.replacement
        return None

    def resolve(self, name: str, node_name: str, namespace: str, kind: str) -> str:
        """Return the absolute name after remapping; ``kind`` is 'rostopic' or 'rosservice'."""
        full = expand(name, node_name, namespace)
        for rule in self._rules:
            if rule.match.startswith('__') or rule.kind not in ('', kind):
                continue
            if expand(rule.match, node_name, namespace) == full:
                return expand(rule.replacement, node_name, namespace)
        return full
