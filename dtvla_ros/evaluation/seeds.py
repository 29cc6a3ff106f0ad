"""Which start states an evaluation may use."""

from __future__ import annotations

import dtvla_sim
from dtvla_ros.errors import UserError


def evaluation_seed(seed: int | None) -> int:
    """Return ``seed``, or the first evaluation seed for None.

    Raises
    ------
    UserError
        If demonstrations may have begun from it.

    """
    first = dtvla_sim.EVAL_SEED_START
    if seed is None:
        return first
    if seed < first:
        raise UserError(f'seed {seed}: start states below {first} belong to the demonstrations; '
                        f'use {first} or more')
    return seed
