"""Where the third-person camera stands, and where in its image a place appears."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A tight, steep view from the front: the camera looks along -x of the base (REP 103). World [m].
EYE = np.array([0.34, 0.0, 1.62])
TARGET = np.array([-0.14, 0.0, 0.8])
FOVY = 49.0  # vertical field of view [deg]
BASE_POSITION = np.array([-0.56, 0.0, 0.912])  # of the robot in the world [m]


def rotation() -> NDArray[np.float64]:
    """Return the camera's axes in the world as columns [3, 3]: right, up, backwards."""
    back = (EYE - TARGET) / np.linalg.norm(EYE - TARGET)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], axis=1)


def project(points: ArrayLike, size: int) -> NDArray[np.float64]:
    """Return (column, row) [..., 2] in a ``size`` x ``size`` image of world points [..., 3]."""
    seen = (np.asarray(points) - EYE) @ rotation()  # [..., 3] right, up, backwards
    focal = size / 2.0 / np.tan(np.radians(FOVY) / 2.0)
    ahead = -seen[..., 2:]
    return size / 2.0 + focal * seen[..., :2] * [1.0, -1.0] / ahead
