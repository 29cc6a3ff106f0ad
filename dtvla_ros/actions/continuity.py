"""Jumps of the commanded velocity at chunk boundaries and inside chunks."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions import osc

KEPT = 512  # changes of each kind that the medians are taken of


class ContinuityMeter:
    """Changes of the commanded velocity [m/s] between neighbouring rows.

    ``boundary``: where a chunk took over from one that still had rows; ``inside``: elsewhere.
    A backward step is a row that moves against the one before.
    """

    def __init__(self) -> None:
        self.boundary: deque[float] = deque(maxlen=KEPT)
        self.inside: deque[float] = deque(maxlen=KEPT)
        self.boundaries = self.backward_boundaries = self.insides = self.backward_insides = 0
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
        jump = float(np.linalg.norm(speed - last))
        backward = float(speed @ last) < 0
        if boundary:
            self.boundary.append(jump)
            self.boundaries += 1
            self.backward_boundaries += backward
        else:
            self.inside.append(jump)
            self.insides += 1
            self.backward_insides += backward

    def summary(self) -> dict[str, float]:
        """Return medians [m/s] and counts for `gate_state`; empty before there are both kinds."""
        if not self.boundary or not self.inside:
            return {}
        return {'seam_jump': float(np.median(self.boundary)),
                'inside_jump': float(np.median(self.inside)), 'seams': self.boundaries,
                'backward_seams': self.backward_boundaries, 'insides': self.insides,
                'backward_insides': self.backward_insides}
