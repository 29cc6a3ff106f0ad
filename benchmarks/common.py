"""A graph that no arm can hear, the machine's scheduling delay, and results as tables."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.executors import Executor
from rich.console import Console
from rich.table import Table

from dtvla_ros.errors import UserError
from dtvla_ros.ros.processes import NodeProcesses
from dtvla_ros.ros.run import joined

NAP = 1e-3  # s
REST = 9e-3  # between two naps, so that the measurement costs nothing [s]


@dataclass(frozen=True, slots=True)
class Graph:
    """A node of this process in a ROS domain of its own, and the processes it measures."""

    node: Any
    executor: Executor
    processes: NodeProcesses

    def spin(self, seconds: float) -> None:
        """Run callbacks for so long; raise UserError or NodeDied if a process ended."""
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=min(rest, 0.1))
        self.processes.require_running()

    def spin_until(self, condition: Callable[[], Any], what: str, timeout: float = 30.0) -> None:
        """Run callbacks until a condition holds; raise UserError after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while not condition():
            self.executor.spin_once(timeout_sec=0.1)
            self.processes.require_running()
            if time.monotonic() > end:
                raise UserError(f'{what} did not come within {timeout:g} s: is the machine that '
                                'busy? (see the load average with uptime)')


@contextmanager
def own_graph(factory: Callable[[], Any]) -> Iterator[Graph]:
    """Join a graph on loopback, in a domain of its own; end it with its processes."""
    os.environ.update({
        'ROS_DOMAIN_ID': str(random.SystemRandom().randint(101, 220)),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'ROS_STATIC_PEERS': ''})
    with tempfile.TemporaryDirectory(prefix='dtvla_') as logs, joined(factory) as (
            node, executor), NodeProcesses(Path(logs)) as processes:
        yield Graph(node, executor, processes)


class SchedulingDelay:
    """How late the machine wakes a thread, measured while the block it manages runs."""

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


def delay_line(delay: dict[str, float]) -> str:
    """Return a `SchedulingDelay`'s summary as a sentence."""
    return (f'a thread that sleeps 1 ms woke late by p50 {delay["p50"]:.2f}, p99 '
            f'{delay["p99"]:.2f} ms')


def load_average() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def show(columns: Iterable[str], rows: Iterable[Iterable[Any]], below: str) -> None:
    """Print a table, all columns but the first justified right, and a line below it."""
    first, *others = columns
    table = Table(first)
    for name in others:
        table.add_column(name, justify='right')
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(markup=False)
    console.print(table)
    console.print(below)
