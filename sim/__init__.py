"""MuJoCo scenes that look like a robot with cameras: the tabletop suite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtvla_ros.errors import UserError

if TYPE_CHECKING:
    from .env import TabletopEnv

SUITES = ('tabletop',)
# Demonstrations and rollouts for training use seeds below this, evaluations the rest.
EVAL_SEED_START = 1_000_000


def make(suite: str, **options: Any) -> TabletopEnv:
    """Build a suite's environment. One environment per process.

    Raises
    ------
    UserError
        If the suite is unknown or no software renderer is installed.

    """
    if suite not in SUITES:
        raise UserError(f'unknown suite "{suite}"; there is: {", ".join(SUITES)}')
    from .env import TabletopEnv

    return TabletopEnv(**options)
