"""A nameless node that joins a running graph for a while: it looks, listens and speaks."""

from __future__ import annotations

import difflib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rclpy.executors import Executor
from rclpy.node import Node

from dtvla_ros.ros import environment
from dtvla_ros.ros.run import joined


class Guest:
    """What a short command needs of the graph."""

    def __init__(self, node: Node, executor: Executor) -> None:
        self.node, self._executor = node, executor

    def until(self, condition: Callable[[], Any], timeout: float = math.inf) -> Any:
        """Spin until the condition is true or the timeout [s] is over; return its last value."""
        end = time.monotonic() + timeout
        while not (value := condition()) and time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)
        return value

    def where(self, topic: str, count: Callable[[str], int]) -> str:
        """Return topics of a similar name of which ``count`` counts some, and what is there."""
        there = [name for name, _ in self.node.get_topic_names_and_types()
                 if name != topic and count(name)]
        leaf = topic.rpartition('/')[2]
        near = ([name for name in there if name.rpartition('/')[2] == leaf]
                or difflib.get_close_matches(topic, there))
        nodes = sorted(name for name in self.node.get_node_names() if not name.startswith('_'))
        return (f'did you mean {" or ".join(near)}? ' if near else '') + (
            f'nodes found with {environment.scope()}: {", ".join(nodes) or "none"}')


@contextmanager
def visit() -> Iterator[Guest]:
    """Join the graph. Ctrl-C and SIGTERM raise KeyboardInterrupt. Errors as of `run.joined`."""
    with joined(lambda: Node(f'_dtvla_{os.getpid()}', use_global_arguments=False)) as made:
        yield Guest(*made)
