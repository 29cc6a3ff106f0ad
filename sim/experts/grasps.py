"""Grasps from above, chosen by where the colliding surfaces of a scene are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..libero.scene import LiberoScene

WIDEST = 0.074  # opening between the pads that still lets an object in [m]
FINGER_HALF_OPEN, FINGER_THICK, FINGER_HALF_BREADTH = 0.040, 0.024, 0.014  # [m]
PALM = (0.115, 0.042, 0.047)  # half length, half breadth, height over the pads [m]
SAMPLING = 0.012  # distance of points on a box [m]
FARTHEST = 0.70  # from the base: beyond, the elbow is straight and the arm stalls [m]

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Grasp:
    """Pads at ``point`` [3] world m, fingers along ``yaw``; the object's extent in height.

    ``angle``: where on a rim, None for a grasp across the object.
    """

    point: Points
    yaw: float
    top: float
    bottom: float
    angle: float | None = None

    @property
    def rotation(self) -> Rotation:
        """Orientation of the grip site, pointing straight down."""
        return straight_down(self.yaw)


def straight_down(yaw: float) -> Rotation:
    """Return the grip site's orientation whose fingers open along ``yaw`` [rad]."""
    x, z = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
    return Rotation.from_matrix(np.stack([x, np.cross(z, x), z], axis=1))


def surface(scene: LiberoScene, name: str) -> Points:
    """Return points [n, 3] on the colliding surface of an object or fixture, world m."""
    return np.concatenate([_geom_points(scene, g) for g in scene.geoms(name)])


def surroundings(scene: LiberoScene, name: str) -> Points:
    """Return points [n, 3] on everything but ``name``, the robot and the table."""
    others = [surface(scene, n) for n in (*scene.objects, *scene.fixtures)
              if n != name and scene.geoms(n)]
    return np.concatenate([np.zeros((0, 3)), *others])


def _geom_points(scene: LiberoScene, geom: int) -> Points:
    model, kind, size = scene.model, scene.model.geom_type[geom], scene.model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        axes = [np.linspace(-1, 1, int(np.clip(np.ceil(2 * s / SAMPLING), 2, 40)) + 1)
                for s in size]
        unit = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, 3)
        local = unit[np.abs(unit).max(axis=1) > 0.999] * size
    elif kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
        half = size[1] + (size[0] if kind == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0)
        turn, height = np.meshgrid(
            np.linspace(0, 2 * np.pi, 24, endpoint=False), np.linspace(-half, half, 7))
        local = np.stack([size[0] * np.cos(turn), size[0] * np.sin(turn), height],
                         axis=-1).reshape(-1, 3)
    elif kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        way = np.random.default_rng(0).normal(size=(80, 3))
        local = size[0] * way / np.linalg.norm(way, axis=1, keepdims=True)
    elif kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        first = model.mesh_vertadr[mesh]
        local = model.mesh_vert[first:first + model.mesh_vertnum[mesh]]
    else:
        local = np.zeros((0, 3))
    return local @ scene.data.geom_xmat[geom].reshape(3, 3).T + scene.data.geom_xpos[geom]


def _obstruction(centre: Points, yaw: float, lowest: float, others: Points) -> float:
    """Return how much of the surroundings the open fingers and the palm would meet."""
    if not len(others):
        return 0.0
    u = np.array([np.cos(yaw), np.sin(yaw)])
    offset = others[:, :2] - centre
    along, aside = np.abs(offset @ u), np.abs(offset @ [-u[1], u[0]])
    height = others[:, 2] - lowest
    finger = ((along > FINGER_HALF_OPEN - 0.004) & (along < FINGER_HALF_OPEN + FINGER_THICK)
              & (aside < FINGER_HALF_BREADTH) & (height > 0.0))
    palm = (along < PALM[0]) & (aside < PALM[1]) & (height > PALM[2])
    touched = int(finger.sum() + palm.sum())
    return float(finger.any()) + 2.0 * float(palm.any()) + min(1.0, touched / 200.0)


def _closest(yaw: float, now: Rotation) -> tuple[float, float]:
    """Return the equivalent yaw with the shorter way from ``now``, and that way [rad]."""
    ways = [((straight_down(y) * now.inv()).magnitude(), y) for y in (yaw, yaw + np.pi)]
    way, best = min(ways)
    return best, way


def grasp_across(
    scene: LiberoScene, name: str, now: Rotation, depth: float = 0.03
) -> Grasp | None:
    """Return a grasp across the narrowest free side near the object's top, None if too wide."""
    points, others = surface(scene, name), surroundings(scene, name)
    top, bottom = points[:, 2].max(), points[:, 2].min()
    z = max(top - min(depth, 0.6 * (top - bottom)), bottom + 0.012)
    layer = points[points[:, 2] > z - 0.02] if top - bottom > 0.03 else points
    best: tuple[float, Grasp] | None = None
    for yaw in np.linspace(0.0, np.pi, 36, endpoint=False):
        u = np.array([np.cos(yaw), np.sin(yaw)])
        v = np.array([-u[1], u[0]])
        a, b = layer[:, :2] @ u, layer[:, :2] @ v
        width = a.max() - a.min()
        if width > WIDEST:
            continue
        centre = (u * (a.max() + a.min()) + v * (b.max() + b.min())) / 2
        turned, way = _closest(float(yaw), now)
        cost = 0.3 * _obstruction(centre, yaw, z - 0.012, others) + 4.0 * width + 0.05 * way
        if best is None or cost < best[0]:
            best = cost, Grasp(np.append(centre, z), turned, top, bottom)
    return best[1] if best else None


def grasp_rim(
    scene: LiberoScene, name: str, now: Rotation, destination: Points,
    avoid: Sequence[float] = (), depth: float = 0.018,
) -> Grasp:
    """Return a grasp over the rim of a bowl, fingers radial, free here and in reach there.

    ``destination`` [2] is where the bowl's centre will go; ``avoid`` lists angles on the rim that
    did not work.
    """
    points, others = surface(scene, name), surroundings(scene, name)
    top, bottom = points[:, 2].max(), points[:, 2].min()
    ring = points[points[:, 2] > top - 0.012, :2]
    middle = (ring.max(axis=0) + ring.min(axis=0)) / 2
    radius = np.linalg.norm(ring - middle, axis=1).max() - 0.006
    base = scene.data.xpos[scene.base, :2]
    best: tuple[float, Grasp] | None = None
    for angle in np.linspace(0.0, 2 * np.pi, 48, endpoint=False):
        if any(abs((angle - a + np.pi) % (2 * np.pi) - np.pi) < 0.5 for a in avoid):
            continue
        u = np.array([np.cos(angle), np.sin(angle)])
        centre = middle + radius * u
        far = sum(max(0.0, float(np.linalg.norm(p - base)) - FARTHEST)
                  for p in (centre, destination + radius * u))
        turned, way = _closest(float(angle), now)
        for higher in (0.0, 0.006):
            z = top - depth + higher
            cost = (0.5 * _obstruction(centre, angle, z - 0.012, others) + 0.10 * way
                    + 4.0 * higher + 10.0 * far)
            if best is None or cost < best[0]:
                best = cost, Grasp(np.append(centre, z), turned, top, bottom, float(angle))
    if best is None:  # every side was tried: begin anew
        return grasp_rim(scene, name, now, destination, (), depth)
    return best[1]
