"""Scenes in which a task is done already, or nearly, to learn the difference from."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .scene import (
    BIN_HALF,
    BIN_HEIGHT,
    BINS,
    CUBE_HALF,
    MARK_HALF,
    OBJECTS,
    REST_HEIGHT,
    TABLE_TOP,
    WALL,
    TabletopScene,
)
from .tasks import TASKS, Goal, Task

REACHED = 0.5  # share of scenes in which all goals hold
OTHERS = 0.4  # share in which another task is done as well
TOPPLED = 0.25  # share of objects in or at a bin that are dropped tilted
APART = 0.055  # of two objects' origins [m]
BESIDE = (0.035, 0.09)  # from a bin's wall to an object beside it [m]
TRIES = 20  # places tried before an object stays where it is

Vector = NDArray[np.float64]


def arrange(scene: TabletopScene, task: Task, rng: Generator) -> None:
    """Move the task's objects to where they belong, or where they nearly do; nothing settles.

    In a share of the scenes another task is done as well, or is the only one that is.
    """
    done = rng.random() < REACHED
    missed = int(rng.integers(len(task.goals)))
    for k, goal in enumerate(task.goals):
        if done or k != missed:
            _place(scene, goal.object, rng, _reached(scene, goal, rng))
        elif len(task.goals) == 1 or rng.random() < 0.5:  # or it stays where it is
            _place(scene, goal.object, rng, _missed(scene, goal, rng))
    if rng.random() < OTHERS:
        busy = _moved(task)
        free = [t for t in TASKS.values() if not busy & _moved(t)]
        for goal in free[int(rng.integers(len(free)))].goals if free else ():
            _place(scene, goal.object, rng, _reached(scene, goal, rng))
    scene.sim.forward()


def _moved(task: Task) -> set[str]:
    return {n for g in task.goals for n in (g.object, g.destination) if n in OBJECTS}


def _reached(scene: TabletopScene, goal: Goal, rng: Generator) -> list[Vector]:
    """Return places [3] m, world, at which the goal holds, to be tried in turn."""
    to, half = scene.position(goal.destination), {'put': 0.038, 'stack': 0.012, 'push': 0.028}
    low = {'put': TABLE_TOP + 2 * WALL + REST_HEIGHT[goal.object] + rng.uniform(0.0, 0.03),
           'stack': to[2] + 2 * CUBE_HALF + 0.001, 'push': TABLE_TOP + CUBE_HALF}[goal.verb]
    aside = rng.uniform(-1.0, 1.0, (TRIES, 2)) * half[goal.verb]
    return [np.append(to[:2] + off, low) for off in aside]


def _missed(scene: TabletopScene, goal: Goal, rng: Generator) -> list[Vector]:
    """Return places [3] m, world, at which the goal nearly holds, to be tried in turn."""
    to, table = scene.position(goal.destination), TABLE_TOP + REST_HEIGHT[goal.object] + 0.001
    angle = rng.uniform(-np.pi, np.pi, TRIES)
    around = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if goal.verb != 'put':
        least, most = (MARK_HALF, 0.09) if goal.verb == 'push' else (2 * CUBE_HALF + 0.004, 0.10)
        if goal.verb == 'push':  # a square, as the goal judges it
            around /= np.abs(around).max(axis=1, keepdims=True)
        far = rng.uniform(least, most, TRIES)
        return [np.append(to[:2] + d * way, table) for d, way in zip(far, around)]
    kind = rng.choice(['beside', 'rim', 'other'], p=[0.5, 0.3, 0.2])
    if kind == 'other':
        other = next(name for name in BINS if name != goal.destination)
        return _reached(scene, Goal('put', goal.object, other), rng)
    around /= np.abs(around).max(axis=1, keepdims=True)
    if kind == 'rim':
        far, low = rng.uniform(BIN_HALF - 0.01, BIN_HALF + 0.015, TRIES), table + BIN_HEIGHT
    else:
        far, low = BIN_HALF + rng.uniform(*BESIDE, TRIES), table
    return [np.append(to[:2] + d * way, low) for d, way in zip(far, around)]


def _place(scene: TabletopScene, name: str, rng: Generator, places: list[Vector]) -> None:
    """Put an object at the first of the places where no other stands; any way round."""
    turned = Rotation.from_euler('z', rng.uniform(-np.pi, np.pi))
    if 'cube' not in name and rng.random() < TOPPLED:
        turned = turned * Rotation.from_euler('x', rng.uniform(-np.pi / 2, np.pi / 2))
    others = np.stack([scene.position(other) for other in OBJECTS if other != name])
    for at in places:
        aside = np.linalg.norm(others[:, :2] - at[:2], axis=1)
        level = np.abs(others[:, 2] - at[2]) < 2 * CUBE_HALF - 0.001  # not one on the other
        if 'cube' in name:
            aside = aside + 0.012  # a cube may touch a cube
        if (aside[level] > APART).all():
            joint, quat = scene.objects[name].joints[0], turned.as_quat()[[3, 0, 1, 2]]
            scene.sim.data.set_joint_qpos(joint, np.concatenate([at, quat]))
            scene.sim.data.set_joint_qvel(joint, np.zeros(6))
            scene.sim.forward()
            return
