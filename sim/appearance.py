"""What a scene looks like: the parts of MuJoCo's model that only cameras notice."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .env import mujoco  # a renderer is chosen there

RGB = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
BACKGROUND = re.compile('table|floor|wall')
_MODEL = ('cam_pos', 'cam_quat', 'cam_fovy', 'light_pos', 'light_dir', 'light_diffuse',
          'light_ambient', 'light_specular', 'geom_rgba', 'geom_matid')
_HEADLIGHT = ('ambient', 'diffuse', 'specular')


def arrays(model: mujoco.MjModel) -> list[NDArray]:
    """Return the model's own arrays of cameras, lights and surfaces, without textures."""
    return [getattr(model, name) for name in _MODEL] + headlight(model)


def headlight(model: mujoco.MjModel) -> list[NDArray]:
    """Return ambient, diffuse and specular [3] of the light at the camera."""
    return [getattr(model.vis.headlight, name) for name in _HEADLIGHT]


def background(model: mujoco.MjModel) -> list[int]:
    """Return the geoms of walls, floor and table."""
    return [
        g for g in range(model.ngeom)
        if model.geom_group[g] != 0 and model.geom_rgba[g, 3] > 0 and (
            model.geom_bodyid[g] == 0
            or BACKGROUND.search(model.body(model.geom_bodyid[g]).name))]


def views(model: mujoco.MjModel, height: float) -> dict[int, NDArray[np.float64]]:
    """Return the cameras that stand in the world and look down, and what each looks at [3].

    That is where its line of sight meets the plane of a ``height`` [m].
    """
    found = {}
    for camera in map(int, np.flatnonzero(model.cam_bodyid == 0)):
        eye, back = np.array(model.cam_pos[camera]), pose(model, camera).as_matrix()[:, 2]
        if back[2] >= 0.1:
            found[camera] = eye - back * (eye[2] - height) / back[2]
    return found


def pose(model: mujoco.MjModel, camera: int) -> Rotation:
    """Return how a camera stands: right, up, backwards."""
    return Rotation.from_quat(model.cam_quat[camera][[1, 2, 3, 0]])


def swing(model: mujoco.MjModel, camera: int, pivot: NDArray[np.float64], azimuth: float,
          elevation: float, zoom: float = 0.0) -> None:
    """Turn a camera around a point [3] by angles [deg], and take it away by a share of the way."""
    before, eye = pose(model, camera), np.array(model.cam_pos[camera])
    turn = (Rotation.from_euler('z', azimuth, degrees=True)
            * Rotation.from_rotvec(np.radians(elevation) * before.as_matrix()[:, 0]))
    model.cam_pos[camera] = pivot + turn.apply(eye - pivot) * (1.0 + zoom)
    model.cam_quat[camera] = (turn * before).as_quat()[[3, 0, 1, 2]]


def turn_lights(model: mujoco.MjModel, towards: float, angle: float) -> None:
    """Turn all lights around the horizontal axis at ``towards`` [rad] by an angle [deg]."""
    turn = Rotation.from_rotvec(
        np.radians(angle) * np.array([np.cos(towards), np.sin(towards), 0.0]))
    model.light_dir[:] = turn.apply(model.light_dir)
    model.light_pos[:] = turn.apply(model.light_pos)
