"""Jobs worked off under a progress bar that says how the success stands."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dtvla_ros.rollout.episode import EpisodeResult

from .statistics import Rate
from .workers import task_of

Source = Callable[[Sequence[Any]], Generator[tuple[Any, EpisodeResult], None, None]]


def finish(
    title: str, wanted: Sequence[Any], done: Mapping[Any, EpisodeResult],
    keep: Callable[[Any, EpisodeResult], None], source: Source,
) -> None:
    """Get every wanted job that is not ``done`` yet from ``source``; ``keep`` makes it done.

    Tasks come one after another, so the success meanwhile is that of the tasks begun: the line
    says how many of them there are.
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
