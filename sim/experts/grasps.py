"""Chooses grasps by the colliding surfaces of a scene."""

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
FINGERTIP = 0.012  # below the middle of the pads [m]
SAMPLING = 0.012  # distance of points on a box [m]
EIGHTH, BETWEEN = 0.15, 0.15  # cost of an eighth of a turn from the usual side, of sides between
# A gripper this much larger should fit as well, one this much smaller must [m].
ROOM, SQUEEZE, CRAMPED = 0.006, 0.004, 0.5
FARTHEST = 0.70  # from the base: beyond, the elbow is straight and the arm stalls [m]

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Grasp:
    """Pads at ``point`` [3] world m, fingers along ``yaw``; the object's extent in height.

    ``angle``: where on a rim, None for a grasp across the object. ``tilt``: how far the fingers
    point forward instead of down, towards ``yaw`` + 90 degrees [rad].
    """

    point: Points
    yaw: float
    top: float
    bottom: float
    angle: float | None = None
    tilt: float = 0.0

    @property
    def rotation(self) -> Rotation:
        """Orientation of the grip site."""
        return pointing(self.yaw, self.tilt)

    @property
    def approach(self) -> Points:
        """Unit vector [3] from the palm to the fingertips."""
        return self.rotation.as_matrix()[:, 2]

    def aside(self, position: Points) -> float:
        """Return how far a position [3] is from the line of the approach [m]."""
        return float(np.linalg.norm(np.cross(position - self.point, self.approach)))

    def turned(self, rotation: Rotation) -> float:
        """Return by how much a rotation of the grip site differs [rad]."""
        return float((self.rotation * rotation.inv()).magnitude())


def pointing(yaw: float, tilt: float = 0.0) -> Rotation:
    """Return the grip site's orientation whose fingers open along ``yaw`` [rad].

    They point down; ``tilt`` [rad] raises them towards ``yaw`` + 90 degrees, or if negative
    towards the other side.
    """
    x = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    z = np.array([-np.sin(tilt) * x[1], np.sin(tilt) * x[0], -np.cos(tilt)])
    return Rotation.from_matrix(np.stack([x, np.cross(z, x), z], axis=1))


# From here the wrist can turn about as far to either side.
REST = pointing(np.radians(105.0))
BEGIN = pointing(np.radians(90.0))  # how an episode begins


def surface(scene: LiberoScene, name: str) -> Points:
    """Return points [n, 3] on the colliding surface of an object or fixture, world m."""
    return np.concatenate([_geom_points(scene, g) for g in scene.geoms(name)])


def surroundings(scene: LiberoScene, name: str) -> Points:
    """Return points [n, 3] on everything but ``name``, the robot and the table."""
    others = [surface(scene, n) for n in (*scene.objects, *scene.fixtures)
              if n != name and scene.geoms(n)]
    return np.concatenate([np.zeros((0, 3)), *others])


def highest_between(points: Points, start: Points, end: Points, width: float) -> float:
    """Return the height of what is within ``width`` of the path from above [m], 0 if nothing.

    ``points`` [n, 3]; the path is level, between ``start`` and ``end`` [2 or 3].
    """
    path, offset = end[:2] - start[:2], points[:, :2] - start[:2]
    share = np.clip(offset @ path / (path @ path + 1e-9), 0.0, 1.0)
    near = np.linalg.norm(offset - share[:, None] * path, axis=1) < width
    return float(points[near, 2].max(initial=0.0))


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


def _obstruction(centre: Points, yaw: float, lowest: float, others: Points,
                 room: float = 0.0) -> float:
    """Return how much of the surroundings a gripper larger by ``room`` [m] would meet, open."""
    if not len(others):
        return 0.0
    u = np.array([np.cos(yaw), np.sin(yaw)])
    offset = others[:, :2] - centre
    along, aside = np.abs(offset @ u), np.abs(offset @ [-u[1], u[0]])
    height = others[:, 2] - lowest
    # What stands between the fingers would be gripped, too.
    finger = ((along < FINGER_HALF_OPEN + FINGER_THICK + room)
              & (aside < FINGER_HALF_BREADTH + room) & (height > 0.0))
    palm = (along < PALM[0] + room) & (aside < PALM[1] + room) & (height > PALM[2] - room / 2)
    touched = int(finger.sum() + palm.sum())
    return float(finger.any()) + 2.0 * float(palm.any()) + min(1.0, touched / 200.0)


def crowding(grasp: Grasp, shift: Points, others: Points) -> float:
    """Return what the open gripper would meet where it lets go, moved by ``shift`` [3]."""
    to = grasp.point + shift
    return _obstruction(to[:2], grasp.yaw, to[2] - FINGERTIP, others)


def beyond_reach(scene: LiberoScene, point: Points) -> float:
    """Return by how much a point [2 or 3] is too far for a gripper that points down [m]."""
    base = scene.data.xpos[scene.base, :2]
    return max(0.0, float(np.linalg.norm(point[:2] - base)) - FARTHEST)


