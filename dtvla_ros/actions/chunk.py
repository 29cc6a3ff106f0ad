"""A chunk of actions, and the queue of its rows: which one is due, and how many were played."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.conventions import CHANNELS

HISTORY = 1024  # ticks remembered; at 100 Hz more than any sane decision takes
_NONE = np.empty((0, len(CHANNELS)), np.float32)
Rows = NDArray[np.float32]  # [n, D]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Actions for consecutive control steps; row k is for ``stamp + k * period`` [s].

    ``stamp`` is that of the observation they answer. ``values`` [T, D] are what the
    `ActionContract` says, usually normalised OSC_POSE actions in [-1, 1] (0.05 m, 0.5 rad of goal
    offset per unit; gripper -1 opens, +1 closes).
    """

    stamp: float
    period: float
    values: NDArray[np.float32]
    channels: tuple[str, ...] = CHANNELS


class QueueInvariantError(RuntimeError):
    """The queue would have played a row twice or out of order."""


class ChunkQueue:
    """Hands out one row per control tick and counts what was really played.

    A chunk that answers the observation of time s starts at the row after those played since s:
    actions are offsets from the measured pose, and an arm that waited has used none of them.
    ``max_latency``: a chunk whose age exceeds its own length by more is dropped [s].
    ``blend_steps``: rows over which a new chunk is faded in where the old one had rows.
    ``ticks_per_row``: control ticks that a row lasts. ``fade``: as `ActionContract.fade`.
    `at_boundary`: the row taken last is the first of a chunk that took over from one which had
    rows. `consumed`: rows played so far.
    """

    def __init__(self, *, max_latency: float = 0.0, blend_steps: int = 0,
                 ticks_per_row: int = 1,
                 fade: Callable[[Rows, Rows, Rows], Rows] = ActionContract().fade) -> None:
        self._max_latency, self._blend_steps = max_latency, blend_steps
        self._ticks_per_row, self._fade = ticks_per_row, fade
        self._rows = _NONE  # left to play, [n, D], of the chunk of `_stamp`, until `_end`
        self._stamp = self._end = self._not_before = -math.inf
        self._played: deque[float] = deque(maxlen=HISTORY)  # first ticks of rows, ascending
        self._last: tuple[float, NDArray[np.float32]] | None = None
        self._ticks_left = self.consumed = 0
        self._taken_over = self.at_boundary = False

    def put(self, chunk: Chunk) -> str | None:
        """Make a chunk current; return why it was dropped, or None when it was taken."""
        if chunk.stamp < self._not_before:
            return 'observed before the queue was flushed'
        if chunk.stamp <= self._stamp:
            return 'not newer than the chunk being played'
        rows = chunk.values[sum(t >= chunk.stamp - 1e-6 for t in self._played):]
        if not len(rows):
            return 'all its rows are in the past'
        self._taken_over = len(self._rows) > 0
        if n := min(self._blend_steps, len(self._rows), len(rows)):
            weight = np.arange(1, n + 1, dtype=np.float32) / np.float32(n + 1)
            rows = np.concatenate([self._fade(self._rows[:n], rows[:n], weight), rows[n:]])
        self._stamp, self._rows = chunk.stamp, rows
        self._end = chunk.stamp + len(chunk.values) * chunk.period + self._max_latency
        return None

    def take(self, now: float) -> NDArray[np.float32] | None:
        """Return the row [D] due at tick ``now`` and count it; None when there is none.

        The same tick, and further ticks of a row that lasts several, give the same row and count
        nothing. Going back in time without a flush raises `QueueInvariantError`.
        """
        if self._last is not None and now == self._last[0]:
            return self._last[1]
        if self._played and now < self._played[-1]:
            raise QueueInvariantError(
                f'tick {now:.3f} comes before the last played one, {self._played[-1]:.3f}')
        if self._last is not None and self._ticks_left:
            self._ticks_left -= 1
            self._last = (now, self._last[1])
            return self._last[1]
        if not self.remaining(now):
            return None
        row, self._rows = self._rows[0], self._rows[1:]
        self._ticks_left = self._ticks_per_row - 1
        self.at_boundary, self._taken_over = self._taken_over, False
        self.consumed += 1
        self._played.append(now)
        self._last = (now, row)
        return row

    def remaining(self, now: float) -> int:
        """Return how many rows are left to play at ``now``."""
        return len(self._rows) if now < self._end - 1e-6 else 0

    def flush(self, now: float) -> None:
        """Forget all but a chunk observed at ``now``; refuse what was observed before."""
        if abs(self._stamp - now) > 1e-6:
            self._stamp, self._rows = -math.inf, _NONE
        self._not_before, self._last, self._ticks_left = now, None, 0
        self._played.clear()
