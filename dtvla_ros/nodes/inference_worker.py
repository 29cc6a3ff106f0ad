"""The policy in its own thread, so that the node's executor always answers."""

from __future__ import annotations

import ctypes
import gc
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dtvla_ros.engine.engine import Decision
from dtvla_ros.policy.observation import Observation


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one look: a decision, or the error that prevented it.

    ``ticket``: as given to `InferenceWorker.think`. ``seconds``: wall time of the whole decision.
    """

    observation: Observation
    ticket: int
    decision: Decision | None
    error: Exception | None
    seconds: float


class InferenceWorker:
    """Loads a policy, then decides one observation at a time.

    ``load(on_verified)`` returns the policy, whose ``decide(observation, on_text)`` is used, and
    calls ``on_verified`` once its files are known to be intact. ``wake`` is called from the
    worker after anything happened; results are then read with `take` in the caller's own
    thread. ``on_text`` gets the thought so far, from the worker.
    """

    def __init__(
        self,
        load: Callable[[Callable[[], None]], Any],
        on_text: Callable[[str], None],
        wake: Callable[[], None],
    ) -> None:
        self._load = load
        self._on_text = on_text
        self._wake = wake
        self._work: queue.SimpleQueue[tuple[Observation, int] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._verified = threading.Event()
        self.policy: Any = None
        self.loaded = threading.Event()
        self.load_error: Exception | None = None
        self.busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name='thinker', daemon=True)

    def start(self) -> None:
        """Begin loading."""
        self._thread.start()

    def wait_verified(self, timeout: float) -> bool:
        """Wait until the policy's files were checked, well or ill; return whether they were."""
        return self._verified.wait(timeout)

    def think(self, observation: Observation, ticket: int) -> None:
        """Decide an observation; only while `busy_since` is None."""
        self.busy_since = time.monotonic()
        self._work.put((observation, ticket))

    def take(self) -> Outcome | None:
        """Return the next finished outcome, or None."""
        try:
            outcome = self._done.get_nowait()
        except queue.Empty:
            return None
        self.busy_since = None
        return outcome

    def stop(self, timeout: float) -> None:
        """Ask the worker to end and wait at most ``timeout`` seconds for it."""
        self._work.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self.policy = self._load(self._verified.set)
        except Exception as error:  # noqa: BLE001 - handed to the executor, which reports it
            self.load_error = error
            self._verified.set()
            self._wake()
            return
        self._verified.set()
        self.loaded.set()
        self._wake()
        while (work := self._work.get()) is not None:
            self._done.put(self._decide(*work))
            self._wake()
        self.policy = None  # its memory goes with the thread

    def _decide(self, observation: Observation, ticket: int) -> Outcome:
        started = time.perf_counter()
        decision: Any = None
        error = None
        try:
            decision = self.policy.infer(observation, self._on_text)
        except Exception as raised:  # noqa: BLE001 - out of memory included; the node stops
            error = raised
        return Outcome(observation, ticket, decision, error, time.perf_counter() - started)


def out_of_memory(error: Exception) -> bool:
    """Whether an engine's error means that the device's memory, or the host's, is used up."""
    said = f'{type(error).__name__}: {error}'.lower()
    return any(word in said for word in (
        'memoryerror', 'out of memory', 'outofmemory', 'bad_alloc', 'failed to allocate',
        'not enough memory'))


def give_back_memory() -> None:
    """Return what was freed to the system; the C library keeps it otherwise."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc's
    if trim is not None:
        trim(0)
