"""Where the third-person camera stands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
