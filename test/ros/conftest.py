"""A ROS domain of our own for every test process, and nodes that clean up after themselves."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from rclpy.executors import Executor
from rclpy.node import Node

from dtvla_ros.ros.environment import prepare
from dtvla_ros.ros.run import make_executor

PEER = Path(__file__).with_name('peer.py')

os.environ['ROS_DOMAIN_ID'] = str(random.SystemRandom().randint(1, 100))
prepare()


@pytest.fixture
def start_peer() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``peer.py`` as a second process; it is killed at the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, str(PEER), *arguments], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, **environment})
        running.append(process)
        return process
    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def executor() -> Iterator[Executor]:
    """Initialise rclpy; the executor's nodes are destroyed afterwards."""
    rclpy.init(args=['test'])
    executor = make_executor()
    yield executor
    nodes = executor.get_nodes()
    executor.shutdown()
    for node in nodes:
        node.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture
def make_node(executor: Executor) -> Callable[..., Node]:
    """Make a node that `spin_until` spins."""
    def make(name: str = 'tested') -> Node:
        node = Node(name)
        executor.add_node(node)
        return node
    return make


@pytest.fixture
def spin_until(executor: Executor) -> Callable[..., bool]:
    """Spin the nodes until a condition holds; return whether it did in time."""
    def spin(condition: Callable[[], Any], timeout: float = 60.0) -> bool:
        deadline = time.monotonic() + timeout
        while not condition() and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.02)
        return bool(condition())
    return spin
