"""What the policy sees at one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Observation:
    """One synchronised look at the world.

    ``images``: named uint8 RGB [H, W, 3], upright as the camera sees ('primary', 'wrist').
    ``joint_positions``: by joint name [rad, m for fingers]. ``ee_position`` [3] m and
    ``ee_quaternion`` [4] xyzw: gripper site in the robot base frame (REP 103).
    ``gripper_opening``: distance between the finger pads [m]. ``stamp`` [s].
    """

    images: Mapping[str, NDArray[np.uint8]]
    joint_positions: Mapping[str, float]
    ee_position: NDArray[np.float64]
    ee_quaternion: NDArray[np.float64]
    gripper_opening: float
    instruction: str
    stamp: float
