"""Jumps of the commanded velocity at chunk boundaries and inside chunks."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

KEPT = 512  # changes of each kind that the medians are taken of
# Keys of `gate_state`, by whether a chunk took over: median jump, rows, backward rows.
KEYS = {True: ('seam_jump', 'seams', 'backward_seams'),
        False: ('inside_jump', 'insides', 'backward_insides')}


class ContinuityMeter:
    """Changes of the commanded velocity [m/s] from row to row; backward ones reverse it.

    Of an arm that is commanded by its joints it is theirs [rad/s].
    """

    def __init__(self) -> None:
        self._jumps: dict[str, deque[float]] = {
            jump: deque(maxlen=KEPT) for jump, _, _ in KEYS.values()}
        self._counts: Counter[str] = Counter()
        self._last: NDArray[np.float64] | None = None

    def pause(self) -> None:
        """Note that the arm stood still: what comes next has no neighbour."""
        self._last = None

    def add(self, velocity: ArrayLike, boundary: bool) -> None:
        """Take the velocity [3] or [J] of the next row as it was commanded."""
        speed = np.asarray(velocity, np.float64)
        last, self._last = self._last, speed
        if last is None:
            return
        jump, rows, backward = KEYS[boundary]
        self._jumps[jump].append(float(np.linalg.norm(speed - last)))
        self._counts[rows] += 1
        self._counts[backward] += bool(speed @ last < 0)

    def summary(self) -> dict[str, float]:
        """Return medians and counts for `gate_state`; empty before there are both kinds."""
        if not all(self._jumps.values()):
            return {}
        medians = {key: float(np.median(jumps)) for key, jumps in self._jumps.items()}
        return {**medians, **self._counts}
