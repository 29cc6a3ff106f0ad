"""Parameters given to a node that it does not have, and parameter files that are for other nodes.

ROS leaves both out in silence; but a limit that is left out is a wide one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from rclpy.node import Node

from dtvla_ros.errors import UserError

SECTION = 'ros__parameters'
ANYBODYS = ('use_sim_time', 'start_type_description_service', 'qos_overrides.')  # of rclpy itself
NEAR = 0.6  # similarity from which on a name is told as the nearest
MISSPELT = 0.88  # ... and from which on one for several nodes must be meant for this one, ...
TWINS = ('autostart', 'auto_start')  # ... unless it is another node's


def require_known(node: Node, words: Sequence[str]) -> None:
    """Raise ``UserError`` for a parameter the node does not have, or a file that is not for it.

    ``words``: of the command line. In a section for any node (``/**``) there may be what other
    nodes have; a name that is nearly one of this node's is refused there, too.
    """
    name = node.get_fully_qualified_name()
    for option, value in zip(words, words[1:]):
        if option == '--params-file':
            _require_own(node, Path(value))
        elif option in ('-p', '--param') and (rule := re.match(r'(?:([^:]*):)?([^:]+):=', value)):
            if rule[1] and not _applies(rule[1], name):
                raise UserError(f'-p {value}: the node is {name}; leave "{rule[1]}:" out')
            _require_declared(node, rule[2], f'-p {value}', NEAR)


def sections(tree: Any, key: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the nodes of a parameter file as it names them, and what it gives to them by name."""
    for name, values in tree.items() if isinstance(tree, Mapping) else ():
        if name == SECTION:
            yield key, dict(_flat(values))
        else:
            yield from sections(values, f'{key}/{name}'.replace('//', '/') if key else str(name))


def _flat(values: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _flat(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def _applies(key: str, node: str) -> bool:
    """Return whether rcl applies a section to a node; '*' is a part of a name, '**' any parts."""
    key = re.escape(f'/{key.lstrip("/")}').replace(r'/\*\*', r'(/\w+)*').replace(r'/\*', r'/\w+')
    return re.fullmatch(key, node) is not None


def _require_own(node: Node, path: Path) -> None:
    name, own = node.get_fully_qualified_name(), []
    try:
        found = dict(sections(yaml.safe_load(path.read_text())))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:  # rcl read it, so it is odd
        raise UserError(f'{path}: {error}') from error
    for key, values in found.items():
        if _applies(key, name):
            own.append(key)
            cutoff = MISSPELT if key.endswith('*') else NEAR
            for parameter in values:
                _require_declared(node, parameter, f'{path}: {key}', cutoff)
    if not own:
        raise UserError(f'{path}: it is for {", ".join(found) or "no node"}, not for {name}, as '
                        f'this node is called; name its section "{name}" or "/**"')


def _require_declared(node: Node, name: str, where: str, cutoff: float) -> None:
    several = cutoff == MISSPELT
    if node.has_parameter(name) or name.startswith(ANYBODYS) or several and name in TWINS:
        return
    known = [p for p in node._parameters if not p.startswith(ANYBODYS)]
    near = get_close_matches(name, known, 1, cutoff)
    if near or not several:
        raise UserError(f'{where}: {node.get_name()} has no parameter {name}' + (
            f'; the nearest is {near[0]}' if near else f'; it has {", ".join(sorted(known))}'))
