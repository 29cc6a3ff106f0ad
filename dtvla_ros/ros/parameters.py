"""Parameters given to a node that it does not have, and parameter files that are for other nodes.

ROS leaves both out in silence; but a limit that is left out is a wide one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rclpy.node import Node

from dtvla_ros.errors import UserError
from dtvla_ros.ros.params_file import ParameterFile, applies

ANYBODYS = ('use_sim_time', 'start_type_description_service', 'qos_overrides.')  # of rclpy itself
LISTED = 12  # names told where none is near
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
            _require_own(node, ParameterFile.read(Path(value)))
        elif option in ('-p', '--param') and (rule := re.match(r'(?:([^:]*):)?([^:]+):=', value)):
            if rule[1] and not applies(f'/{rule[1]}', name):
                raise UserError(f'-p {value}: the node is {name}; leave "{rule[1]}:" out')
            _require_declared(node, rule[2], f'-p {value}', NEAR)


def _flat(values: Mapping[str, Any], prefix: str = '') -> Iterator[str]:
    """Yield the names of parameters, those of groups with a dot."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}'


def _require_own(node: Node, file: ParameterFile) -> None:
    name, own = node.get_fully_qualified_name(), False
    for pattern, values in file.sections:
        if applies(pattern, name):
            own, cutoff = True, MISSPELT if pattern.endswith('*') else NEAR
            for parameter in _flat(values):
                _require_declared(node, parameter, f'{file.path}: {pattern}', cutoff)
    if not own:
        there = ', '.join(pattern for pattern, _ in file.sections)
        raise UserError(f'{file.path}: it is for {there}, not for {name}, as this node is called; '
                        f'name its section "{name}" or "/**"')


def _require_declared(node: Node, name: str, where: str, cutoff: float) -> None:
    several = cutoff == MISSPELT
    if node.has_parameter(name) or name.startswith(ANYBODYS) or several and name in TWINS:
        return
    known = [p for p in node._parameters if not p.startswith(ANYBODYS)]
    near = get_close_matches(name.lower(), known, 1, cutoff)
    if near or not several:
        listed = ', '.join(sorted(known)[:LISTED])
        raise UserError(f'{where}: {node.get_name()} has no parameter {name}' + (
            f'; the nearest is {near[0]}' if near else
            f'; it has {listed} and others, which docs/nodes.md explains'))
