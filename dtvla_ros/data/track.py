"""What was recorded of one topic, searched by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.conventions import CONTROL_RATE

Row = tuple[int, int, Any]
"""When a message was received, its stamp [ns], what it says."""


ANOTHER = 1.5
"""Times a rate: another one, not the same with jitter."""
BREAK = 4.0
"""Control periods that only a new episode leaves out."""
SLACK = 500_000_000
"""How far apart what belongs together may be received, out of order [ns]."""


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

    def runs(self, period: float) -> list[slice]:
        """Return the parts in which stamps neither go back nor leave out `BREAK` periods [ns]."""
        steps = np.diff(self.stamps)
        inner = np.flatnonzero((steps < 0) | (steps > BREAK * period)) + 1
        edges = [0, *inner.tolist(), len(self.stamps)]
        return [slice(first, last) for first, last in zip(edges, edges[1:]) if last > first]

    def control_period(self, rate: int | None) -> int:
        """Return the period [ns] to which messages are to be thinned, 0 if they are as few.

        ``rate`` [Hz] of the actions; None: `CONTROL_RATE`. One that they do not reach is for
        others to refuse.
        """
        period = 1e9 / (rate or CONTROL_RATE)
        return round(period) if period >= ANOTHER * self.spacing() else 0

    def at_rate(self, rate: int | None) -> Track:
        """Return the messages, thinned where they come faster than ``rate``, as above."""
        period = self.control_period(rate)
        return self.thinned(period) if period else self

    def thinned(self, period: int) -> Track:
        """Return of every ``period`` [ns] of a run the message nearest to it, so stamped."""
        kept, stamps = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        for run in self.runs(period):
            since = self.stamps[run] - self.stamps[run][0]
            number = np.rint(since / period).astype(np.int64)
            order = np.lexsort((np.abs(since - number * period), number))
            wanted, first = np.unique(number[order], return_index=True)
            kept.append(run.start + order[first])
            stamps.append(self.stamps[run][0] + wanted * period)
        places = np.concatenate([np.zeros(0, np.int64), *kept])
        return Track(self.received[places], np.concatenate([np.zeros(0, np.int64), *stamps]),
                     [self.values[k] for k in places])

    def before(self, other: Track) -> NDArray[np.int64]:
        """Return the index of the message stamped last before each one of ``other``, -1: none.

        Clocks start anew: it is the one received last, of those stamped no later.
        """
        found = np.searchsorted(self.received, other.received + SLACK, side='right') - 1
        for k, stamp in enumerate(other.stamps.tolist()):
            while found[k] >= 0 and self.stamps[found[k]] > stamp:
                found[k] -= 1
        return found

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
