"""Runs jobs in processes of their own: on this machine, or on those of a Ray cluster.

A process builds its *worker* once (a simulator, a policy or both), then runs one job after
another; a job may ask the caller for decisions. Without torch, so that simulators stay small.
"""

from __future__ import annotations

import inspect
import math
import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Generator, Hashable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.engine.engine import Decision
from dtvla_ros.errors import UserError, one_line
from dtvla_ros.policy.transform import Observation
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import Infer

START_SECONDS = 300.0  # importing and compiling a simulator on a busy machine
TRIES = 3  # of a job whose process is lost again and again


@dataclass
class Worker:
    """What a process holds: ``run`` does a job, ``infer`` asks the caller for a decision."""

    run: Callable[[Any, Infer], Any]
    info: Any = None  # describes it to the caller
    seconds: float = 0.0  # spent in simulator steps so far


MakeWorker = Callable[[], Worker]  # called in the process; must be picklable


class Ask(NamedTuple):
    """A decision is asked for; ``stepping`` and ``drawing``: seconds since the last one."""

    observation: Observation
    stepping: float
    drawing: float


class End(NamedTuple):
    """A job has ended; ``stepping``: seconds since the last decision."""

    result: Any
    stepping: float


class Part(NamedTuple):
    """A job has done a part of its work, and goes on."""

    result: Any


class Lost(NamedTuple):
    """A process died, raised or did not answer; its job has begun again in another one."""

    reason: str


Event = Ask | End | Part | Lost
HOPELESS = (UserError, ModuleNotFoundError)  # the request is bad, or a package is missing


def env_worker(scene: SceneSetup) -> Worker:
    """Return what runs ``episode.Job``s; its info: what the environment says of itself."""
    env = scene.make()
    worker = Worker(lambda job, infer: job.run(env, infer), SimpleNamespace(
        tasks=tuple(env.tasks), max_steps=env.max_steps, one_scene=env.one_scene,
        suite=env.suite, contract=env.contract, views=dict(env.views)))

    def timed(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments, **options)
        worker.seconds += time.perf_counter() - start
        return result

    for name in ('reset', 'step'):
        setattr(env, name, partial(timed, getattr(env, name)))
    return worker


def function_worker(make: Callable[..., Callable[[Any], Any]], *setup: Any) -> Worker:
    """Return what runs jobs with the function that ``make(*setup)`` returns; it asks nothing.

    Of a generator each value is a ``Part``.
    """
    function = make(*setup)
    return Worker(lambda job, infer: function(job))


def serve(receive: Callable[[], Any], send: Callable[[Any], None], make: MakeWorker) -> None:
    """Build a worker, send its info, run the jobs that ``receive`` returns, without end.

    The answer to a job and to every chunk [T, D] is an ``Ask`` or an ``End``, after any ``Part``s.
    The last one is ``Lost``, or one of ``HOPELESS``: repeating it is no use.
    """
    start = before = 0.0

    def stepping() -> float:
        nonlocal before
        since, before = worker.seconds - before, worker.seconds
        return since

    def infer(observation: Observation) -> Decision:
        nonlocal start
        seconds = stepping()
        send(Ask(observation, seconds, time.perf_counter() - start - seconds))
        chunk = receive()
        start = time.perf_counter()
        return Decision('', 'complete', chunk, (), np.zeros(0, np.int64))

    try:
        worker = make()
        send(worker.info)
        while True:
            job = receive()
            start = time.perf_counter()
            result = worker.run(job, infer)
            if inspect.isgenerator(result):
                result = _parts(result, send)
            send(End(result, stepping()))
    except Exception as error:
        hopeless = isinstance(error, HOPELESS) and one_line(error)
        send(error if hopeless else Lost(traceback.format_exc()))


def _parts(generator: Any, send: Callable[[Any], None]) -> Any:
    """Send what a generator yields, return what it returns."""
    while True:
        try:
            send(Part(next(generator)))
        except StopIteration as end:
            return end.value


@dataclass(slots=True)
class Slot:
    """A process, and what is waited for."""

    process: Any
    answer: Any
    limit: float = math.inf  # seconds
    deadline: float = math.inf
    job: Any = None
    losses: int = 0  # of its processes

    def wait_for(self, limit: float) -> None:
        self.limit, self.deadline = limit, time.monotonic() + limit


