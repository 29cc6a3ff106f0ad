"""Simulators that live as long as the training, each in a process of its own.

A process that dies, hangs or raises is replaced and its slot reported as ``Lost``: what it
played must begin again. Pictures come through shared memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env_worker import End, Failed, Images, Job, Look, Ready, serve
from dtvla_ros.rollout.setup import SceneSetup

START_SECONDS = 300.0  # importing and compiling a simulator on a busy machine


class Lost(Exception):
    """A simulator was replaced; the message says why."""


Event = Look | End | Lost


class EnvPool(Protocol):
    """A number of simulators, each playing one episode at a time.

    ``begin`` or ``go_on`` a slot, then ``wait`` for it. The pictures of a ``Look`` are valid
    until its slot goes on.
    """

    ready: Ready
    size: int

    def begin(self, slot: int, job: Job) -> None:
        """Start an episode; the answer is its first ``Look``."""

    def go_on(self, slot: int, chunk: NDArray[np.float32]) -> None:
        """Answer a ``Look`` with a chunk [T, D] in the robot's units."""

    def wait(self, slots: Collection[int]) -> dict[int, Event]:
        """Return what came of each slot, once all of them have answered or are lost.

        Raises ``UserError`` if a simulator refuses what it was asked for.
        """

    def close(self) -> None:
        """End all processes; may be called twice."""


def open_pool(scene: SceneSetup, size: int, timeout: float,
              ray: str | None = None) -> EnvPool:
    """Return simulators here or, with the address of a Ray cluster, on its machines."""
    if ray is None:
        return LocalPool(scene, size, timeout)
    from dtvla_ros.rollout.ray_pool import RayPool

    return RayPool(scene, size, timeout, ray)


class LocalPool:
    """``size`` simulators on this machine.

    ``timeout``: seconds until a simulator that does not answer is killed and replaced.
    """

    def __init__(self, scene: SceneSetup, size: int, timeout: float = 60.0):
        if size < 1 or not timeout > 0.0:
            raise UserError(f'{size} simulators with a time-out of {timeout} s; both must be '
                            'positive')
        self.size = size
        self._scene, self._timeout = scene, timeout
        self._context = multiprocessing.get_context('spawn')
        self._workers: dict[int, _Worker] = {}
        try:
            for slot in range(size):
                self._workers[slot] = _Worker(self._context, scene)
            for worker in self._workers.values():
                self.ready = worker.meet()
        except BaseException:
            self.close()
            raise

    def begin(self, slot: int, job: Job) -> None:
        # A suite may build its scene now, which takes as long as a start.
        self._workers[slot].tell(job, max(self._timeout, START_SECONDS))

    def go_on(self, slot: int, chunk: NDArray[np.float32]) -> None:
        self._workers[slot].tell(chunk, self._timeout)

    def wait(self, slots: Collection[int]) -> dict[int, Event]:
        events: dict[int, Event] = {}
        waiting = {self._workers[slot].connection: slot for slot in slots}
        while waiting:
            now = time.monotonic()
            least = min(self._workers[slot].deadline for slot in waiting.values())
            ready = wait(list(waiting), max(0.0, least - now))
            late = [c for c, slot in waiting.items()
                    if c not in ready and self._workers[slot].deadline <= time.monotonic()]
            for connection in [*ready, *late]:
                assert isinstance(connection, Connection)
                slot = waiting.pop(connection)
                events[slot] = self._event(slot, connection in late)
        return events

    def _event(self, slot: int, late: bool) -> Event:
        worker = self._workers[slot]
        if late:
            return self._replaced(slot, f'no answer within {worker.limit:.0f} s')
        answer = worker.hear()
        if isinstance(answer, Failed):
            if answer.refused:
                raise UserError(answer.text)
            return self._replaced(slot, answer.text)
        if answer is None:
            return self._replaced(slot, 'its process died')
        return answer

    def _replaced(self, slot: int, why: str) -> Lost:
        self._workers.pop(slot).end()
        self._workers[slot] = _Worker(self._context, self._scene)
        self._workers[slot].meet()
        return Lost(why)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()


class _Worker:
    """One process, its pipe and its pictures."""

    def __init__(self, context: Any, scene: SceneSetup):
        self.connection, theirs = context.Pipe()
        self.deadline, self.limit = 0.0, 0.0
        self.process = context.Process(target=_run, args=(theirs, scene), daemon=True)
        self.process.start()
        theirs.close()
        self._memory: SharedMemory | None = None
        self._frames: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def meet(self) -> Ready:
        """Wait for the simulator to be there, and share memory with it."""
        ready = self.hear() if self.connection.poll(START_SECONDS) else None
        if isinstance(ready, Failed):
            self.end()
            raise ready.error()
        if not isinstance(ready, Ready):
            self.end()
            raise RuntimeError(f'a simulator process did not start (exit code '
                               f'{self.process.exitcode}); is there memory for it?')
        shape = len(CAMERAS), ready.image_size, ready.image_size, 3
        self._memory = SharedMemory(create=True, size=int(np.prod(shape)))
        self._frames = np.ndarray(shape, np.uint8, self._memory.buf)
        self.connection.send(self._memory.name)
        return ready

    def tell(self, message: Any, limit: float) -> None:
        self.limit = limit
        self.deadline = time.monotonic() + limit
        with suppress(OSError):  # it is dead, as ``hear`` will find
            self.connection.send(message)

    def hear(self) -> Any:
        """Return the next message, a ``Look`` with its pictures; None of a dead process."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(answer, Look):
            images: Images = dict(zip(CAMERAS, self._frames))
            return replace(answer, observation=replace(answer.observation, images=images))
        return answer

    def end(self) -> None:
        self.connection.close()
        self.process.kill()  # a simulator saves nothing, and a hung one heeds nothing else
        self.process.join(5.0)
        if self._memory is not None:
            self._frames = np.zeros(0, np.uint8)
            memory, self._memory = self._memory, None
            memory.unlink()
            with suppress(BufferError):  # a picture is still looked at; the memory goes with it
                memory.close()


def _run(connection: Connection, scene: SceneSetup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    frames: NDArray[np.uint8] | None = None
    memory: SharedMemory | None = None

    def receive() -> Any:
        try:
            return connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # robosuite's GL teardown may abort; there is nothing to save

    def send(message: Any) -> None:
        nonlocal frames, memory
        try:
            connection.send(message)
        except OSError:
            os._exit(0)
        if isinstance(message, Ready):
            memory = SharedMemory(receive())
            shape = len(CAMERAS), message.image_size, message.image_size, 3
            frames = np.ndarray(shape, np.uint8, memory.buf)

    def show(images: Images) -> None:
        assert frames is not None
        for k, name in enumerate(CAMERAS):
            frames[k] = images[name]

    serve(receive, send, scene, show)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
