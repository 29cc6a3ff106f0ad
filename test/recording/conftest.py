"""A graph of its own for every test that starts processes."""

from support.graph import graph, policy  # noqa: F401
