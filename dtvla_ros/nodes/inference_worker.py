"""Runs the policy in a thread of its own, so that the node's executor always answers."""

from __future__ import annotations

import ctypes
import functools
import gc
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtvla_ros.actions.contract import differences
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.transform import Observation
from dtvla_ros.ros.settings import VlaSettings

if TYPE_CHECKING:
    from dtvla_ros.correction import Correction
    from dtvla_ros.engine.engine import Decision
    from dtvla_ros.engine.policy import Policy
    from dtvla_ros.policy.understanding import Understanding

Load = Callable[[], 'tuple[Policy, PolicyManifest, Understanding]']


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one request: a decision, or the error that prevented it.

    ``request_id`` and ``correction``: as given to `InferenceWorker.request`. ``seconds``: wall
    time of it all.
    """

    observation: Observation
    request_id: int
    correction: Correction | None
    decision: Decision | None
    error: Exception | None
    seconds: float


class InferenceWorker:
    """Loads a policy, then infers from one observation at a time.

    ``load()`` returns policy, manifest and what understands sentences. The worker calls ``wake``
    after anything happened, for `take` in the caller's own thread, and ``on_text`` with a
    request's number and the thought so far. `settled`: loading has ended, well or ill; `loaded`:
    all is there; `busy_since`: begin of the inference, or None.
    """

    policy: Policy
    manifest: PolicyManifest
    understanding: Understanding

    def __init__(
        self, load: Load, on_text: Callable[[int, str], None], wake: Callable[[], None]) -> None:
        self._load, self._on_text, self._wake = load, on_text, wake
        self._work: queue.SimpleQueue[
            tuple[Observation, int, Correction | None, bool] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.settled, self.loaded = threading.Event(), threading.Event()
        self.load_error: Exception | None = None
        self.busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def request(self, observation: Observation, request_id: int,
                correction: Correction | None = None, first: bool = False) -> None:
        """Ask for a decision, its thought corrected or not; only while `busy_since` is None.

        ``first``: what was thought before it is no draft.
        """
        self.busy_since = time.monotonic()
        self._work.put((observation, request_id, correction, first))

    def take(self) -> Outcome | None:
        """Return the next finished outcome, or None."""
        if self._done.empty():
            return None
        self.busy_since = None
        return self._done.get()

    def stop(self, timeout: float) -> None:
        """Ask the worker to end and wait at most ``timeout`` seconds for it."""
        self._work.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self.policy, self.manifest, self.understanding = self._load()
            self.loaded.set()
        except Exception as error:  # handed to the executor, which reports it
            self.load_error = error
        self.settled.set()
        self._wake()
        while self.loaded.is_set() and (work := self._work.get()) is not None:
            self._done.put(self._infer(*work))
            self._wake()
        if self.loaded.is_set():
            self.loaded.clear()
            self.load_error = UserError('it was released; clean up and configure again')
            del self.policy  # its memory goes with the thread

    def _infer(self, observation: Observation, request_id: int,
               correction: Correction | None, first: bool) -> Outcome:
        started = time.perf_counter()
        decision = error = None
        try:
            if first:
                self.policy.reset()
            decision = self.policy.infer(
                observation, functools.partial(self._on_text, request_id), correction)
        except Exception as raised:  # out of memory included; the node stops
            error = raised
        return Outcome(observation, request_id, correction, decision, error,
                       time.perf_counter() - started)


def load(settings: VlaSettings) -> tuple[Policy, PolicyManifest, Understanding]:
    """Load the policy, and what it understands.

    Raises UserError if a file is missing or damaged, the policy does not fit node and gate, or
    the engine here does not compute what the policy recorded.
    """
    # Here, not above: the imports take seconds and belong to the worker.
    from dtvla_ros.engine.load import load_policy
    from dtvla_ros.files import find_shared
    from dtvla_ros.policy.understanding import understanding_of

    folder = find_shared(settings.policy)

    def fits(manifest: PolicyManifest) -> None:
        cameras, action = manifest.config.vision.cameras, manifest.action
        if set(cameras) != set(settings.cameras):
            raise UserError(f'{settings.policy} wants the cameras {", ".join(cameras)}; parameter '
                            f'cameras is {", ".join(settings.cameras)}')
        arm = settings.contract(settings.arm_joints, settings.chunk_rate)
        if told := differences(arm, action):
            raise UserError(f'{settings.policy}: {told[0]}, which this robot takes; choose '
                            'another policy, or the parameters action_space, arm_joints, '
                            'gripper_channel and chunk_rate of the robot that it was trained on')
        if settings.min_confidence and manifest.calibration is None:
            raise UserError(
                f'min_confidence {settings.min_confidence:g}: the confidence of {settings.policy} '
                f'is not calibrated; run dtvla calibrate {settings.policy}, or leave it at 0')

    policy, manifest = load_policy(
        folder, engine=settings.engine, threads=settings.threads,
        device=settings.device, mode=settings.mode,
        max_thought_tokens=settings.max_thought_tokens or None,
        max_think_seconds=settings.deadline_s, on_verified=fits)
    if settings.min_confidence and not policy.tells_confidence:
        raise UserError(
            f'min_confidence {settings.min_confidence:g}: {settings.policy} tells no confidence '
            + ('without its own thought; use mode full' if settings.mode != 'full' else
               'by these graphs, which are older than its calibration; dtvla export '
               f'{settings.policy} --out {settings.policy} writes new ones')
            + ', or leave it at 0')
    allowed = [text for text in settings.allowed_instructions if text.strip()]
    return policy, manifest, understanding_of(folder, manifest, allowed)


def give_back_memory() -> None:
    """Return what was freed to the system; the C library keeps it otherwise."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):  # glibc's
        trim(0)
