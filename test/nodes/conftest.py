"""A graph of its own for every test, and what nodes print when they refuse."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
from support.graph import Graph, graph, policy  # noqa: F401


@pytest.fixture
def refusal(graph: Graph, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:  # noqa: F811
    """Return what runs a node here that must end with code 2; it returns its last line."""
    def refused(name: str, *arguments: str) -> str:
        assert import_module(f'dtvla_ros.nodes.{name}').main(['--ros-args', *arguments]) == 2
        printed = capfd.readouterr().err
        assert 'Traceback' not in printed
        line = printed.splitlines()[-1]
        assert line.startswith('error: '), printed
        return line
    return refused
