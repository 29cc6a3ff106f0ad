"""Learning rates over a run, as factors on the peak rate."""

from __future__ import annotations

import math

from dtvla_ros.errors import UserError


def warm_cosine(step: int, ramp: int, progress: float, floor: float) -> float:
    """Return min(1, (step + 1) / ramp) times a cosine from 1 at ``progress`` 0 to ``floor`` at 1.

    ``progress`` may be measured by the clock; beyond 1 the factor stays at ``floor``.
    """
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / max(ramp, 1)) * (floor + (1.0 - floor) * cosine)


def warm_then_cosine(step: int, total: int, warmup: int, floor: float) -> float:
    """Return the published schedule's factor at ``step`` of ``total``.

    Linear from 1 / (warmup + 1) at step 0 to 1 at step ``warmup``, only then a cosine that ends
    at ``floor`` (DeepThinkVLA: 1000 of 150,005 steps, floor 0.1).
    """
    if not 0 <= warmup < total:
        raise UserError(f'warm-up of {warmup} steps in a run of {total}')
    progress = max(step - warmup, 0) / (total - warmup)
    return warm_cosine(step, warmup + 1, progress, floor)
