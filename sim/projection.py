"""Where in a camera's image a place of the world appears."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray


def project(
    model: mujoco.MjModel, data: mujoco.MjData, camera: str, points: ArrayLike,
) -> NDArray[np.float64]:
    """Return (across, down) [..., 2] of world points [..., 3] in a camera's square image.

    Fractions of the image from its upper left corner; NaN for points behind the camera. A MuJoCo
    camera looks along its -z, x to the right, y up.
    """
    number = model.camera(camera).id
    axes = data.cam_xmat[number].reshape(3, 3)  # columns: right, up, backwards
    seen = (np.asarray(points, np.float64) - data.cam_xpos[number]) @ axes  # [..., 3]
    focal = 0.5 / np.tan(np.radians(model.cam_fovy[number]) / 2.0)
    ahead = np.where(seen[..., 2:] < 0.0, -seen[..., 2:], np.nan)
    return 0.5 + focal * seen[..., :2] * [1.0, -1.0] / ahead
