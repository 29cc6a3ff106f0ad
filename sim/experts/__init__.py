"""Scripted experts: they solve the tasks through the action space and write the thought."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..env import TabletopEnv
    from ..libero.env import LiberoEnv
    from .libero import LiberoExpert
    from .tabletop import TabletopExpert


def make_expert(env: TabletopEnv | LiberoEnv) -> TabletopExpert | LiberoExpert:
    """Return the expert for an environment.

    Raises
    ------
    UserError
        If there is none for its suite.

    """
    from ..env import TabletopEnv

    if isinstance(env, TabletopEnv):
        from .tabletop import TabletopExpert

        return TabletopExpert(env)
    from .libero import LiberoExpert

    return LiberoExpert(env)
