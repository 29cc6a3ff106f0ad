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
    paths = [path for kind in ('sim*', 'robot_*') for path in sorted(folder.glob(f'{kind}.yaml'))]
    return {path.stem: re.split(r'[.;]\s', path.read_text().removeprefix('# '))[0].replace(
        '\n# ', ' ') for path in paths}


def find_configuration(name: str) -> Path:
    """Return a file by its path, or one of the package's by its name; UserError if there is none.

    A file of the working directory comes first.
    """
    for candidate in (name, f'config/{name}', f'config/{name}.yaml'):
        if (path := find_shared(candidate)).is_file():
            return path
    known = configurations()
    near = difflib.get_close_matches(Path(name).stem, known, 1)
    raise UserError(f'{name}: no such configuration; ' + (
        f'did you mean {near[0]}?' if near else f'choose from {", ".join(known)}, or name a file'))


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
