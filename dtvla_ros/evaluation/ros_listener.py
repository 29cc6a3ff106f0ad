"""A watcher that makes of every episode on the topics what one in process would come to."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.evaluation.failures import FailureRecord
from dtvla_ros.evaluation.ros_seen import Seen
from dtvla_ros.evaluation.workers import Job, PolicySetup
from dtvla_ros.rollout.episode import EpisodeResult, commands_hash

from .ros_watcher import Watcher

BETWEEN = 500_000_000  # simulated time without a command that parts two episodes [ns]
PATIENCE = 1.0  # wall time for commands still on their way when their episode has ended [s]


class Listener(Watcher):
    """Hands out results by `ended`. ``exact``: with the hash of an episode's commands.

    Topics are not ordered among each other: a result waits until as many commands have arrived as
    the episode had steps. Where some never do, its hash stays empty.
    """

    def __init__(self, setup: PolicySetup, frame_rate: float, exact: bool):
        super().__init__(self._look, self._end)
        self._setup, self._frame_rate, self._exact = setup, frame_rate, exact
        self._record: FailureRecord | None = None
        self._thoughts: list[str] = []
        self._counted: dict[str, int] = {}  # latencies of earlier episodes, by phase
        self._commands: dict[int, NDArray[np.float64]] = {}  # by stamp [ns]
        self._waiting: list[tuple[float, EpisodeResult]] = []

    def waits(self) -> bool:
        """Whether a finished episode has not been handed out yet."""
        return bool(self._waiting)

    def ended(self) -> Iterator[tuple[Job, EpisodeResult]]:
        """Yield what has finished since."""
        while self._waiting:
            since, result = self._waiting[0]
            if self._exact:
                mine = self._first_episode()
                if len(mine) < result.steps and time.monotonic() - since < PATIENCE:
                    return
                if len(mine) == result.steps:
                    result = EpisodeResult(**{
                        **result.to_dict(),
                        'commands': commands_hash([self._commands[stamp] for stamp in mine])})
                for stamp in mine:
                    del self._commands[stamp]
            self._waiting.pop(0)
            yield (result.task, result.seed), result

    def _first_episode(self) -> list[int]:
        stamps = sorted(self._commands)
        ends = (k for k, (a, b) in enumerate(itertools.pairwise(stamps), 1) if b - a > BETWEEN)
        return stamps[:next(ends, len(stamps))]

    def _action(self, message: JointTrajectory) -> None:
        super()._action(message)
        if self._exact:
            at = message.header.stamp
            self._commands.setdefault(
                at.sec * 10**9 + at.nanosec, np.array(message.points[0].positions))

    def _reasoning(self, message: String) -> None:
        super()._reasoning(message)
        if not self.seen.writing:
            self._thoughts.append(self.seen.thought)

    def _look(self, pictures: dict[str, NDArray[np.uint8]], seen: Seen) -> None:
        row = seen.episode
        if 'task' not in row:
            return
        if self._record is None:
            self._record = FailureRecord(
                self._setup.videos, self._setup.stills, f'{row["task"]}-{row["seed"]}',
                self._frame_rate)
        self._record.add(pictures, row['instruction'], seen.thought, row['step'])

    def _end(self, row: dict[str, Any]) -> None:
        success = bool(row['success'])
        if self._record is not None:
            self._record.close(success)
            self._record = None
        latency = {
            phase: [round(seconds, 6) for seconds in values[self._counted.get(phase, 0):]]
            for phase, values in self.seen.latency.items()}
        self._counted = {phase: len(values) for phase, values in self.seen.latency.items()}
        thoughts, self._thoughts = tuple(self._thoughts), []
        self._waiting.append((time.monotonic(), EpisodeResult(
            row['task'], row['seed'], success, row['step'], len(thoughts), latency=latency,
            thoughts=thoughts)))
