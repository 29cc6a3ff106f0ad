"""Scripted experts: they solve the tasks through the action space and write the thought."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..env import TabletopEnv
    from .tabletop import TabletopExpert


def make_expert(env: TabletopEnv) -> TabletopExpert:
    """Return the expert for an environment."""
    from .tabletop import TabletopExpert

    return TabletopExpert(env)