class Workers:
    """``size`` processes with a worker each: ``begin`` or ``answer`` a slot, then wait for it.

    A process that dies, raises, or does not answer within ``timeout`` seconds is replaced; its
    job begins again, which a ``Lost`` tells. ``timeout`` inf: a job may take as long as it likes.
    """

    info: Any  # of the worker
    # What a kind of process defines. It starts with the worker's info as its answer; a message to
    # a dead one goes nowhere, and ``Lost`` is read from it.
    _spawn: Callable[[], tuple[Any, Any]]  # the process and its answer
    _send: Callable[[Slot, Any], None]
    _ready: Callable[[list[Any], float | None], Iterable[Any]]  # of answers, after s at the most
    _read: Callable[[Any], Any]
    _kill: Callable[[Slot], None]

    def __init__(self, make: MakeWorker, size: int, timeout: float = 60.0):
        if size < 1 or not timeout > 0.0:
            raise UserError(f'{size} processes, time-out {timeout} s: both must be positive')
        self.size, self._make, self._timeout = size, make, timeout
        self._slots: dict[int, Slot] = {}
        try:
            for slot in range(size):
                self._start(slot)
            for slot in range(size):
                self.info = self._started(slot)
        except BaseException:
            self.close()
            raise

    def begin(self, slot: int, job: Any) -> None:
        """Start a job. A suite may build its scene now, which takes as long as a start."""
        self._slots[slot].job, self._slots[slot].losses = job, 0
        self._tell(slot, job, max(self._timeout, START_SECONDS))

    def answer(self, slot: int, chunk: NDArray[np.float32]) -> None:
        """Answer an ``Ask`` with a chunk [T, D] in the robot's units."""
        self._tell(slot, chunk, self._timeout)

    def poll(self, slots: Collection[int]) -> dict[int, Event]:
        """Return the events of some of the slots, of one at least.

        Raises UserError if a worker refuses what it was asked for, RuntimeError if the process of
        one job is lost ``TRIES`` times.
        """
        answers: dict[int, Any] = {}
        while not answers:
            answers = self._receive(slots)
            now = time.monotonic()
            answers |= {n: Lost(f'no answer within {slot.limit:.0f} s')
                        for n, slot in self._slots.items()
                        if n in slots and n not in answers and slot.deadline <= now}
        return {slot: self._event(slot, answer) for slot, answer in answers.items()}

    def wait(self, slots: Collection[int]) -> dict[int, Event]:
        """Return the events of all the slots; errors as ``poll``."""
        events: dict[int, Event] = {}
        while len(events) < len(slots):
            events |= self.poll([slot for slot in slots if slot not in events])
        return events

    def close(self) -> None:
        """End all processes; may be called twice."""
        while self._slots:
            self._kill(self._slots.popitem()[1])

    def _tell(self, slot: int, message: Any, limit: float) -> None:
        self._slots[slot].wait_for(limit)
        self._send(self._slots[slot], message)

    def _start(self, slot: int) -> None:
        self._slots[slot] = Slot(*self._spawn())
        self._slots[slot].wait_for(START_SECONDS)

    def _started(self, slot: int) -> Any:
        info = self._receive([slot]).get(slot, Lost('it does not answer'))
        if isinstance(info, HOPELESS):
            raise info
        if isinstance(info, Lost):
            raise RuntimeError(f'no worker process started; is there memory?\n{info.reason}')
        return info

    def _event(self, slot: int, answer: Any) -> Event:
        """Return an answer; the process of a lost job is replaced, and the job begins again."""
        if isinstance(answer, HOPELESS):
            raise answer
        if isinstance(answer, Lost):
            job, losses = self._slots[slot].job, self._slots[slot].losses + 1
            if losses == TRIES:
                raise RuntimeError(f'{job}: process lost {TRIES} times, at last: {answer.reason}')
            self._kill(self._slots.pop(slot))
            self._start(slot)
            self._started(slot)
            self.begin(slot, job)
            self._slots[slot].losses = losses
        elif isinstance(answer, Part):
            self._slots[slot].wait_for(self._slots[slot].limit)
            self._more(self._slots[slot])
        return answer

    def _more(self, slot: Slot) -> None:
        """Let the next answer come; nothing was told."""

    def _receive(self, slots: Collection[int]) -> dict[int, Any]:
        """Return the answers that come first, none after the first deadline."""
        by_answer = {self._slots[slot].answer: slot for slot in slots}
        deadline = min(self._slots[slot].deadline for slot in slots)
        left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        return {by_answer[ready]: self._read(ready)
                for ready in self._ready(list(by_answer), left)}


