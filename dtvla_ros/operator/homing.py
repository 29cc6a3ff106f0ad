"""The way back to where an episode began, as twists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

GAIN = 4.0  # velocity per distance [1/s]
ABOVE = 0.02  # distance from home in the plane from which the arm may come down [m]
TURN = 2.5  # rad/s for 1 m/s of the speed


class Pose(NamedTuple):
    """Position [3] m and quaternion [4] xyzw in the base frame."""

    position: NDArray[np.float64]
    quaternion: NDArray[np.float64]


def read_pose(value: object) -> Pose | None:
    """Return the pose that seven numbers are, None for anything else."""
    try:
        row = np.array(value, np.float64)
    except (TypeError, ValueError):
        return None
    if row.shape != (7,) or not np.isfinite(row).all() or not row[3:].any():
        return None
    return Pose(row[:3], row[3:])


def way_home(home: Pose, at: Pose, speed: float) -> NDArray[np.float64]:
    """Return the twist [6] (m/s, rad/s, base axes) that leads home, no faster than ``speed`` m/s.

    An arm that is lower than its home rises first; one that is higher comes down above it.
    """
    offset = home.position - at.position
    if np.linalg.norm(offset[:2]) > ABOVE:
        if offset[2] > ABOVE:
            offset[:2] = 0.0
        else:
            offset[2] = 0.0
    turn = (Rotation.from_quat(home.quaternion) * Rotation.from_quat(at.quaternion).inv()
            ).as_rotvec()
    return np.concatenate([_bounded(GAIN * offset, speed), _bounded(GAIN * turn, TURN * speed)])


def _bounded(vector: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    return vector * min(1.0, most / max(float(np.linalg.norm(vector)), 1e-9))
