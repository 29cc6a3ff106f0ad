"""Finds where an object may go so that a goal holds: objects, fixtures, regions of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..libero.scene import LiberoScene
from ..libero.start import owner
from .grasps import beyond_reach, surface
from .skill import DRAWER_REGION

Points = NDArray[np.float64]
# Of the microwave: where a mug's origin goes, over the floor's height, and how far before that the
# mug is in front of the opening [m].
MICROWAVE = np.array([-0.04, -0.012, 0.024])
MICROWAVE_FRONT = 0.19
FRONT = 0.018  # of the middle of a drawer [m]
BESIDE = 0.065  # between the middles of two objects in one basket [m]


@dataclass(frozen=True, slots=True)
class Spot:
    """Where an object goes: its origin, or its ``middle``, at ``point`` [2] world m.

    ``lowest`` and ``over``: heights of its lowest point when it is let go and while it is
    carried. ``yaw``: how the fingers must then be turned [rad], None if any way will do.
    ``entry`` [2] is where it waits to move on level to ``point``, None if it comes from above.
    ``tips``: below this height there is no room for the fingers to open.
    """

    point: Points
    lowest: float
    over: float
    yaw: float | None = None
    entry: Points | None = None
    middle: bool = False
    tips: float = -np.inf


def anchor(scene: LiberoScene, place: str) -> Points:
    """Return the position [3] of an object or of a region, which a destination moves with."""
    target = owner(scene, place)
    if place in scene.env.object_sites_dict and (target not in scene.objects or 'caddy' in target):
        return np.array(scene.data.site(place).xpos)
    return scene.position(target)


def spots(scene: LiberoScene, goal: Sequence[str]) -> list[Spot]:
    """Return where the goal's object may go, the best first if nothing is in the way."""
    place = goal[2]
    target = owner(scene, place)
    at = anchor(scene, place)
    if target in scene.objects and 'caddy' not in target:
        return [_in_or_on(scene, target, _sharing(scene, goal))]
    if DRAWER_REGION.search(place) and 'cabinet' in target:
        return _in_drawer(scene, target, at)
    if 'caddy' in target:
        return [_in_compartment(scene, place, target, at)]
    if 'microwave' in target:
        return [_in_microwave(scene, target)]
    if 'rack' in target:
        return [_on_rack(scene, place, at)]
    return _on_region(scene, goal, at)


def _sharing(scene: LiberoScene, goal: Sequence[str]) -> tuple[int, int]:
    """Return which of how many objects with this destination the goal's is."""
    names = [g[1] for g in scene.goals if len(g) == 3 and g[2] == goal[2]]
    return names.index(goal[1]), len(names)


def _in_or_on(scene: LiberoScene, target: str, share: tuple[int, int]) -> Spot:
    point, points = scene.position(target)[:2], surface(scene, target)
    top = float(points[:, 2].max())
    if 'basket' in target:
        if share[1] == 1:
            return Spot(point, top - 0.02, top + 0.06)
        point = point + [0.0, (share[0] - 0.5 * (share[1] - 1)) * BESIDE]
        return Spot(point, top - 0.02, top + 0.06, tips=top + 0.005)
    if 'bowl' in target:
        return Spot(point, top - 0.005, top + 0.04)
    return Spot(point, top - 0.012, top + 0.08)


def _in_drawer(scene: LiberoScene, target: str, at: Points) -> list[Spot]:
    points = surface(scene, target)
    near = points[np.linalg.norm(points[:, :2] - at[:2], axis=1) < 0.06]
    floor = float(near[near[:, 2] < at[2], 2].max(initial=at[2] - 0.04))
    out = at[:2] - scene.position(target)[:2]
    out /= max(float(np.linalg.norm(out)), 1e-9)
    # Towards the front the gripper is clear of the cabinet and the handles above.
    return [Spot(at[:2] + shift * out, floor + 0.006, float(at[2]) + 0.08)
            for shift in (FRONT, 0.0)]


def _in_compartment(scene: LiberoScene, place: str, target: str, at: Points) -> Spot:
    size = np.abs(scene.data.site(place).xmat.reshape(3, 3)
                  @ scene.env.object_sites_dict[place].size)
    return Spot(at[:2], at[2] - 0.03, float(surface(scene, target)[:, 2].max()) + 0.03,
                yaw=0.0 if size[0] < size[1] else np.pi / 2, middle=True)


def _in_microwave(scene: LiberoScene, target: str) -> Spot:
    at = scene.position(target)
    inside, floor = at[:2] + MICROWAVE[:2], at[2] + MICROWAVE[2]
    return Spot(inside, floor + 0.004, floor + 0.015, entry=inside - [0.0, MICROWAVE_FRONT])


def _on_rack(scene: LiberoScene, place: str, at: Points) -> Spot:
    normal = scene.data.site(place).xmat.reshape(3, 3)[:, 2]
    point = at + 0.045 * normal
    return Spot(point[:2], float(point[2]) - 0.01, float(point[2]) + 0.05)


def _on_region(scene: LiberoScene, goal: Sequence[str], at: Points) -> list[Spot]:
    place = goal[2]
    site = scene.env.object_sites_dict[place]
    target = owner(scene, place)
    size = np.array([float(s) for s in site.size])
    turn = scene.data.site(place).xmat.reshape(3, 3)
    points = (surface(scene, target) if target in scene.fixtures and scene.geoms(target)
              else np.zeros((0, 3)))
    table = min(float(surface(scene, n)[:, 2].min()) for n in scene.objects)
    half = np.maximum(size[:2] - 0.02, 0.0)
    found = []
    index, count = _sharing(scene, goal)
    for u in np.linspace(-1.0, 1.0, 5):
        for v in np.linspace(-1.0, 1.0, 5):
            point = at[:2] + (turn.T @ [u * half[0], v * half[1], 0.0])[:2]
            if count > 1 and (u == 0 or (index == 0) != (u < 0) or abs(v) > 0.6):
                continue
            near = points[np.linalg.norm(points[:, :2] - point, axis=1) < 0.03]
            lowest = float(near[:, 2].max(initial=table))
            cost = beyond_reach(scene, point + 0.03) + 0.01 * float(np.hypot(u, v))
            found.append((cost, Spot(point, lowest - 0.002, lowest + 0.06)))
    return [s for _, s in sorted(found, key=lambda f: f[0])]
