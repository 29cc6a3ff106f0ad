"""Bounds on position, velocity and acceleration of commanded joints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.conventions import parameter
from dtvla_ros.errors import UserError

FROM_URDF = (math.nan,)
UNBOUNDED = 1e9  # an acceleration that bounds nothing, and times 0 is a number [rad/s^2]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class JointLimits:
    """Bounds on the commands of arms that are commanded by their joints, one value per joint.

    One value stands for all of them; not a number: as the ``urdf`` has it. The defaults are for an
    arm among people's things.
    """

    urdf: str = parameter('', 'file of the robot description, for limits that are not given')
    joint_lower: tuple[float, ...] = parameter(
        FROM_URDF, 'lowest positions of arm_joints [rad]; .nan: of the urdf')
    joint_upper: tuple[float, ...] = parameter(
        FROM_URDF, 'highest positions of arm_joints [rad]; .nan: of the urdf')
    joint_velocity: tuple[float, ...] = parameter(
        (0.5,), 'largest velocities of arm_joints [rad/s], or those of the urdf where they are '
        'smaller; .nan: those')
    joint_acceleration: tuple[float, ...] = parameter(
        (2.0,), 'largest accelerations of arm_joints [rad/s^2]')
    joint_lead: tuple[float, ...] = parameter(
        (0.2,), 'how far a command may be ahead of the measured positions of arm_joints [rad]')


PROFILES = {
    'default': JointLimits(),
    # What the policy chooses passes untouched, so that the simulator behaves as trained on.
    'fidelity': JointLimits(joint_velocity=(math.inf,), joint_acceleration=(math.inf,),
                            joint_lead=(math.inf,))}


@dataclass(frozen=True, slots=True)
class JointBounds:
    """Limits of J joints by ``names``: positions [rad or m], velocity, acceleration, lead [J]."""

    names: tuple[str, ...]
    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array
    lead: Array

    def beyond(self, positions: Array) -> Array:
        """Return how far positions [J] lie outside their range [J], 0 inside."""
        return np.maximum(np.maximum(self.lower - positions, positions - self.upper), 0.0)


def bounds_of(joints: Sequence[str], limits: JointLimits) -> JointBounds:
    """Return the bounds of an arm's ``joints``.

    Raises ``UserError`` naming the joint and the parameter for a bound that is not known or makes
    no sense, and for a URDF that cannot be read or has no such joint.
    """
    told = _read_urdf(Path(limits.urdf), joints) if limits.urdf else {}

    def values(name: str) -> Array:
        given = np.asarray(getattr(limits, name), np.float64)
        if len(given) not in (1, len(joints)):
            raise UserError(f'parameter {name}: {len(given)} values for the {len(joints)} '
                            'arm_joints; give one for each, or one for all')
        return np.broadcast_to(given, len(joints)).copy()

    def known(name: str, which: str) -> Array:
        found = values(name)
        for k, joint in enumerate(joints):
            if math.isnan(found[k]):
                found[k] = told.get(joint, {}).get(which, math.nan)
            if math.isnan(found[k]):
                raise UserError(f'parameter {name}: no {which} limit of {joint}; give it here, '
                                'or a urdf that has it')
        return found

    lower, upper = known('joint_lower', 'lower'), known('joint_upper', 'upper')
    velocity = known('joint_velocity', 'velocity')
    for k, joint in enumerate(joints):
        velocity[k] = min(velocity[k], told.get(joint, {}).get('velocity', math.inf))
        if not lower[k] < upper[k]:
            raise UserError(f'parameter joint_lower: {lower[k]:g} of {joint} is not below its '
                            f'joint_upper {upper[k]:g}')
    rest = {name: values(f'joint_{name}') for name in ('acceleration', 'lead')}
    for name, found in (('velocity', velocity), *rest.items()):
        if not (found > 0).all():
            worst = int(np.argmin(np.where(found > 0, 1.0, 0.0)))
            raise UserError(f'parameter joint_{name}: {found[worst]:g} of {joints[worst]} must be '
                            'positive')
    return JointBounds(tuple(joints), lower, upper, velocity, **rest)


def _read_urdf(path: Path, joints: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return lower, upper and velocity of joints, as far as a URDF has them."""
    try:
        elements = {element.get('name'): element
                    for element in ElementTree.parse(path).getroot().iter('joint')}
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f'parameter urdf: {path}: {error}; give a URDF, made from xacro where it '
                        'is one') from None
    found: dict[str, dict[str, float]] = {}
    for joint in joints:
        if (element := elements.get(joint)) is None:
            raise UserError(f'parameter urdf: {path} has no joint {joint}; arm_joints or the file '
                            "is another arm's")
        limit = element.find('limit')
        try:
            told = {} if limit is None else {
                name: float(text) for name in ('lower', 'upper', 'velocity')
                if (text := limit.get(name)) is not None}
        except ValueError as error:
            raise UserError(f'parameter urdf: {path}: limit of {joint}: {error}') from None
        if element.get('type') == 'continuous':
            told |= {'lower': -math.inf, 'upper': math.inf}
        found[joint] = told
    return found


class JointLimiter:
    """Moves a command towards targets, once per control tick, within the bounds.

    Each joint by itself: it never runs into an end of its range faster than it can brake.
    ``commanded`` [J]: the last command, None before `rebase`.
    """

    def __init__(self, bounds: JointBounds, period: float) -> None:
        self.bounds, self._period = bounds, period
        self.commanded: Array | None = None
        self.reset()

    def reset(self) -> None:
        """Start again from rest: the command stood still without the limiter."""
        self.velocity = np.zeros(len(self.bounds.names))

    def rebase(self, measured: ArrayLike) -> None:
        """Command from where the arm is, at rest."""
        self.commanded = np.array(measured, np.float64)
        self.reset()

    def clamp(self, target: Array, measured: Array) -> Array:
        """Return the command [J] of this tick on the way to ``target`` [J]; ``commanded`` is it.

        ``measured`` [J]: where the arm is; the command stays within ``lead`` of it.
        """
        assert self.commanded is not None
        b, dt = self.bounds, self._period
        goal = np.clip(np.clip(target, b.lower, b.upper), measured - b.lead, measured + b.lead)
        way = goal - self.commanded
        # The largest velocity from which it can still brake within the way that is left.
        room = np.sqrt(2.0 * np.minimum(b.acceleration, UNBOUNDED) * np.abs(way))
        wanted = np.sign(way) * np.minimum(np.minimum(np.abs(way) / dt, b.velocity), room)
        return self._move(wanted)

    def brake(self) -> Array:
        """Return the command [J] of this tick on the way to rest."""
        return self._move(np.zeros_like(self.velocity))

    def _move(self, wanted: Array) -> Array:
        assert self.commanded is not None
        b, dt = self.bounds, self._period
        change = b.acceleration * dt
        velocity = np.clip(wanted, self.velocity - change, self.velocity + change)
        before = self.commanded
        low, high = np.minimum(before, b.lower), np.maximum(before, b.upper)
        self.commanded = np.clip(before + velocity * dt, low, high)
        self.velocity = (self.commanded - before) / dt
        return self.commanded
