"""The clock of a run: how long it takes, whether to save, whether it was asked to stop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from accelerate import Accelerator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dtvla_ros.interrupt import Stop

T = TypeVar('T')
TIMED = 1  # step, after one that is not counted
SAVING = 0.1  # largest share of the time that checkpoints take


class Clock:
    """Counts everything from its making on, the same in all processes.

    ``seconds``: of the whole run, earlier commands included. ``stop``: what a signal sets;
    ``stopped``: whether any process had been asked when ``lap`` was last called.
    """

    def __init__(self, accelerator: Accelerator, every: float):
        """Ask for a checkpoint ``every`` so many minutes, or seldomer where it takes long."""
        self.seconds = 0.0
        self.stop: Stop | bool = False
        self.stopped = False
        self._accelerator, self._every = accelerator, 60.0 * every
        self._last = time.perf_counter()
        self._unsaved = self._cost = 0.0

    def lap(self) -> None:
        """Count the time since the last lap. All processes must call it, or none."""
        now = time.perf_counter()
        spent, stopping, self._cost = self._accelerator.reduce(torch.tensor(
            [now - self._last, float(bool(self.stop)), self._cost],
            device=self._accelerator.device), 'mean').tolist()
        self._last, self.stopped = now, stopping > 0.0
        self.seconds += spent
        self._unsaved += spent

    @property
    def save_due(self) -> bool:
        return self._unsaved >= max(self._every, self._cost / SAVING)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure how long a checkpoint takes."""
        begun = time.perf_counter()
        yield
        self._cost, self._unsaved = time.perf_counter() - begun, 0.0


def step_seconds(make: Callable[[], T], compute: Callable[[T], None], loaders: int,
                 device: torch.device) -> float:
    """Return about how long a step takes whose batch ``loaders`` processes make meanwhile."""
    making = computing = 0.0
    for number in range(1 + TIMED):  # as many in all processes, which wait for each other
        begun = time.perf_counter()
        batch = make()
        made = time.perf_counter()
        compute(batch)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        if number:
            making += (made - begun) / TIMED
            computing += (time.perf_counter() - made) / TIMED
    if not loaders:
        return making + computing
    cores = len(os.sched_getaffinity(0))
    shared = computing + making / cores if device.type == 'cpu' else computing
    return max(shared, making / loaders)
