"""Where places in the base frame are in a camera's image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

MODELS = ('plumb_bob', 'rational_polynomial', '')  # of distortion, as OpenCV has them
NEAREST = 0.02  # before the camera; what is nearer cannot be drawn [m]
RADIUS = 0.03  # of the ring around a named place [m]
RING = np.stack([np.cos(turn := np.linspace(0.0, 2.0 * np.pi, 25)), np.sin(turn), 0.0 * turn], 1)


@dataclass(frozen=True, slots=True)
class Lens:
    """How a camera projects: ``matrix`` [3, 3] px, ``distortion`` [N], image ``size`` (w, h)."""

    matrix: NDArray[np.float64]
    distortion: NDArray[np.float64]
    size: tuple[int, int]

    @property
    def sound(self) -> bool:
        """Whether it is calibrated."""
        return bool(min(self.size) > 0 and self.matrix[0, 0] > 0 and self.matrix[1, 1] > 0
                    and np.isfinite(self.matrix).all() and np.isfinite(self.distortion).all())


def project(points: NDArray[np.float64], lens: Lens, position: NDArray[np.float64],
            rotation: Rotation) -> list[list[float] | None]:
    """Return (across, down) of points [n, 3] m as fractions of the image; None behind the camera.

    ``position`` [3] m and ``rotation``: of the camera's optical frame (REP 103) in the frame of
    the points. Pixel centres are whole numbers.
    """
    seen = rotation.inv().apply(points - position)
    ahead = seen[:, 2] > NEAREST
    seen[~ahead] = 0.0, 0.0, 1.0
    pixels, _ = cv2.projectPoints(seen, np.zeros(3), np.zeros(3), lens.matrix, lens.distortion)
    fractions = (pixels[:, 0] + 0.5) / lens.size
    return [[round(float(u), 4), round(float(v), 4)] if good else None
            for (u, v), good in zip(fractions, ahead)]


def ring(x: float, y: float, z: float) -> NDArray[np.float64]:
    """Return the points [25, 3] m of a level ring around a place [m]."""
    return np.array([x, y, z]) + RADIUS * RING
