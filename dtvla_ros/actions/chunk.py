"""A chunk of actions, its stamp and period."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.conventions import CHANNELS


@dataclass(frozen=True, slots=True)
class Chunk:
    """Actions for consecutive control steps.

    ``stamp`` is the time of the observation they answer [s]; row k is for
    ``stamp + k * period``. ``values`` [T, D] are LIBERO's normalised OSC_POSE actions in
    [-1, 1] (0.05 m and 0.5 rad of goal offset per unit; gripper -1 opens, +1 closes).
    """

    stamp: float
    period: float
    values: NDArray[np.float32]
    channels: tuple[str, ...] = CHANNELS
