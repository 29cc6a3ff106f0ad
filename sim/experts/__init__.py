"""Scripted experts, which solve the tasks through the action space and write thoughts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import TABLETOPS

if TYPE_CHECKING:
    from numpy.random import Generator

    from ..env import ArmEnv, LazyObservation
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


def arrange(env: ArmEnv, rng: Generator) -> tuple[LazyObservation, bool]:
    """Move objects so that the present task is done, in part or nearly, and let them settle.

    Returns the observation, and whether the gripper was brought to where it ends its work.

    Raises UserError if there is no expert for a goal of the task.
    """
    if env.suite in TABLETOPS:
        return env.arrange(rng), False
    from .arranging import arrange as arrange_libero

    return arrange_libero(env, rng)
