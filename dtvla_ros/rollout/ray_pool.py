"""Simulators on the machines of a Ray cluster, behind the same interface as those at hand."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env_pool import START_SECONDS, Event, Lost
from dtvla_ros.rollout.env_worker import Failed, Images, Job, Look, Ready, serve
from dtvla_ros.rollout.setup import SceneSetup


class _Simulator:
    """An actor: a thread plays, the actor hands messages to it and back.

    The simulator lives in that one thread, because a GL context belongs to the thread that
    made it.
    """

    def __init__(self, scene: SceneSetup):
        self._in: queue.Queue[Any] = queue.Queue()
        self._out: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=serve, args=(self._in.get, self._out.put, scene, _copied),
                         daemon=True).start()

    def hear(self) -> Any:
        """Return what the simulator says next."""
        return self._out.get()

    def tell(self, message: Any) -> Any:
        """Say something and return the answer."""
        self._in.put(message)
        return self._out.get()


def _copied(images: Images) -> Images:
    return {name: np.array(image) for name, image in images.items()}


class RayPool:
    """``size`` simulators, one CPU of the cluster each, spread over its machines.

    ``address``: as ``ray.init`` takes it; 'auto' is the cluster this machine belongs to. Every
    machine needs this package with its extra ``sim``. ``timeout`` as of ``LocalPool``.

    Raises
    ------
    UserError
        If Ray is not installed, or no cluster answers, or it has fewer CPUs.

    """

    def __init__(self, scene: SceneSetup, size: int, timeout: float = 60.0,
                 address: str = 'auto'):
        try:
            import ray
        except ImportError as error:
            raise UserError("--ray: Ray is not installed; pip install 'dtvla_ros[ray]'"
                            ) from error
        self.size = size
        self._ray, self._scene, self._timeout = ray, scene, timeout
        self._connected = not ray.is_initialized()
        if self._connected:
            try:
                ray.init(address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError) as error:
                raise UserError(f'--ray {address}: no cluster answers ({error}); start one with '
                                'ray start --head') from error
        if size > (cpus := ray.cluster_resources().get('CPU', 0)):
            self.close()
            raise UserError(f'{size} simulators, but the Ray cluster has {cpus:.0f} CPUs; lower '
                            'environments or add machines')
        self._actors: dict[int, Any] = {}
        self._answers: dict[int, Any] = {}
        self._deadlines: dict[int, float] = {}
        self._make = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy='SPREAD')(
            _Simulator)
        for slot in range(size):
            self._start(slot)
        for slot in range(size):
            self.ready = self._met(slot)

    def begin(self, slot: int, job: Job) -> None:
        self._tell(slot, job, max(self._timeout, START_SECONDS))

    def go_on(self, slot: int, chunk: NDArray[np.float32]) -> None:
        self._tell(slot, chunk, self._timeout)

    def wait(self, slots: Collection[int]) -> dict[int, Event]:
        events: dict[int, Event] = {}
        for slot in slots:
            events[slot] = self._event(slot)
        return events

    def close(self) -> None:
        for actor in getattr(self, '_actors', {}).values():
            self._ray.kill(actor)
        self._actors = {}
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def _tell(self, slot: int, message: Any, limit: float) -> None:
        self._answers[slot] = self._actors[slot].tell.remote(message)
        self._deadlines[slot] = time.monotonic() + limit

    def _event(self, slot: int) -> Event:
        try:
            answer = self._heard(slot)
        except self._ray.exceptions.GetTimeoutError:
            return self._replaced(slot, 'no answer in time')
        except self._ray.exceptions.RayError as error:
            return self._replaced(slot, f'its process died ({str(error).splitlines()[0]})')
        if isinstance(answer, Failed):
            if answer.refused:
                raise UserError(answer.text)
            return self._replaced(slot, answer.text)
        return answer

    def _heard(self, slot: int) -> Any:
        left = max(self._deadlines[slot] - time.monotonic(), 0.001)
        answer = self._ray.get(self._answers[slot], timeout=left)
        if isinstance(answer, Look):
            assert answer.frames is not None
            seen = replace(answer.observation, images=answer.frames)
            return replace(answer, observation=seen, frames=None)
        return answer

    def _replaced(self, slot: int, why: str) -> Lost:
        self._ray.kill(self._actors.pop(slot))
        self._start(slot)
        self._met(slot)
        return Lost(why)

    def _start(self, slot: int) -> None:
        self._actors[slot] = self._make.remote(self._scene)
        self._answers[slot] = self._actors[slot].hear.remote()
        self._deadlines[slot] = time.monotonic() + START_SECONDS

    def _met(self, slot: int) -> Ready:
        ready = self._heard(slot)
        if isinstance(ready, Failed):
            raise ready.error()
        assert isinstance(ready, Ready)
        return ready
