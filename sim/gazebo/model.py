"""The links of a compiled MuJoCo model, and how SDF and URDF write what they hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]
# What Gazebo calls MuJoCo's kinds of geoms and joints.
SHAPES = [mujoco.mjtGeom(k).name.removeprefix('mjGEOM_').lower() for k in range(8)]
JOINTS = {mujoco.mjtJoint.mjJNT_HINGE: 'revolute', mujoco.mjtJoint.mjJNT_SLIDE: 'prismatic'}
# robosuite numbers its robots; on the topics the arm has its maker's names.
PREFIXES = {'robot0_': 'panda_', 'gripper0_': 'panda_', 'mount0_': 'mount_'}


@dataclass(frozen=True, slots=True)
class Link:
    """A body by its number. ``pose`` [4, 4] lies in ``parent``, or in the model if None.

    ``joint``: number of the one that moves it, None where it is fixed to its parent.
    """

    name: str
    body: int
    parent: str | None
    pose: Array
    joint: int | None


@dataclass(frozen=True, slots=True)
class Model:
    """A tree of links at ``pose`` [4, 4] in the world."""

    name: str
    pose: Array
    kind: str  # 'fixed', 'free' or 'arm'
    links: tuple[Link, ...]


def models(m: mujoco.MjModel, d: mujoco.MjData) -> Iterator[Model]:
    """Yield everything below the world body, where ``d`` has it."""
    if m.body_geomnum[0]:
        yield Model('arena', np.eye(4), 'fixed', (Link('ground', 0, None, np.eye(4), None),))
    for root in np.flatnonzero(m.body_parentid == 0)[1:]:  # the world is its own parent
        bodies = np.flatnonzero(m.body_rootid == root).tolist()
        kinds = m.jnt_type[np.isin(m.jnt_bodyid, bodies)].tolist()
        kind = 'fixed' if not kinds else (
            'free' if mujoco.mjtJoint.mjJNT_FREE in kinds else 'arm')
        name = 'panda' if kind == 'arm' else m.body(root).name.removesuffix(
            '_main').removesuffix('_root')
        yield Model(name, matrix(d.xpos[root], d.xquat[root]), kind, tuple(_links(m, bodies)))


def _links(m: mujoco.MjModel, bodies: list[int]) -> Iterator[Link]:
    """Yield the bodies with mass; Gazebo refuses others, so their children move one up."""
    # body -> its link or None, its pose in that link
    frames: dict[int, tuple[str | None, Array]] = {bodies[0]: (None, np.eye(4))}
    for body in bodies:
        if body != bodies[0]:
            parent, pose = frames[m.body_parentid[body]]
            frames[body] = parent, pose @ matrix(m.body_pos[body], m.body_quat[body])
        if m.body_mass[body] > 0 or len(bodies) == 1:
            name, moving = topic_name(m.body(body).name), [
                j for j in np.flatnonzero(m.jnt_bodyid == body) if m.jnt_type[j] in JOINTS]
            if moving and np.any(m.jnt_pos[moving[0]]):
                raise ValueError(f"a joint of {name} does not turn about its body's origin")
            yield Link(name, body, *frames[body], moving[0] if moving else None)
            frames[body] = name, np.eye(4)
        elif m.body_geomnum[body]:
            raise ValueError(f'massless body {m.body(body).name} carries shapes')


def effort(m: mujoco.MjModel, joint: int) -> float:
    """Return the largest effort at a joint [N m] or [N]."""
    drive, = np.flatnonzero(m.actuator_trnid[:, 0] == joint)
    # A motor's torque is limited by its command, a servo's by its force.
    limit = m.actuator_forcerange if m.actuator_forcelimited[drive] else m.actuator_ctrlrange
    return float(limit[drive, 1])


def topic_name(name: str) -> str:
    """Return a MuJoCo name as the topics know it: ``robot0_joint1`` is ``panda_joint1``."""
    for old, new in PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def matrix(position: ArrayLike, rotation: ArrayLike) -> Array:
    """Return [4, 4] of a position [3] and a quaternion [4] wxyz or a matrix of 9 numbers."""
    pose, turn = np.eye(4), np.asarray(rotation, np.float64)
    pose[:3, 3] = position
    pose[:3, :3] = (Rotation.from_quat(turn[[1, 2, 3, 0]]).as_matrix() if turn.size == 4
                    else turn.reshape(3, 3))
    return pose


def numbers(values: ArrayLike) -> str:
    """Return a number or an array as text."""
    return ' '.join(f'{x:.10g}' for x in np.ravel(np.asarray(values, np.float64)))


def pose_text(pose: Array) -> str:
    """Return [4, 4] as x, y, z [m], roll, pitch, yaw [rad]."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Gimbal lock')  # any of the right triples will do
        return numbers([*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_euler('xyz')])
