"""Projects world points into a camera's image, and finds what cannot appear in it."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

PLANE, BOX = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_BOX)


def project(model: mujoco.MjModel, data: mujoco.MjData, camera: str,
            points: ArrayLike) -> NDArray[np.float64]:
    """Return (across, down) [..., 2] of world points [..., 3] in a camera's square image.

    Fractions of the image from its upper left corner; NaN for points behind the camera. A MuJoCo
    camera looks along its -z, x to the right, y up.
    """
    number = model.camera(camera).id
    seen = _from_camera(data, number, np.asarray(points, np.float64))  # [..., 3]
    focal = 0.5 / np.tan(np.radians(model.cam_fovy[number]) / 2.0)
    ahead = np.where(seen[..., 2:] < 0.0, -seen[..., 2:], np.nan)
    return 0.5 + focal * seen[..., :2] * [1.0, -1.0] / ahead


def _from_camera(data: mujoco.MjData, number: int,
                 points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return world points [..., 3] in the camera's own axes: right, up, backwards."""
    seen: NDArray[np.float64] = (
        (points - data.cam_xpos[number]) @ data.cam_xmat[number].reshape(3, 3))
    return seen


def unseen(model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> NDArray[np.bool_]:
    """Return which geoms [ngeom] appear nowhere in a camera's square image, mirrors included.

    By their bounding spheres; a geom without bounds is always kept. What is unseen may still
    throw a shadow into the image.
    """
    number = model.camera(camera).id
    radius = np.where(model.geom_rbound > 0.0, model.geom_rbound, np.inf)
    half = np.radians(model.cam_fovy[number]) / 2.0

    def outside(centres: NDArray[np.float64]) -> NDArray[np.bool_]:
        x, y, z = _from_camera(data, number, centres).T  # [ngeom] each
        across = np.maximum(np.abs(x), np.abs(y))  # the four planes through the camera
        return np.maximum(across * np.cos(half) + z * np.sin(half), z) > radius

    hidden = outside(data.geom_xpos)
    for mirror in mirrors(model):
        if hidden[mirror]:
            continue
        normal = data.geom_xmat[mirror].reshape(3, 3)[:, 2]
        face = data.geom_xpos[mirror] + normal * (
            model.geom_size[mirror, 2] if model.geom_type[mirror] == BOX else 0.0)
        above = (data.geom_xpos - face) @ normal  # [ngeom]
        hidden &= outside(data.geom_xpos - 2.0 * above[:, None] * normal)
    return hidden


def mirrors(model: mujoco.MjModel) -> NDArray[np.intp]:
    """Return the geoms in whose upper face MuJoCo draws reflections."""
    shiny = np.append(model.mat_reflectance, 0.0)[model.geom_matid] > 0.0  # -1: no material
    return np.flatnonzero(shiny & np.isin(model.geom_type, (PLANE, BOX)))
