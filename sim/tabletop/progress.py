"""The distance a task still has to go: a potential for reward shaping."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scene import BIN_HEIGHT, CUBE_HALF, TABLE_TOP
from .tasks import Goal, Task

HOVER = 0.10  # height over an object at which the gripper should move sideways [m]
CARRY_Z = TABLE_TOP + 0.17  # height at which objects are carried [m]
RELEASE_Z = TABLE_TOP + BIN_HEIGHT + 0.025  # height of an object let go over a bin [m]
ROOM = 0.04  # a bin is so wide to either side of where objects are let go [m]
SLOPE = 0.03  # sideways distance within which objects come down to their aim [m]
GRASP = 0.10  # what closing on an object, or letting go of it, is worth [m]
OPENED = 0.05  # what opening a gripper that closed on nothing is worth [m]
WIDE = 0.06  # opening that counts as open [m]
FARTHEST = 4.0  # no task is farther, whatever fell off the table [m]


def remaining(scene: Any, task: Task) -> float:
    """Return how far the gripper and the objects still have to go [m], 0 when all is done.

    The path is that of a gripper which travels above the objects and comes down only over its
    aim: it is longer where the gripper leaves its aim, comes in low from the side, closes on
    nothing, or drops something elsewhere.
    """
    goals = task.open_goals(scene)
    if not goals:
        return 0.0
    distance = _distance(scene, goals[0], scene.arm.end_effector())
    for last, goal in zip(goals, goals[1:]):
        back = _aside(scene.position(last.destination), scene.position(goal.object))
        distance += back + 2.0 * HOVER + GRASP + _delivery(scene, goal)
    return float(min(distance, FARTHEST))


def _distance(scene: Any, goal: Goal, ee: NDArray[np.float64]) -> float:
    at = scene.position(goal.object)
    if goal.verb == 'push':
        low = np.array([at[0], at[1], TABLE_TOP + 0.028])
        return _down_to(ee, low, HOVER) + _delivery(scene, goal)
    if scene.held(goal.object):
        return _delivery(scene, goal)
    closed = OPENED if scene.arm.opening() < WIDE and _aside(ee, at) > SLOPE else 0.0
    return _down_to(ee, at, HOVER) + closed + GRASP + _delivery(scene, goal)


def _delivery(scene: Any, goal: Goal) -> float:
    """Return the path of an object from where it is, once the gripper has it."""
    at, to = scene.position(goal.object), scene.position(goal.destination)
    if goal.verb == 'push':
        return _aside(at, to)
    low = float(to[2]) + 2 * CUBE_HALF if goal.verb == 'stack' else RELEASE_Z  # where it is let go
    aim = np.array([to[0], to[1], low])
    return _down_to(at, aim, CARRY_Z - aim[2], ROOM if goal.verb == 'put' else 0.01) + GRASP


def _down_to(place: NDArray[np.float64], aim: NDArray[np.float64], height: float,
             room: float = 0.01) -> float:
    """Return the path to an aim that is to be reached from ``height`` above it [m].

    Within ``room`` sideways there is nothing to come in over.
    """
    aside, above = _aside(place, aim), float(place[2] - aim[2])
    wall = height * min(max(aside - room, 0.0) / SLOPE, 1.0)
    return aside + abs(above) + 2.0 * max(wall - above, 0.0)


def _aside(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(a[:2] - b[:2]))
