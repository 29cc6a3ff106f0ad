"""Time-outs of inputs on the steady clock."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Watchdog:
    """Ages of named inputs on the steady clock (``time.monotonic``), which callers pass in.

    ``timeouts`` [s] by name, 0: not watched. ``own_period`` [s]: how often `late` is called; after
    a suspension of three periods nobody is late, and the clocks start again.
    """

    def __init__(self, timeouts: Mapping[str, float], own_period: float) -> None:
        self.timeouts = {name: t for name, t in timeouts.items() if t > 0}
        self._fed: dict[str, float] = {}
        self._called: float | None = None
        self._own_period = own_period

    def feed(self, name: str, steady: float) -> None:
        """Note that ``name`` gave a sign of life at ``steady`` [s]."""
        self._fed[name] = steady

    def age(self, name: str, steady: float) -> float:
        """Return the seconds since ``name`` was fed; infinite when it never was."""
        return steady - self._fed.get(name, -math.inf)

    def late(self, steady: float) -> list[str]:
        """Return the watched names whose age exceeds their timeout, latest first."""
        if self._called is not None and steady - self._called > 3 * self._own_period:
            lost = steady - self._called - self._own_period
            self._fed = {name: fed + lost for name, fed in self._fed.items()}
        self._called = steady
        late = [n for n, t in self.timeouts.items() if self.age(n, steady) > t]
        return sorted(late, key=lambda n: -self.age(n, steady))
