"""Which channels of a state or an action are the end effector's, by names where there are any."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

_AXIS = re.compile(r'^(?:d|p|t|pos|ee|eef|tcp|delta)?([xyz])$')
# Beside x, y, z they make something else than a place of them.
_NO_PLACE = {
    'rot', 'rotation', 'rotvec', 'axis', 'angle', 'aa', 'orientation', 'quat', 'quaternion', 'q',
    'euler', 'rpy', 'vel', 'velocity', 'speed', 'angular', 'force', 'torque', 'wrench', 'acc',
    'acceleration', 'imu', 'gyro', 'object', 'target', 'goal', 'joint', 'motor'}
# That make a channel something else than a coordinate of a rotation vector, or a finger.
_OTHER = {'qx', 'qy', 'qz', 'qw', 'w', 'quat', 'quaternion', 'joint', 'vel', 'velocity', 'force',
          'torque', 'roll', 'pitch', 'yaw', 'euler', 'rpy', 'd'}
_FINGERS = {'finger', 'fingers', 'gripper'}
_NUMBERED_JOINT = re.compile(r'(?:^|[^a-z])q[ ._]?\d')
# Not motor: LeRobot's conversion from v1.6 calls everything motor_0, motor_1, ...
_JOINTS = {'joint', 'joints', 'shoulder', 'elbow', 'wrist', 'waist', 'forearm', 'j'}
# Numbered names that say nothing.
_NUMBERED = re.compile(r'^(?:state|observation|obs|dim|channel|ch|feature|value|col|column|'
                       r'element|idx|index|s|c)?[ ._\[-]*\d+\]?$')


def _words(name: str) -> list[str]:
    return re.findall('[a-z]+|[0-9]+', name.lower())


def are_joints(names: Sequence[str]) -> bool:
    """Return whether any channel is called as a joint is."""
    return any(_JOINTS & set(_words(name)) or _NUMBERED_JOINT.search(name.lower())
               for name in names)


def gripper_channel(names: Sequence[str], size: int) -> int | None:
    """Return which of an action's ``size`` channels commands the gripper: the one called so.

    Where none is it is the last, but for joints, of which the last may be anything.
    """
    found = [k for k, name in enumerate(names) if _FINGERS & set(_words(name))]
    return found[-1] if found else None if are_joints(names) else size - 1


class EndEffector(NamedTuple):
    """Channels of a state, none where it does not hold the thing.

    ``position``: x, y, z; ``rotation``: of a rotation vector; ``fingers``: of both fingers.
    """

    position: list[int]
    rotation: list[int]
    fingers: list[int]


def end_effector(names: Sequence[str], size: int) -> EndEffector:
    """Return which of ``size`` channels, called ``names`` where they have any, are whose.

    Without names, or with numbers for names, they are those of LIBERO's state: x, y, z, a
    rotation vector, two fingers. Where names are there and are no pose nothing is assumed.
    """
    words = list(map(_words, names))
    if not names or all(_NUMBERED.match(name.lower()) for name in names):
        return EndEffector([0, 1, 2] if size >= 3 else [], [3, 4, 5] if size >= 6 else [],
                           [6, 7] if size == 8 else [])
    groups: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for channel, parts in enumerate(words):
        axes = [k for k, part in enumerate(parts) if _AXIS.match(part)]
        if len(axes) == 1 and not _NO_PLACE & set(parts):
            found = _AXIS.match(parts[axes[0]])
            assert found is not None
            groups[(*parts[:axes[0]], *parts[axes[0] + 1:])].append((found[1], channel))
    places = {stem: [channel for _, channel in sorted(axes)] for stem, axes in groups.items()
              if ''.join(sorted(axis for axis, _ in axes)) == 'xyz'}
    position = places[()] if () in places else next(iter(places.values())) if len(
        places) == 1 else []
    after = range(position[-1] + 1, position[-1] + 4) if position else range(0)
    turns = list(after) if position and after.stop <= size and not any(
        (_OTHER | _FINGERS) & set(words[k]) for k in after) else []
    fingers = [k for k, parts in enumerate(words) if _FINGERS & set(parts)]
    if not fingers and position and size == 8 and not any(_OTHER & set(words[k]) for k in (6, 7)):
        fingers = [6, 7]
    return EndEffector(position, turns, fingers if len(fingers) == 2 else [])