class ProcessWorkers(Workers):
    """Workers on this machine. Processes are spawned: they inherit no GL context, no threads."""

    def _spawn(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context('spawn')
        ours, theirs = context.Pipe()
        process = context.Process(target=_process, args=(theirs, self._make), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def _send(self, slot: Slot, message: Any) -> None:
        with suppress(OSError):
            slot.answer.send(message)

    def _ready(self, answers: list[Any], seconds: float | None) -> Iterable[Any]:
        return wait(answers, seconds)

    def _read(self, answer: Any) -> Any:
        try:
            return answer.recv()
        except (EOFError, OSError):
            return Lost('its process died')

    def _kill(self, slot: Slot) -> None:
        slot.answer.close()
        slot.process.kill()  # a worker saves nothing, and a hung one heeds nothing else
        slot.process.join(5.0)


def _process(connection: Connection, make: MakeWorker) -> None:
    os.setsid()  # Ctrl-C, and what else a process group is sent, is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # the parent is gone
        serve(connection.recv, connection.send, make)
    os._exit(0)  # robosuite's GL teardown may abort, and there is nothing to save


def _die_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


class RayWorkers(Workers):
    """Workers on the machines of a Ray cluster, one CPU each, spread over them.

    ``address``: as ``ray.init`` takes it; 'auto' is the cluster this machine belongs to. Every
    machine needs this package, and policies at the paths they have here. Raises UserError if Ray
    is not installed, no cluster answers, or it has fewer CPUs.
    """

    def __init__(self, make: MakeWorker, size: int, timeout: float = 60.0, address: str = 'auto'):
        try:
            import ray
        except ImportError:
            raise UserError("--ray: not installed; pip install 'dtvla_ros[ray]'") from None
        self._ray, self._connected = ray, not ray.is_initialized()
        if self._connected:
            try:
                ray.init(address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError) as error:
                raise UserError(f'--ray {address}: no cluster answers ({error}); start one with '
                                'ray start --head') from error
        if size > (cpus := ray.cluster_resources().get('CPU', 0)):
            self._disconnect()
            raise UserError(f'{size} simulators, but the Ray cluster has {cpus:.0f} CPUs; use '
                            'fewer workers or add machines')
        self._actor = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy='SPREAD')(_Actor)
        super().__init__(make, size, timeout)

    def close(self) -> None:
        super().close()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def _spawn(self) -> tuple[Any, Any]:
        actor: Any = self._actor.remote(self._make)
        return actor, actor.exchange.remote()

    def _send(self, slot: Slot, message: Any) -> None:
        slot.answer = slot.process.exchange.remote(message)

    def _more(self, slot: Slot) -> None:
        slot.answer = slot.process.exchange.remote()

    def _ready(self, answers: list[Any], seconds: float | None) -> Iterable[Any]:
        return self._ray.wait(answers, num_returns=1, timeout=seconds)[0]

    def _read(self, answer: Any) -> Any:
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            return Lost(f'its process died ({str(error).splitlines()[0]})')

    def _kill(self, slot: Slot) -> None:
        self._ray.kill(slot.process)


class _Actor:
    """A Ray actor: one thread serves, because a GL context belongs to the thread that made it."""

    def __init__(self, make: MakeWorker):
        self._in, self._out = queue.Queue[Any](), queue.Queue[Any]()
        threading.Thread(
            target=serve, args=(self._in.get, self._out.put, make), daemon=True).start()

    def exchange(self, *messages: Any) -> Any:
        for message in messages:
            self._in.put(message)
        return self._out.get()


def open_workers(make: MakeWorker, size: int, timeout: float = 60.0,
                 ray: str | None = None) -> Workers:
    """Return workers on this machine or, with the address of a Ray cluster, on its machines."""
    return (ProcessWorkers(make, size, timeout) if ray is None
            else RayWorkers(make, size, timeout, ray))


def open_envs(scene: SceneSetup, size: int, timeout: float = 60.0,
              ray: str | None = None) -> Workers:
    """Return simulators that live as long as they are needed, as of ``env_worker``."""
    return open_workers(partial(env_worker, scene), size, timeout, ray)


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
        self._fresh = deque(self._groups)
        self._at: dict[Hashable, Hashable] = {}  # who -> group

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def take(self, who: Hashable) -> Any:
        """Return the next job of one that asks; there must be one."""
        group = self._at.get(who)
        if not self._groups.get(group):
            self._at[who] = group = self._fresh.popleft() if self._fresh else max(
                self._groups, key=lambda name: len(self._groups[name]))
        return self._groups[group].pop()


def run_jobs(jobs: Iterable[Any], make_function: Callable[..., Callable[[Any], Any]],
             setup: tuple[Any, ...], size: int,
             group: Callable[[Any], Hashable] = lambda job: None, ray: str | None = None,
             tell: Callable[[Any], None] = lambda part: None, stop: object = False,
             ) -> Generator[tuple[Any, Any], None, None]:
    """Yield ``(job, result)`` as jobs end; each process runs them with ``make_function(*setup)``.

    ``make_function`` must be importable by name. A process stays with jobs of one ``group`` as
    long as there are any. Processes end with the generator. ``tell`` gets what the function, as a
    generator, yields. None is begun once ``stop`` is true. Errors as ``poll``.
    """
    pending = Backlog(jobs, group)
    if not pending:
        return
    make = partial(function_worker, make_function, *setup)
    with closing(open_workers(make, min(size, len(pending)), math.inf, ray)) as workers:
        current: dict[int, Any] = {}

        def deal(slot: int) -> None:
            if pending and not stop:
                current[slot] = pending.take(slot)
                workers.begin(slot, current[slot])

        for slot in range(workers.size):
            deal(slot)
        while current:
            for slot, event in workers.poll(list(current)).items():
                if isinstance(event, End):
                    job = current.pop(slot)
                    deal(slot)
                    yield job, event.result
                elif isinstance(event, Part):
                    tell(event.result)
