"""Keeps finished episodes, one JSON line each, so that an evaluation can be continued."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.results import Rate
from dtvla_ros.evaluation.workers import task_of
from dtvla_ros.files import JsonLines, whole_lines
from dtvla_ros.rollout.episode import EpisodeResult

Source = Callable[[Sequence[Any]], Generator[tuple[Any, Any], None, None]]  # jobs -> results


class Journal:
    """Appends results to ``path`` (None: keeps nothing) and knows those of an earlier run.

    The first line holds the settings; a journal of other settings is refused, since its episodes
    would be counted as this policy's.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.done: dict[tuple[str, int], EpisodeResult] = {}
        self._file: JsonLines | None = None
        if path is None:
            return
        header = json.loads(json.dumps(dict(settings)))
        lines = whole_lines(path)
        if lines:
            self._read(path, lines, header)
        self._file = JsonLines(path)
        if not lines:
            self._file.write(header)

    def _read(self, path: Path, lines: list[bytes], header: Mapping[str, Any]) -> None:
        """Take over the results of an earlier run with the same settings."""
        try:
            first, *rows = map(json.loads, lines)
            results = [EpisodeResult.from_dict(row) for row in rows]
        except (ValueError, TypeError, AttributeError) as error:
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
            self._file.write(result.to_dict())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def finish(
    title: str, wanted: Sequence[Any], done: Mapping[Any, EpisodeResult],
    keep: Callable[[Any, EpisodeResult], None], source: Source,
) -> None:
    """Run every wanted job that is not ``done`` yet; ``keep`` makes it done.

    A progress line tells the success so far, and of how many tasks it is: they come one after
    another.
    """
    columns = (
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
        TextColumn('{task.fields[rate]}'), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        def rate() -> str:
            return standing(wanted, done)

        jobs = [job for job in wanted if job not in done]
        line = bar.add_task(
            title, total=len(wanted), completed=len(wanted) - len(jobs), rate=rate())
        with closing(source(jobs)) as results:  # its processes end here, however this ends
            for job, result in results:
                keep(job, result)
                bar.update(line, advance=1, rate=rate())


def standing(wanted: Sequence[Any], done: Mapping[Any, EpisodeResult]) -> str:
    """Return the success so far, and of how many of the tasks it is."""
    have = [job for job in wanted if job in done]
    rate = str(Rate.of(done[job].success for job in have))
    if len(have) == len(wanted):
        return rate
    begun, tasks = (len({task_of(job) for job in jobs}) for jobs in (have, wanted))
    return f'{begun}/{tasks} tasks: {rate}'
