"""Finished episodes, one JSON line each, so that a long evaluation can be continued."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dtvla_ros.errors import UserError
from dtvla_ros.rollout.episode import EpisodeResult


class Journal:
    """Appends results to ``path`` (None: keeps nothing) and knows those of an earlier run.

    The first line holds the settings; a journal of other settings is refused, since its episodes
    would be counted as this policy's.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.done: dict[tuple[str, int], EpisodeResult] = {}
        self._file: IO[bytes] | None = None
        if path is None:
            return
        header = json.loads(json.dumps(dict(settings)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            whole = [line for line in lines if line.endswith(b'\n')]  # a kill may cut the last
            if whole:
                self._read(path, whole, header)
            self._file = path.open('r+b' if path.exists() else 'w+b')
        except OSError as error:
            raise UserError(f'cannot use journal {path}: {error.strerror}') from error
        assert self._file is not None
        self._file.seek(sum(map(len, whole)))
        self._file.truncate()
        if not whole:
            self._write(header)

    def _read(self, path: Path, lines: list[bytes], header: Mapping[str, Any]) -> None:
        try:
            first, *rows = map(json.loads, lines)
            results = [EpisodeResult.from_dict(row) for row in rows]
        except (ValueError, TypeError) as error:
            raise UserError(
                f'{path} is not a journal of dtvla eval; choose another file') from error
        if first != header:
            changed = sorted(k for k in {**first, **header} if first.get(k) != header.get(k))
            raise UserError(
                f'journal {path} is of other settings ({", ".join(changed)} differ); '
                'choose another file or delete it')
        self.done = {(r.task, r.seed): r for r in results}

    def add(self, result: EpisodeResult) -> None:
        """Keep a result; it is on disk when this returns."""
        self.done[result.task, result.seed] = result
        if self._file is not None:
            self._write(result.to_dict())

    def _write(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write((json.dumps(row) + '\n').encode())
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
