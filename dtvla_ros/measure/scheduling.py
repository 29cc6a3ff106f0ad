"""How late the machine itself wakes a thread: what no program can be faster than."""

from __future__ import annotations

import threading
import time

import numpy as np

NAP = 1e-3  # s
REST = 9e-3  # between two naps, so that the measurement costs nothing [s]


class SchedulingDelay:
    """Measures in a thread of its own, while the block it manages runs."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, name='delay', daemon=True)

    def __enter__(self) -> SchedulingDelay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _measure(self) -> None:
        while not self._over.wait(REST):
            start = time.perf_counter()
            time.sleep(NAP)
            self._late.append((time.perf_counter() - start - NAP) * 1e3)

    def summary(self) -> dict[str, float]:
        """Return median and 99th percentile of the delays so far [ms]."""
        p50, p99 = np.percentile(self._late or [0.0], [50, 99])
        return {'p50': round(float(p50), 3), 'p99': round(float(p99), 3)}
