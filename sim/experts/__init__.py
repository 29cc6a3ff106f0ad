"""Scripted experts, which solve the tasks through the action space and write thoughts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import TABLETOPS

if TYPE_CHECKING:
    from ..env import ArmEnv
    from .libero import LiberoExpert
    from .tabletop import TabletopExpert


def make_expert(env: ArmEnv) -> TabletopExpert | LiberoExpert:
    """Return the expert for an environment.

    Raises UserError if there is none for its suite.
    """
    if env.suite in TABLETOPS:
        from .tabletop import TabletopExpert

        return TabletopExpert(env)
    from .libero import LiberoExpert

    return LiberoExpert(env)
