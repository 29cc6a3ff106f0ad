"""What source files say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def strings(file: Path) -> Iterator[str]:
    """Give the strings of a source file, what is formatted into one as a capital word."""
    inside = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield ''.join(part.value if isinstance(part, ast.Constant) else 'NAME'
                          for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (
                id(node) not in inside):
            yield node.value
