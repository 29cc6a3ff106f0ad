"""Scenes of LIBERO in which some goals of a task hold already, to learn what is left to do."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from scipy.spatial.transform import Rotation

from ..env import SETTLE_STEPS, LazyObservation
from ..libero.env import LiberoEnv
from ..libero.scene import LiberoScene
from ..libero.start import owner
from .destinations import spots
from .grasps import REST, surface
from .libero import Goal, needed_first, plan, skill_class
from .placing import Place
from .skill import Move, holds, read_end_effector, servo
from .tabletop import OPEN

REACHED = 0.35  # share of scenes in which all goals are reached that can be
BESIDE = 0.012  # half the width of an object's offset from where it belongs [m]
TURN = 0.6  # largest turn of it [rad]
DROP = 0.01  # from how much higher than an expert would let go it falls [m]
FITTING = ('caddy', 'rack')  # what nothing can fall into
OVER = 0.6  # share of scenes in which the gripper is over a destination
HIGHER = (0.03, 0.15)  # than an object is carried there [m]
AWAY = 0.03  # half the width of its offset [m]
APPROACH = 30  # control steps that it has to get there


def arrange(env: LiberoEnv, rng: Generator) -> tuple[LazyObservation, bool]:
    """Let objects of the present task fall to where they belong, and settle.

    All of them, or all but one. What has to be opened, closed or switched stays as it is.
    Returns the observation, and whether the gripper was brought over one of the destinations,
    as it is when it has just let go.
    """
    scene = env.scene
    goals = [goal for goal in plan(scene) if _can_fall(scene, goal)]
    left = int(rng.integers(len(goals))) if goals and rng.random() >= REACHED else -1
    for k, goal in enumerate(goals):
        if k != left:
            _drop(scene, goal, rng)
            env._settle(2 * SETTLE_STEPS)
    over = bool(goals) and rng.random() < OVER
    if over:
        _hover(env, goals[int(rng.integers(len(goals)))], rng)
    return env.observe(), over


def _can_fall(scene: LiberoScene, goal: Goal) -> bool:
    if skill_class(scene, goal) is not Place:
        return False
    if any(kind in owner(scene, goal[2]) for kind in FITTING):
        return False
    first = needed_first(scene, goal)
    return first is None or holds(scene, first)


def _drop(scene: LiberoScene, goal: Goal, rng: Generator) -> None:
    """Put an object over where the goal wants it."""
    name, spot = goal[1], spots(scene, goal)[0]
    joint, data = scene.env.objects_dict[name].joints[-1], scene.sim.data
    low = scene.position(name)[2] - surface(scene, name)[:, 2].min()
    at, quat = np.append(spot.point, spot.lowest + low + DROP), data.get_joint_qpos(joint)[3:]
    if spot.entry is None:  # else its handle must go on pointing out
        at[:2] += rng.uniform(-BESIDE, BESIDE, 2)
        turned = Rotation.from_euler('z', rng.uniform(-TURN, TURN))
        quat = (turned * Rotation.from_quat(quat[[1, 2, 3, 0]])).as_quat()[[3, 0, 1, 2]]
    data.set_joint_qpos(joint, np.concatenate([at, quat]))
    data.set_joint_qvel(joint, np.zeros(6))
    scene.forward()


def _hover(env: LiberoEnv, goal: Goal, rng: Generator) -> None:
    """Bring the open gripper over a destination; nothing may be in its way there."""
    spot = spots(env.scene, goal)[0]
    point = spot.point if spot.entry is None else spot.entry
    target = np.append(point + rng.uniform(-AWAY, AWAY, 2), spot.over + rng.uniform(*HIGHER))
    move = Move('reach', goal[1], target, 'lower', target, REST, OPEN)
    for _ in range(APPROACH):
        env.scene.step(servo(read_end_effector(env), move))
