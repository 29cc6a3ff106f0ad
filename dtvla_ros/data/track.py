"""What was recorded of one topic, searched by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = tuple[int, int, Any]
"""When a message was received, its stamp [ns], what it says."""


class Unusable(ValueError):
    """A message that says nothing: it is left out and counted."""


@dataclass(frozen=True, slots=True)
class Track:
    """Messages of one topic, in the order they were received: times [N] ns, N values."""

    received: NDArray[np.int64]
    stamps: NDArray[np.int64]
    values: list[Any]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Track:
        """Return the rows as a track."""
        times = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
        return cls(times[:, 0], times[:, 1], [row[2] for row in rows])

    def during(self, since: int, until: int) -> Track:
        """Return the messages received from ``since`` on and before ``until`` [ns]."""
        kept = np.flatnonzero((since <= self.received) & (self.received < until))
        return Track(self.received[kept], self.stamps[kept], [self.values[k] for k in kept])

    def spacing(self) -> float:
        """Return the median time between two stamps [ns]; NaN of fewer than two."""
        steps = np.diff(np.unique(self.stamps))
        return float(np.median(steps)) if len(steps) else float('nan')

    def nearest(self, stamps: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
        """Return the index of the message nearest to each time, -1 where none is near [ns]."""
        if not self.values:
            return np.full(len(stamps), -1)
        order = np.argsort(self.stamps, kind='stable')
        known = self.stamps[order]
        after = np.searchsorted(known, stamps)
        before, after = np.maximum(after - 1, 0), np.minimum(after, len(known) - 1)
        best = np.where(stamps - known[before] <= np.abs(known[after] - stamps), before, after)
        return np.where(np.abs(known[best] - stamps) <= tolerance, order[best], -1)
