"""Reads YAML files in which nothing is said twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dtvla_ros.files import unreadable

# What the constructors of tags raise for values that are none of theirs, as !!int x, 2026-99-99.
UNTAGGED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class _Loader(yaml.SafeLoader):
    """Refuses keys that stand twice, and ``<<``, which ROS takes for a key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if key == '<<' or keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, '<< is not read' if key == '<<' else f'{key} stands twice',
                    node.start_mark)
        return super().construct_mapping(node, deep)


def read_nodes(path: Path, remedy: str) -> yaml.Node | None:
    """Return a YAML file as nodes, which know their lines; errors as of `read_yaml`."""
    read_yaml(path, remedy)
    return yaml.compose(path.read_bytes(), yaml.SafeLoader)


def read_yaml(path: Path, remedy: str) -> Any:
    """Return what a YAML file says; ``UserError`` with ``remedy`` where it cannot be read."""
    try:
        return yaml.load(path.read_bytes(), _Loader)
    except (OSError, yaml.YAMLError, RecursionError, *UNTAGGED) as error:
        raise unreadable(path, error, remedy, 'no YAML') from None
