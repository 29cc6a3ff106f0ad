"""A graph of its own for every test."""

from support.graph import graph, policy  # noqa: F401
