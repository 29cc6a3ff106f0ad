"""A ROS domain of our own for every test process, and nodes that clean up after themselves."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import rclpy
from rclpy.node import Node

os.environ['ROS_DOMAIN_ID'] = str(random.SystemRandom().randint(1, 100))
PEER = Path(__file__).with_name('peer.py')


# On a machine with both, every peer is once on this process's middleware and once on the other.
INSTALLED = [name for name, module in (('dds', 'cyclonedds'), ('rclpy', 'rclpy'))
             if find_spec(module)]


@pytest.fixture(params=INSTALLED)
def start_peer(request: pytest.FixtureRequest) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``peer.py`` as a second process; it is killed at the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, str(PEER), *arguments], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, 'DTVLA_MIDDLEWARE': request.param,
                                        **environment})
        running.append(process)
        return process
    start.backend = request.param  # type: ignore[attr-defined]
    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def make_node() -> Iterator[Callable[..., Any]]:
    """Initialise with arguments and make nodes; everything is shut down afterwards."""

    nodes: list[Any] = []

    def make(name: str = 'tested', args: tuple[str, ...] = (), kind: Any = None,
             **options: Any) -> Any:
        if not rclpy.ok():
            rclpy.init(args=['test', *args])
        nodes.append((kind or Node)(name, **options))
        return nodes[-1]
    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture
def spin_until() -> Callable[..., bool]:
    """Spin nodes until a condition holds; return whether it did in time."""
    import time


    def spin(condition: Callable[[], Any], *nodes: Any, timeout: float = 20.0) -> bool:
        deadline = time.monotonic() + timeout
        while not condition() and time.monotonic() < deadline:
            for node in nodes:
                rclpy.spin_once(node, timeout_sec=0.01)
        return bool(condition())
    return spin
