"""Results written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtvla_ros.errors import UserError


def require_writable(path: Path) -> None:
    """Find out before the work, not after it, that a result cannot be written.

    Raises
    ------
    UserError
        If ``path`` is a folder or the nearest folder above it is not writable.

    """
    above = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir() or not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError(f'cannot write {path}; choose another file')


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all; errors as `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    UserError
        If the folder cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, 'w', encoding='utf-8') as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}; choose another file') from error


def write_between(document: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two marker lines of a document.

    Raises
    ------
    UserError
        If the document or its markers are missing.

    """
    try:
        whole = document.read_text()
    except OSError as error:
        raise UserError(f'cannot read {document}: {error.strerror}') from error
    before, found, rest = whole.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError(f'{document} lacks the lines "{begin}" and "{end}"')
    write_text(document, f'{before}{begin}\n{text}\n{end}{after}')
