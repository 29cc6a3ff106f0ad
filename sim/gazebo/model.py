"""Links, joints and shapes of a compiled MuJoCo model, and the XML that SDF and URDF share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]
VISUAL_GROUP = 1  # what the env's renderer shows
SHAPES = {
    mujoco.mjtGeom.mjGEOM_PLANE: 'plane', mujoco.mjtGeom.mjGEOM_SPHERE: 'sphere',
    mujoco.mjtGeom.mjGEOM_CAPSULE: 'capsule', mujoco.mjtGeom.mjGEOM_ELLIPSOID: 'ellipsoid',
    mujoco.mjtGeom.mjGEOM_CYLINDER: 'cylinder', mujoco.mjtGeom.mjGEOM_BOX: 'box',
    mujoco.mjtGeom.mjGEOM_MESH: 'mesh',
}
JOINTS = {mujoco.mjtJoint.mjJNT_HINGE: 'revolute', mujoco.mjtJoint.mjJNT_SLIDE: 'prismatic'}
# robosuite numbers its robots; on the topics the arm has its maker's names.
PREFIXES = {'robot0_': 'panda_', 'gripper0_': 'panda_', 'mount0_': 'mount_'}


@dataclass(frozen=True, slots=True)
class Geom:
    """A shape in a link. ``size`` are MuJoCo's half sizes [m]; ``index`` its geom."""

    name: str
    index: int
    shape: str
    size: Array
    pose: Array
    visual: bool
    collides: bool
    friction: float


@dataclass(frozen=True, slots=True)
class Joint:
    """One axis; limits in rad or m, effort in N m or N; ``position`` is the present one."""

    name: str
    kind: str
    axis: Array
    low: float
    high: float
    damping: float
    friction: float
    effort: float
    position: float


@dataclass(frozen=True, slots=True)
class Link:
    """A body. ``pose`` [4, 4] lies in ``parent``, or in the model where there is none."""

    name: str
    parent: str | None
    pose: Array
    mass: float
    inertial_pose: Array
    inertia: Array
    geoms: tuple[Geom, ...]
    joint: Joint | None


@dataclass(frozen=True, slots=True)
class Model:
    """A tree of links at ``pose`` [4, 4] in the world; ``fixed`` ones never move."""

    name: str
    pose: Array
    kind: str  # 'fixed', 'free' or 'arm'
    links: tuple[Link, ...]


def topic_name(name: str) -> str:
    """Return a MuJoCo name as the topics know it: ``robot0_joint1`` is ``panda_joint1``."""
    for old, new in PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def matrix(position: Array, rotation: Array) -> Array:
    """Return [4, 4] of a position [3] and a quaternion [4] wxyz or a matrix of 9 numbers."""
    pose = np.eye(4)
    pose[:3, 3] = position
    rotation = np.asarray(rotation, np.float64)
    pose[:3, :3] = (Rotation.from_quat(rotation[[1, 2, 3, 0]]).as_matrix()
                    if rotation.size == 4 else rotation.reshape(3, 3))
    return pose


def models(m: mujoco.MjModel, d: mujoco.MjData) -> Iterator[Model]:
    """Yield everything below the world body, where ``d`` has it."""
    if m.body_geomnum[0]:
        yield Model('arena', np.eye(4), 'fixed', (_link(m, d, 0, None, np.eye(4)),))
    for root in range(1, m.nbody):
        if m.body_parentid[root] != 0:
            continue
        bodies = [b for b in range(m.nbody) if m.body_rootid[b] == root]
        joints = [j for b in bodies for j in _joints(m, b)]
        free = any(m.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE for j in joints)
        kind = 'free' if free else 'arm' if joints else 'fixed'
        name = 'panda' if kind == 'arm' else m.body(root).name.removesuffix(
            '_main').removesuffix('_root')
        yield Model(name, matrix(d.xpos[root], d.xquat[root]), kind,
                    tuple(_links(m, d, root, bodies)))


def _links(m: mujoco.MjModel, d: mujoco.MjData, root: int, bodies: list[int]) -> Iterator[Link]:
    """Yield the bodies with mass; Gazebo refuses others, so their children move one up."""
    # body -> its link or None, its pose in that link
    frames: dict[int, tuple[str | None, Array]] = {root: (None, np.eye(4))}
    for body in bodies:
        if body != root:
            parent, pose = frames[m.body_parentid[body]]
            frames[body] = parent, pose @ matrix(m.body_pos[body], m.body_quat[body])
        if m.body_mass[body] > 0 or len(bodies) == 1:
            parent, pose = frames[body]
            link = _link(m, d, body, parent, pose)
            frames[body] = link.name, np.eye(4)
            yield link
        elif m.body_geomnum[body]:
            raise ValueError(f'massless body {m.body(body).name} carries shapes')


