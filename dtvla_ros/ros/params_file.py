"""ROS parameter files: which nodes they name, and what they give to one of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.yaml_files import read_yaml

PARAMETERS = 'ros__parameters'
ROBOTS = 'config/robots'
"""Folder of the arms that start as shipped, a file each."""
FORMER = {'robot_servo': 'fr3_servo', 'robot_crisp': 'fr3_crisp', 'robot_fzi': 'fr3_fzi',
          'servo': 'fr3_servo', 'crisp': 'fr3_crisp', 'fzi': 'fr3_fzi'}
"""Former configurations, and values of the launch argument ``preset``, and what they are now."""


@dataclass(frozen=True, slots=True)
class ParameterFile:
    """``sections``: (pattern of full node names, parameters), in the order of the file."""

    path: Path
    sections: tuple[tuple[str, Mapping[str, Any]], ...]

    @classmethod
    def read(cls, path: Path) -> ParameterFile:
        """Read a file. Raises UserError where it cannot be read or holds no node's parameters."""
        remedy = 'dtvla run lists configurations'
        try:
            tree = read_yaml(path, remedy)
            sections = tuple(_sections(tree, '')) if isinstance(tree, dict) else ()
        except RecursionError:
            raise UserError(f'{path}: a section holds itself; {remedy}') from None
        if not sections:
            raise UserError(f'{path}: no parameters of a node; a section is '
                            '/name: {ros__parameters: {...}}')
        return cls(path, sections)

    def of(self, node: str) -> dict[str, Any]:
        """Return the parameters of a node by its full name; as in ROS the later ones count."""
        found: dict[str, Any] = {}
        for pattern, values in self.sections:
            if applies(pattern, node):
                found |= values
        return found

    def named(self, name: str) -> list[str]:
        """Return the full names in the file, without wildcards, that end in a node's name."""
        return [pattern for pattern, _ in self.sections
                if pattern.rpartition('/')[2] == name and '*' not in pattern]


def configurations() -> dict[str, str]:
    """Return the package's own files by name, with the sentence that each begins with."""
    folder = find_shared('config')
    return {path.stem: _sentence(path) for path in sorted(folder.glob('sim*.yaml'))} | robots()


def robots() -> dict[str, str]:
    """Return the arms that start as shipped, by name, with the sentence of each."""
    return {path.stem: _sentence(path) for path in sorted(find_shared(ROBOTS).glob('*.yaml'))}


def _sentence(path: Path) -> str:
    return re.split(r'[.;]\s', path.read_text().removeprefix('# '))[0].replace('\n# ', ' ')


def find_configuration(name: str) -> Path:
    """Return a file by its path, or one of the package's by its name; UserError if there is none.

    A file of the working directory comes first.
    """
    for candidate in (name, f'config/{name}', f'config/{name}.yaml', f'{ROBOTS}/{name}',
                      f'{ROBOTS}/{name}.yaml'):
        if (path := find_shared(candidate)).is_file():
            return path
    if robot := FORMER.get(Path(name).stem):
        raise UserError(f'{name}: is {ROBOTS}/{robot}.yaml now: dtvla run --robot {robot}')
    known = configurations()
    near = difflib.get_close_matches(Path(name).stem, known, 1)
    raise UserError(f'{name}: no such configuration; ' + (
        f'did you mean {near[0]}?' if near else f'choose from {", ".join(known)}, or name a file'))


def find_robot(name: str) -> Path:
    """Return the file of an arm that starts as shipped; UserError with the nearest if none is."""
    known = robots()
    if name in known:
        return find_shared(f'{ROBOTS}/{name}.yaml')
    near = [FORMER[name]] if name in FORMER else difflib.get_close_matches(name, known, 1)
    raise UserError(f'--robot {name}: no such robot; ' + (
        f'did you mean {near[0]}?' if near else f'choose from {", ".join(known)}; of another arm '
        'copy the file of the nearest, and name it in place of --robot'))


def _sections(tree: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, below in tree.items():
        name = f'{above}/{str(key).strip("/")}'
        if isinstance(below, dict) and isinstance(values := below.get(PARAMETERS), dict):
            yield name, values
        elif isinstance(below, dict):
            yield from _sections(below, name)


def applies(pattern: str, node: str) -> bool:
    """Return whether a section is a node's; * is one part of its full name, ** any number."""
    expression = ''.join(
        '(/[^/]+)*' if part == '/**' else '/[^/]+' if part == '/*' else re.escape(part)
        for part in re.findall(r'/[^/]+', pattern))
    return re.fullmatch(expression, node) is not None
