"""One JSON line per episode, on disk as soon as it is known; a killed run loses none of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dtvla_ros.errors import UserError


def whole_lines(path: Path) -> list[bytes]:
    """Return a file's complete lines (a kill may cut the last one); none if there is no file.

    Raises ``UserError`` when it cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from error
    return [line for line in lines if line.endswith(b'\n')]


class Appender:
    """Appends JSON lines to a file; what a kill cut off is removed first."""

    def __init__(self, path: Path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            size = sum(map(len, whole_lines(path)))
            self._file: IO[bytes] = path.open('r+b' if path.exists() else 'w+b')
        except OSError as error:
            raise UserError(f'cannot write {path}: {error.strerror}; choose another folder'
                            ) from error
        self._file.seek(size)
        self._file.truncate()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is with the operating system when this returns."""
        self._file.write((json.dumps(row, ensure_ascii=False) + '\n').encode())
        self._file.flush()

    def fileno(self) -> int:
        """Return the descriptor, for a lock."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Journal:
    """Rows by episode; the first line of the file holds the settings they were made with.

    Raises
    ------
    UserError
        If the file holds rows made with other settings.

    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        wanted = json.loads(json.dumps(dict(header)))
        self.done: dict[int, dict[str, Any]] = {}
        known = bool(whole_lines(path))
        if known:
            found, rows = self.read(path, 'dtvla annotate')
            if found != wanted:
                changed = sorted(k for k in {**found, **wanted} if found.get(k) != wanted.get(k))
                raise UserError(f'{path} was made with other settings ({", ".join(changed)} '
                                'differ); choose another folder or delete the file')
            self.done = {row['episode']: row for row in rows}
        self._file = Appender(path)
        if not known:
            self._file.write(wanted)

    @staticmethod
    def read(path: Path, maker: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return header and rows of a journal; of several rows of an episode the last counts.

        Raises ``UserError`` when it is missing or no journal; ``maker``: the command to run first.
        """
        lines = whole_lines(path)
        if not lines:
            raise UserError(f'{path}: no such file, or it is empty; run {maker} first')
        try:
            header, *rows = map(json.loads, lines)
            return header, list({row['episode']: row for row in rows}.values())
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f'{path} is not a journal of {maker} ({error}); delete it') from error

    def add(self, row: dict[str, Any]) -> None:
        """Keep an episode's row."""
        self.done[row['episode']] = row
        self._file.write(row)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()
