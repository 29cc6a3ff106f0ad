"""Jumps of the commanded velocity at chunk boundaries and inside chunks."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions import osc

KEPT = 512  # changes of each kind that the medians are taken of


class ContinuityMeter:
    """Changes of the commanded velocity [m/s] between neighbouring rows.

    'seam': where a chunk took over from one that still had rows; 'inside': elsewhere. A backward
    step is a row that moves against the one before.
    """

    def __init__(self) -> None:
        self._jumps: dict[str, deque[float]] = {
            kind: deque(maxlen=KEPT) for kind in ('seam', 'inside')}
        self._counts: Counter[str] = Counter()
        self._last: NDArray[np.float64] | None = None

    def pause(self) -> None:
        """Note that the arm stood still: what comes next has no neighbour."""
        self._last = None

    def add(self, action: ArrayLike, boundary: bool) -> None:
        """Take the normalised action [>=6] of the next row as it was commanded."""
        speed = osc.velocity(action)[:3]
        last, self._last = self._last, speed
        if last is None:
            return
        kind = 'seam' if boundary else 'inside'
        self._jumps[kind].append(float(np.linalg.norm(speed - last)))
        self._counts[f'{kind}s'] += 1
        self._counts[f'backward_{kind}s'] += bool(speed @ last < 0)

    def summary(self) -> dict[str, float]:
        """Return medians [m/s] and counts for `gate_state`; empty before there are both kinds."""
        if not all(self._jumps.values()):
            return {}
        medians = {f'{kind}_jump': float(np.median(j)) for kind, j in self._jumps.items()}
        return {**medians, **self._counts}