def _link(
    m: mujoco.MjModel, d: mujoco.MjData, body: int, parent: str | None, pose: Array,
) -> Link:
    first = m.body_geomadr[body]
    geoms = tuple(_geom(m, g) for g in range(first, first + m.body_geomnum[body]))
    moving = [j for j in _joints(m, body) if m.jnt_type[j] in JOINTS]
    return Link(
        name=topic_name(m.body(body).name) if body else 'ground', parent=parent, pose=pose,
        mass=float(m.body_mass[body]),
        inertial_pose=matrix(m.body_ipos[body], m.body_iquat[body]),
        inertia=np.array(m.body_inertia[body]), geoms=geoms,
        joint=_joint(m, d, moving[0]) if moving else None)


def _joints(m: mujoco.MjModel, body: int) -> range:
    return range(m.body_jntadr[body], m.body_jntadr[body] + m.body_jntnum[body])


def _joint(m: mujoco.MjModel, d: mujoco.MjData, j: int) -> Joint:
    if np.any(m.jnt_pos[j]):
        raise ValueError(f"joint {m.joint(j).name} does not turn about its body's origin")
    dof, (drive,) = m.jnt_dofadr[j], np.flatnonzero(m.actuator_trnid[:, 0] == j)
    # A motor's torque is limited by its command, a servo's by its force.
    limit = m.actuator_forcerange if m.actuator_forcelimited[drive] else m.actuator_ctrlrange
    return Joint(
        name=topic_name(m.joint(j).name), kind=JOINTS[mujoco.mjtJoint(m.jnt_type[j])],
        axis=np.array(m.jnt_axis[j]), low=float(m.jnt_range[j, 0]), high=float(m.jnt_range[j, 1]),
        damping=float(m.dof_damping[dof]), friction=float(m.dof_frictionloss[dof]),
        effort=float(limit[drive, 1]), position=float(d.qpos[m.jnt_qposadr[j]]))


def _geom(m: mujoco.MjModel, g: int) -> Geom:
    return Geom(
        name=topic_name(m.geom(g).name), index=g, shape=SHAPES[mujoco.mjtGeom(m.geom_type[g])],
        size=np.array(m.geom_size[g]), pose=matrix(m.geom_pos[g], m.geom_quat[g]),
        visual=int(m.geom_group[g]) == VISUAL_GROUP,
        collides=bool(m.geom_contype[g] or m.geom_conaffinity[g]),
        friction=float(m.geom_friction[g, 0]))


def add(parent: ET.Element, tag: str, text: object = None, **attributes: object) -> ET.Element:
    """Append an element; arrays become numbers with spaces between."""
    element = ET.SubElement(parent, tag, {k: str(v) for k, v in attributes.items()})
    if text is not None:
        element.text = text if isinstance(text, str) else numbers(text)
    return element


def add_all(parent: ET.Element, /, **children: object) -> None:
    """Append an element with a text for each of ``children``, in their order."""
    for tag, text in children.items():
        add(parent, tag, text)


def numbers(values: object) -> str:
    """Return a bool, a number or an array as text."""
    if isinstance(values, bool):
        return 'true' if values else 'false'
    flat = np.atleast_1d(np.asarray(values, np.float64)).ravel()
    return ' '.join(f'{x:.10g}' for x in flat)


def xyz(pose: Array) -> str:
    """Return the position of [4, 4] as text."""
    return numbers(pose[:3, 3])


def rpy(pose: Array) -> str:
    """Return the rotation of [4, 4] as roll, pitch and yaw [rad]."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Gimbal lock')  # any of the right triples will do
        return numbers(Rotation.from_matrix(pose[:3, :3]).as_euler('xyz'))


def moments(link: Link) -> dict[str, str]:
    """Return the six moments of inertia [kg m^2] in the frame of ``inertial_pose``."""
    xx, yy, zz = link.inertia
    return {k: numbers(v) for k, v in {
        'ixx': xx, 'iyy': yy, 'izz': zz, 'ixy': 0.0, 'ixz': 0.0, 'iyz': 0.0}.items()}


def write(root: ET.Element, path: Path) -> None:
    """Write a document, indented."""
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding='utf-8', xml_declaration=True)


def grey(value: ArrayLike) -> str:
    """Return one brightness as opaque rgba."""
    return numbers([*np.repeat(np.asarray(value, np.float64), 3), 1.0])
