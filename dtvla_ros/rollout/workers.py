"""Simulators in processes of their own: one each, made once, fed one job at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Hashable, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

from dtvla_ros.errors import UserError

Serve = Callable[[Any], Any]


class Backlog:
    """Jobs in groups that are better done by one process than by several.

    ``take`` gives more of the same group to who asks; then a group that nobody has begun, in
    order; then one of the largest rest, so that nobody idles at the end.
    """

    def __init__(self, jobs: Iterable[Any], group: Callable[[Any], Hashable]):
        self._groups: dict[Hashable, list[Any]] = {}
        for job in jobs:
            self._groups.setdefault(group(job), []).append(job)
        for rest in self._groups.values():
            rest.reverse()
        self._begun: set[Hashable] = set()
        self._at: dict[Hashable, Hashable] = {}  # who -> group

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def take(self, who: Hashable) -> Any:
        """Return the next job of one that asks; there must be one."""
        group = self._at.get(who)
        if not self._groups.get(group):
            left = {name: len(rest) for name, rest in self._groups.items() if rest}
            new = [name for name in left if name not in self._begun]
            group = new[0] if new else max(left, key=left.__getitem__)
            self._at[who] = group
            self._begun.add(group)
        return self._groups[group].pop()


def run_jobs(
    jobs: Iterable[Any], make_worker: Callable[..., Serve], setup: tuple[Any, ...], workers: int,
    group: Callable[[Any], Hashable] = lambda job: None,
) -> Generator[tuple[Any, Any], None, None]:
    """Yield ``(job, result)`` as they finish; every process serves ``make_worker(*setup)``.

    A process stays with jobs of one ``group`` as long as there are any.

    ``make_worker`` must be importable by name (processes are spawned, so that no GL context
    and no thread pool is inherited). Processes end with the generator, however it ends.

    Raises
    ------
    UserError
        As raised in a worker.
    RuntimeError
        If a worker raises anything else, or dies.

    """
    pending = Backlog(jobs, group)
    context = multiprocessing.get_context('spawn')
    crew: dict[Connection, Any] = {}
    current: dict[Connection, Any] = {}
    try:
        for _ in range(min(workers, len(pending))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, make_worker, setup), daemon=True)
            process.start()
            theirs.close()
            crew[ours] = process
            current[ours] = pending.take(ours)
            ours.send(current[ours])
        while current:
            for ready in wait(list(current)):
                assert isinstance(ready, Connection)
                job = current.pop(ready)
                yield job, _receive(ready, job)
                if pending:
                    current[ready] = pending.take(ready)
                    ready.send(current[ready])
    finally:
        for connection, process in crew.items():
            connection.close()
            process.terminate()
        for process in crew.values():
            process.join(5.0)


def _receive(connection: Connection, job: Any) -> Any:
    try:
        kind, value = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        raise RuntimeError(f'the worker process died at {job}') from error
    if kind == 'refused':
        raise UserError(value)
    if kind == 'error':
        raise RuntimeError(f'at {job}:\n{value}')
    return value


def _serve(connection: Connection, make_worker: Callable[..., Serve], setup: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    serve: Serve | None = None
    while True:
        try:
            job = connection.recv()
        except EOFError:
            # robosuite's GL teardown at interpreter exit may abort; there is nothing to save.
            os._exit(0)
        try:
            serve = serve or make_worker(*setup)
            answer = ('done', serve(job))
        except UserError as error:
            answer = ('refused', str(error))
        except Exception:
            answer = ('error', traceback.format_exc())
        connection.send(answer)
