"""LIBERO's OSC_POSE: target pose, twist and gripper command of a normalised action, and back.

Source: robosuite 1.4 ``OperationalSpaceController`` with LIBERO's gains (kp 150, critically
damped, goals re-based on the *measured* pose every 50 ms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from dtvla_ros.errors import UserError

METRES_PER_UNIT = 0.05
RADIANS_PER_UNIT = 0.5
# The goal is never reached before it is re-based, so the arm settles at these speeds, not at
# 0.05 m / 50 ms; a twist command needs them to move like the simulator.
METRES_PER_SECOND_PER_UNIT = 0.267
RADIANS_PER_SECOND_PER_UNIT = 2.67
_SETTLED = np.repeat([METRES_PER_SECOND_PER_UNIT, RADIANS_PER_SECOND_PER_UNIT], 3)
GRIPPER_OPEN = -1.0
GRIPPER_CLOSED = 1.0
GRIPPER_DEAD_BAND = 0.1
HOME = Rotation.from_quat([1.0, 0.0, 0.0, 0.0])
"""Orientation of a gripper that points straight down, base frame: where rotation vectors are 0."""
# Where a goal may lie, base frame [m]; reaches LIBERO's and robosuite's tables, which lie below
# the arm's base.
WORKSPACE_LOW = (0.15, -0.60, -0.20)
WORKSPACE_HIGH = (0.90, 0.60, 0.80)


def require_box(low: Sequence[float], high: Sequence[float]) -> None:
    """Raise ``UserError`` unless ``low`` lies below ``high`` on every axis of a workspace [m]."""
    for axis, least, most in zip('xyz', low, high, strict=True):
        if not least < most:
            raise UserError(f'workspace is empty on {axis}: low {least} is not below high {most}')


def target_pose(
    action: ArrayLike,
    position: ArrayLike,
    quaternion: ArrayLike,
    goal_quaternion: ArrayLike | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the goal position [3] m and quaternion [4] xyzw of a normalised action [>=6].

    ``position`` and ``quaternion``: as measured, base frame. The rotation is a rotation vector in
    base axes (pre-multiplied); without one the last goal orientation stays, as in robosuite.
    """
    clipped = np.clip(np.asarray(action, np.float64)[:6], -1.0, 1.0)
    goal = np.asarray(position, np.float64) + METRES_PER_UNIT * clipped[:3]
    turn = RADIANS_PER_UNIT * clipped[3:6]
    if goal_quaternion is not None and all(math.isclose(t, 0.0) for t in turn):
        return goal, np.asarray(goal_quaternion, np.float64)
    return goal, (Rotation.from_rotvec(turn) * Rotation.from_quat(quaternion)).as_quat()


def tilt(turn: Rotation) -> NDArray[np.float64]:
    """Return the rotation vector [..., 3] rad, base axes, that leads from `HOME` to ``turn``."""
    return np.asarray((turn * HOME.inv()).as_rotvec(), np.float64)


def pose_row(position: ArrayLike, quaternion: ArrayLike) -> NDArray[np.float64]:
    """Return a pose [3] m, [4] xyzw as a row of OSC_POSE_ABSOLUTE without its gripper [6]."""
    return np.append(np.asarray(position, np.float64), tilt(Rotation.from_quat(quaternion)))


def pose_of(row: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positions [..., 3] m and quaternions [..., 4] xyzw of rows [..., >=6].

    The inverse of `pose_row`.
    """
    values = np.asarray(row, np.float64)
    turn = Rotation.from_rotvec(values[..., 3:6]) * HOME
    return values[..., :3], np.asarray(turn.as_quat(), np.float64)


def action_towards(position: ArrayLike, quaternion: ArrayLike, goal: ArrayLike,
                   goal_quaternion: ArrayLike) -> NDArray[np.float64]:
    """Return the actions [..., 6] from measured poses to goals, unclipped.

    Positions [..., 3] m, quaternions [..., 4] xyzw. The inverse of `target_pose` where no channel
    is beyond 1.
    """
    turn = Rotation.from_quat(goal_quaternion) * Rotation.from_quat(quaternion).inv()
    away = np.asarray(goal, np.float64) - np.asarray(position, np.float64)
    return np.concatenate(
        (away / METRES_PER_UNIT, turn.as_rotvec() / RADIANS_PER_UNIT), axis=-1)


def between(old: ArrayLike, new: ArrayLike, weight: ArrayLike) -> NDArray[np.float64]:
    """Return rotation vectors [n, 3] on the shorter way between two, by the ``weight`` [n]."""
    begin = Rotation.from_rotvec(old)
    way = (Rotation.from_rotvec(new) * begin.inv()).as_rotvec()
    share = np.asarray(weight, np.float64)[:, None]
    return np.asarray((Rotation.from_rotvec(share * way) * begin).as_rotvec(), np.float64)


def velocity(action: ArrayLike) -> NDArray[np.float64]:
    """Return the speed [6] (m/s, rad/s, base axes) at which a held action [>=6] settles."""
    return np.asarray(action, np.float64)[:6] * _SETTLED


def from_velocity(speed: ArrayLike) -> NDArray[np.float64]:
    """Return the normalised action [6] that settles at a speed [6]; inverse of `velocity`."""
    return np.asarray(speed, np.float64)[:6] / _SETTLED


def gripper_command(channel: float, last: float) -> float:
    """Return -1 (open), +1 (close), or ``last`` where the channel says neither."""
    if abs(channel) <= GRIPPER_DEAD_BAND:
        return last
    return GRIPPER_CLOSED if channel > 0 else GRIPPER_OPEN