def closest_yaw(yaw: float, to: Rotation) -> float:
    """Return ``yaw`` or its opposite, which grips alike, whichever is closer ``to`` a rotation."""
    return min((yaw, yaw + np.pi), key=lambda y: float((pointing(y) * to.inv()).magnitude()))


def _comfortable(yaw: float) -> tuple[float, float]:
    """Return the equivalent yaw within the wrist's range, and the way to it [rad].

    From how an episode begins: which grasp is taken must not depend on the gripper now.
    """
    best = closest_yaw(yaw, REST)
    return best, float((pointing(best) * BEGIN.inv()).magnitude())


def grasps_across(scene: LiberoScene, name: str, depth: float = 0.03) -> list[tuple[float, Grasp]]:
    """Return grasps across the object near its top and their costs, none if it is too wide.

    The narrow, free and near sides are cheap.
    """
    points, others = surface(scene, name), surroundings(scene, name)
    top, bottom = points[:, 2].max(), points[:, 2].min()
    z = max(top - min(depth, 0.6 * (top - bottom)), bottom + 0.012)
    layer = points[points[:, 2] > z - 0.02] if top - bottom > 0.03 else points
    found = []
    for yaw in np.linspace(0.0, np.pi, 36, endpoint=False):
        u = np.array([np.cos(yaw), np.sin(yaw)])
        v = np.array([-u[1], u[0]])
        a, b = layer[:, :2] @ u, layer[:, :2] @ v
        width = a.max() - a.min()
        if width > WIDEST:
            continue
        centre = (u * (a.max() + a.min()) + v * (b.max() + b.min())) / 2
        turned, way = _comfortable(float(yaw))
        cost = 0.3 * _obstruction(centre, yaw, z - FINGERTIP, others) + 4.0 * width + 0.05 * way
        found.append((cost, Grasp(np.append(centre, z), turned, top, bottom)))
    return found


def _unusual(angle: float, roomy: bool) -> float:
    """Return what a side of a rim costs for not being the one towards the base.

    Where several would do, a policy that learns from it must be able to guess which was taken.
    In a narrow place (a drawer) a side between may fit better.
    """
    eighths = (angle - np.pi) / (np.pi / 4)
    between = BETWEEN * (abs(eighths - round(eighths)) > 0.01)
    return EIGHTH * abs(eighths) + (between if roomy else CRAMPED)


def grasps_rim(scene: LiberoScene, name: str, destination: Points, avoid: Sequence[float] = (),
               depth: float = 0.018) -> list[tuple[float, Grasp]]:
    """Return grasps over a rim, fingers radial, and their costs: free here, in reach there.

    ``destination`` [2] is where the middle will go; ``avoid`` lists angles on the rim that did
    not work.
    """
    points, others = surface(scene, name), surroundings(scene, name)
    top, bottom = points[:, 2].max(), points[:, 2].min()
    middle, radius = rim(points)
    found = []
    for angle in np.linspace(0.0, 2 * np.pi, 48, endpoint=False):
        if any(abs((angle - a + np.pi) % (2 * np.pi) - np.pi) < 0.5 for a in avoid):
            continue
        u = np.array([np.cos(angle), np.sin(angle)])
        centre = middle + radius * u
        far = beyond_reach(scene, centre) + beyond_reach(scene, destination + radius * u)
        turned, way = _comfortable(float(angle))
        lowest = top - depth - FINGERTIP
        roomy = not _obstruction(centre, angle, lowest, others, ROOM)
        side = _unusual(float(angle), roomy) + 0.10 * way + 10.0 * far
        for higher in (0.0, 0.006):
            z = top - depth + higher
            met = 0.0 if roomy else _obstruction(
                centre, angle, lowest + higher, others, -SQUEEZE)
            cost = side + 4.0 * higher + met
            found.append((cost, Grasp(np.append(centre, z), turned, top, bottom, float(angle))))
    # Every side was tried: begin anew.
    return found or grasps_rim(scene, name, destination, (), depth)


def rim(points: Points) -> tuple[Points, float]:
    """Return the middle [2] of an object's upper edge and the radius of its wall."""
    ring = points[points[:, 2] > points[:, 2].max() - 0.012, :2]
    middle = (ring.max(axis=0) + ring.min(axis=0)) / 2
    return middle, float(np.linalg.norm(ring - middle, axis=1).max()) - 0.006


def grasp_handle(scene: LiberoScene, name: str, tilt: float = 0.0) -> Grasp:
    """Return a grasp over a handle; ``tilt`` [rad] lets the fingers point to the object too."""
    points = surface(scene, name)
    away = points[:, :2] - rim(points)[0]
    distance = np.linalg.norm(away, axis=1)
    outermost = distance > distance.max() - 0.012
    way = -away[outermost].mean(axis=0)
    yaw = float(np.arctan2(way[1], way[0])) - np.pi / 2
    both = [Grasp(points[outermost].mean(axis=0), y, points[:, 2].max(), points[:, 2].min(),
                  tilt=t) for y, t in ((yaw, tilt), (yaw + np.pi, -tilt))]
    return min(both, key=lambda g: float((g.rotation * REST.inv()).magnitude()))
