"""What the gate hands to the adapter of an arm that is commanded by its joints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class JointCommand:
    """Where J joints shall be one control period after a tick; there is one for every tick.

    The same for policies that choose positions and for those that choose offsets: within every
    limit, and no further from the command before it than the limits allow. At rest (waiting, STOP,
    FAULT) the positions stay what they are and the velocities are 0, so that an arm which holds
    its last target stands still. There is none before the joints were first measured.

    ``stamp``, ``period``: of the tick and until the next [s]. ``names``: the joints, in the order
    of the gate's parameter ``arm_joints``. ``positions`` [J] rad or m, ``velocities`` [J] rad/s or
    m/s: of the command between the two ticks. ``gripper``: -1 open, +1 closed, 0 no command yet.
    ``moving``: whether a row is being played, or the arm still brakes. ``first_tick``: the tick is
    the first one of its row.
    """

    stamp: float
    period: float
    names: tuple[str, ...]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    gripper: float
    moving: bool
    first_tick: bool = True
