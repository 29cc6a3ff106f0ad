"""A graph of its own for every test, and the other process on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.graph import Graph, graph  # noqa: F401

PEER = Path(__file__).with_name('peer.py')
Start = Callable[..., 'subprocess.Popen[str]']


@pytest.fixture
def start_peer(graph: Graph) -> Iterator[Start]:  # noqa: F811
    """Return what starts ``peer.py`` with a pipe from it; it is killed at the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        running.append(subprocess.Popen(
            [sys.executable, str(PEER), *arguments], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, **environment}))
        return running[-1]
    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def refusal(start_peer: Start) -> Callable[..., str]:
    """Return what starts a peer that must end with code 2 and one line; it returns the line."""
    def refused(*arguments: str, **environment: str) -> str:
        peer = start_peer(*arguments, **environment)
        out, err = peer.communicate(timeout=60)
        assert (peer.returncode, out) == (2, ''), err
        assert err.startswith('error: ') and err.count('\n') == 1, err
        return err
    return refused
