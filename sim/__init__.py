"""MuJoCo scenes that look like a robot with cameras: the tabletop suite, and LIBERO's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtvla_ros.errors import UserError

if TYPE_CHECKING:
    from .env import TabletopEnv
    from .libero.env import LiberoEnv

LIBERO_SUITES = ('libero_spatial', 'libero_object', 'libero_goal', 'libero_10', 'libero_90')
SUITES = ('tabletop', *LIBERO_SUITES)
# Demonstrations and rollouts for training use seeds below this, evaluations the rest.
EVAL_SEED_START = 1_000_000


def make(suite: str, **options: Any) -> TabletopEnv | LiberoEnv:
    """Build a suite's environment. One environment per process.

    Raises
    ------
    UserError
        If the suite is unknown or not installed, or no software renderer is installed.

    """
    if suite not in SUITES:
        raise UserError(f'unknown suite "{suite}"; there is: {", ".join(SUITES)}')
    if suite in LIBERO_SUITES:
        from .libero.env import LiberoEnv

        return LiberoEnv(suite, **options)
    from .env import TabletopEnv

    return TabletopEnv(**options)
