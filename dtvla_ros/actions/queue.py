"""The queue of a chunk's rows: which one is due at a control tick, and how many were played."""

from __future__ import annotations

import math
import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions.chunk import Chunk

HISTORY = 1024  # ticks remembered; at 100 Hz more than any sane decision takes


class QueueInvariantError(RuntimeError):
    """The queue would have played a row twice, out of order, or of the wrong chunk."""


class ChunkQueue:
    """Hands out one row per control tick and counts what was really played.

    A row counts as consumed only when a tick played it: a chunk that answers the observation
    of time s starts at the row after those played since s, because actions are offsets from
    the measured pose and an arm that waited has not used any of them.

    ``max_latency``: a chunk whose age exceeds its own length by more than this is dropped [s].
    ``blend_steps``: rows over which a new chunk is faded in where the old one still had rows.
    ``ticks_per_row``: control ticks that one row lasts, where the control rate is a multiple of
    the chunks'. `at_boundary`: the row taken last is the first of a chunk that took over from one
    which still had rows. `consumed`: rows played so far.
    """

    def __init__(self, *, max_latency: float = 0.0, blend_steps: int = 0,
                 ticks_per_row: int = 1) -> None:
        if max_latency < 0 or blend_steps < 0 or ticks_per_row < 1:
            raise ValueError(f'max_latency {max_latency} and blend_steps {blend_steps} must be '
                             f'>= 0, ticks_per_row {ticks_per_row} >= 1')
        self._ticks_per_row = ticks_per_row
        self._lock = threading.Lock()
        self._max_latency = max_latency
        self._blend_steps = blend_steps
        self._chunk: Chunk | None = None
        self._cursor = 0
        self._not_before = -math.inf
        self._played: deque[float] = deque(maxlen=HISTORY)  # first ticks of rows, ascending
        self._last: tuple[float, NDArray[np.float32]] | None = None
        self._ticks_left = 0
        self._taken_over = False
        self.consumed = 0
        self.at_boundary = False

    def put(self, chunk: Chunk) -> str | None:
        """Make a chunk current; return why it was dropped, or None when it was taken."""
        with self._lock:
            if chunk.stamp < self._not_before:
                return 'observed before the queue was flushed'
            if self._chunk is not None and chunk.stamp <= self._chunk.stamp:
                return 'not newer than the chunk being played'
            start = sum(1 for t in self._played if t >= chunk.stamp - 1e-6)
            if start >= len(chunk.values):
                return 'all its rows are in the past'
            self._taken_over = self._chunk is not None and self._cursor < len(self._chunk.values)
            self._chunk = self._faded(chunk, start)
            self._cursor = start
            return None

    def take(self, now: float) -> NDArray[np.float32] | None:
        """Return the row [D] due at tick ``now`` and count it; None when there is none.

        Asking again for the same tick gives the same row and counts nothing, as do the further
        ticks of a row that lasts several. Going back in time without a flush raises
        `QueueInvariantError`.
        """
        with self._lock:
            if self._last is not None and now == self._last[0]:
                return self._last[1]
            if self._played and now < self._played[-1]:
                raise QueueInvariantError(
                    f'tick {now:.3f} comes before the last played one, {self._played[-1]:.3f}')
            if self._last is not None and self._ticks_left:
                self._ticks_left -= 1
                self._last = (now, self._last[1])
                return self._last[1]
            chunk = self._current(now)
            if chunk is None:
                return None
            row = chunk.values[self._cursor]
            self._cursor += 1
            self._ticks_left = self._ticks_per_row - 1
            self.at_boundary, self._taken_over = self._taken_over, False
            self.consumed += 1
            self._played.append(now)
            self._last = (now, row)
            return row

    def remaining(self, now: float) -> int:
        """Return how many rows are left to play at ``now``."""
        with self._lock:
            chunk = self._current(now)
            return 0 if chunk is None else len(chunk.values) - self._cursor

    def flush(self, now: float) -> None:
        """Forget all but a chunk observed at ``now``; refuse what was observed before."""
        with self._lock:
            if self._chunk is not None and abs(self._chunk.stamp - now) > 1e-6:
                self._chunk = None
                self._cursor = 0
            self._not_before = now
            self._played.clear()
            self._last = None
            self._ticks_left = 0

    def _current(self, now: float) -> Chunk | None:
        chunk = self._chunk
        if chunk is None:
            return None
        if not 0 <= self._cursor <= len(chunk.values):
            raise QueueInvariantError(f'cursor {self._cursor} in a chunk of {len(chunk.values)}')
        end = chunk.stamp + len(chunk.values) * chunk.period + self._max_latency
        if self._cursor == len(chunk.values) or now >= end - 1e-6:
            return None
        return chunk

    def _faded(self, chunk: Chunk, start: int) -> Chunk:
        old = self._chunk
        if old is None or self._blend_steps == 0:
            return chunk
        rest = old.values[self._cursor:]
        n = min(self._blend_steps, len(rest), len(chunk.values) - start)
        if n == 0:
            return chunk
        weight = (np.arange(1, n + 1, dtype=np.float32) / (n + 1))[:, None]  # [n, 1]
        values = chunk.values.copy()
        faded = slice(start, start + n)
        # The gripper channel is a switch: half open is not between open and closed.
        values[faded, :6] = (1 - weight) * rest[:n, :6] + weight * values[faded, :6]
        return Chunk(chunk.stamp, chunk.period, values, chunk.channels)
