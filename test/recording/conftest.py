"""A graph of its own for every test that starts processes."""

from test.nodes.conftest import graph, policy  # noqa: F401
