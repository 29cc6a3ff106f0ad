"""A graph that no arm can hear, the machine's scheduling delay, and results as tables."""

from __future__ import annotations

import functools
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json
from dtvla_ros.ros.bringup import node_processes
from dtvla_ros.ros.processes import NodeProcesses

if TYPE_CHECKING:
    from rclpy.executors import Executor

DELAY = 'a thread that sleeps 1 ms woke late by p50 {p50:.2f}, p99 {p99:.2f} ms'
NAP = 1e-3  # s
REST = 9e-3  # between two naps, so that the measurement costs nothing [s]
progress = functools.partial(tqdm, leave=False, disable=None)


@dataclass(frozen=True, slots=True)
class Graph:
    """A node of this process in a ROS domain of its own, and the processes it measures."""

    node: Any
    executor: Executor
    processes: NodeProcesses

    def start(self, name: str, *arguments: str) -> None:
        """Start a node of the package with ROS arguments."""
        words = node_processes(simulated=True)[name].ros_arguments()
        self.processes.start(name, f'dtvla_ros.nodes.{name}', [*words, *arguments])

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
    from dtvla_ros.ros.run import joined

    os.environ.update({
        'ROS_DOMAIN_ID': str(random.SystemRandom().randint(101, 220)),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'ROS_STATIC_PEERS': ''})
    with tempfile.TemporaryDirectory(prefix='dtvla_') as logs, joined(factory) as (
            node, executor), NodeProcesses(Path(logs)) as processes:
        yield Graph(node, executor, processes)


@contextmanager
def scheduling_delay() -> Iterator[dict[str, float]]:
    """Give median and 99th percentile [ms] of how late a thread wakes, known after the block."""
    late, over, found = [0.0], threading.Event(), dict[str, float]()

    def measure() -> None:
        while not over.wait(REST):
            start = time.perf_counter()
            time.sleep(NAP)
            late.append((time.perf_counter() - start - NAP) * 1e3)

    thread = threading.Thread(target=measure, name='delay', daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found['p50'], found['p99'] = np.percentile(late, [50, 99]).round(3).tolist()


def load_average() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def show(columns: Iterable[str], rows: Iterable[Iterable[Any]], below: str,
         json_file: Path | None, result: Mapping[str, Any]) -> None:
    """Print a table, all columns but the first justified right, and a line below it.

    ``result`` is written to ``json_file``, where there is one.
    """
    table = Table()
    for name in columns:
        table.add_column(name, justify='right' if table.columns else 'left', overflow='fold')
    for row in rows:
        table.add_row(*map(str, row))
    Console(markup=False).print(table, below, sep='\n')
    write_json(json_file, result)
