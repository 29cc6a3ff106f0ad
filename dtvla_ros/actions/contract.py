"""What the numbers of an action mean to an arm: space, channels, units, gripper, rate.

A policy's manifest, a dataset, a simulated scene and a robot file each say it; whoever brings two
of them together asks `differences`, and nobody else knows how many channels there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions import osc
from dtvla_ros.conventions import CHANNELS, CONTROL_RATE, POSE_CHANNELS
from dtvla_ros.errors import UserError
from dtvla_ros.field_types import require_types

OSC_POSE, OSC_POSE_ABSOLUTE = 'OSC_POSE', 'OSC_POSE_ABSOLUTE'
JOINT_POSITION, JOINT_DELTA = 'JOINT_POSITION', 'JOINT_DELTA'
SPACES = {
    OSC_POSE: "end effector's offset from the measured pose",
    OSC_POSE_ABSOLUTE: "end effector's pose in the base frame",
    JOINT_POSITION: 'positions of the joints',
    JOINT_DELTA: 'offsets from the measured positions of the joints'}
"""Action spaces by ``controller``, named as robosuite names its controllers and their input."""
JOINT_SPACES = (JOINT_POSITION, JOINT_DELTA)
GRIPPER = CHANNELS[-1]
UNITS = ('rad', 'm')
"""Of joints: revolute and prismatic."""
OSC_UNITS = (*['0.05 m'] * 3, *['0.5 rad'] * 3, 'open -1, closed 1')
_HOME = ', '.join(f'{part:g}' for part in osc.HOME.as_quat())
POSE_UNITS = (*['m'] * 3, *[f'rad from quaternion ({_HOME})'] * 3, 'open -1, closed 1')
_OF_OFFSETS = ('metres_per_unit', 'radians_per_unit')
_OF_END_EFFECTOR = (*_OF_OFFSETS, 'frame')
_OF_CHANNELS = ('channels', 'units', 'gripper')  # written where they are not the usual ones


@dataclass(frozen=True, slots=True)
class ActionContract:
    """What a number in a chunk means to an arm.

    ``controller``: the space, one of `SPACES`. OSC_POSE: a unit moves the goal by
    ``metres_per_unit`` or ``radians_per_unit`` away from the measured pose, in axes of ``frame``.
    OSC_POSE_ABSOLUTE: a position in ``frame`` [m] and a rotation vector from `osc.HOME` [rad].
    Joint spaces: ``channels`` are the joints' names, ``units`` theirs, 'rad' or 'm'; offsets are
    from the positions measured when their row begins. In all of them the channel ``gripper`` is a
    switch from ``gripper_open`` to ``gripper_close``; '': the arm has none. A row lasts
    1 / ``rate_hz``; of a chunk ``replan_steps`` rows are meant to be executed before the next
    decision. Raises ``UserError`` naming the field that is wrong.
    """

    controller: str = OSC_POSE
    metres_per_unit: float = osc.METRES_PER_UNIT
    radians_per_unit: float = osc.RADIANS_PER_UNIT
    frame: str = 'base'
    rate_hz: float = CONTROL_RATE
    gripper_open: float = osc.GRIPPER_OPEN
    gripper_close: float = osc.GRIPPER_CLOSED
    replan_steps: int = 6
    channels: tuple[str, ...] = CHANNELS
    units: tuple[str, ...] = OSC_UNITS
    gripper: str = GRIPPER

    def __post_init__(self) -> None:
        require_types(self)
        for name in ('metres_per_unit', 'radians_per_unit', 'rate_hz', 'replan_steps'):
            if not (value := getattr(self, name)) > 0:
                raise UserError(f'action contract: {name} must be positive, got {value}')
        if not self.gripper_open != self.gripper_close:
            raise UserError(f'action contract: gripper_open and gripper_close are both '
                            f'{self.gripper_open}')
        if self.is_joints:
            self._require_joints()
        elif self.channels != (usual := POSE_CHANNELS if self.is_pose else CHANNELS) or (
                self.gripper != GRIPPER):
            raise UserError(f'action contract: {self.controller} has the channels '
                            f'{", ".join(usual)}, got {", ".join(self.channels)}')
        elif self.is_pose and self.units != POSE_UNITS:
            raise UserError(f'action contract: {self.controller} has the units '
                            f'{"; ".join(POSE_UNITS)}, got {"; ".join(self.units)}')
        elif (self.gripper_open, self.gripper_close) != (osc.GRIPPER_OPEN, osc.GRIPPER_CLOSED):
            raise UserError(f'action contract: {self.controller} opens the gripper at '
                            f'{osc.GRIPPER_OPEN:g} and closes it at {osc.GRIPPER_CLOSED:g}, got '
                            f'{self.gripper_open:g} and {self.gripper_close:g}')

    def _require_joints(self) -> None:
        names = self.channels
        if not names or not all(names) or len(set(names)) != len(names):
            raise UserError(f'action contract: channels {list(names)} must be names, each once')
        if len(self.units) != len(names):
            raise UserError(f'action contract: {len(self.units)} units for {len(names)} channels')
        if self.gripper and self.gripper not in names:
            raise UserError(f'action contract: gripper {self.gripper!r} is none of the channels '
                            f'{", ".join(names)}')
        if not self.joints:
            raise UserError('action contract: no channel but the gripper')
        for name, unit in zip(names, self.units, strict=True):
            if name != self.gripper and unit not in UNITS:
                raise UserError(f'action contract: unit of {name} must be one of '
                                f'{", ".join(UNITS)}, got {unit!r}')

    @classmethod
    def of_joints(cls, joints: Sequence[str], controller: str = JOINT_POSITION,
                  gripper: str = GRIPPER, **others: Any) -> ActionContract:
        """Return the contract of revolute joints and, behind them, a gripper at -1 or +1."""
        tail = [gripper] if gripper else []
        return cls(controller=controller, channels=(*joints, *tail), gripper=gripper,
                   units=(*['rad'] * len(joints), *['open -1, closed 1'] * len(tail)), **others)

    @classmethod
    def of_pose(cls, **others: Any) -> ActionContract:
        """Return the contract of end-effector poses and, behind them, a gripper at -1 or +1."""
        return cls(controller=OSC_POSE_ABSOLUTE, channels=POSE_CHANNELS, units=POSE_UNITS,
                   **others)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ActionContract:
        """Read what `to_dict` returns, of a file. Raises ``UserError`` for an unknown field."""
        known = [entry.name for entry in fields(cls)]
        if unknown := next((name for name in data if name not in known), None):
            raise UserError(f'action contract: no field {unknown!r}; there are '
                            f'{", ".join(known)}')
        if data.get('controller') in (OSC_POSE_ABSOLUTE, *JOINT_SPACES) and (
                missing := next((name for name in _OF_CHANNELS if name not in data), None)):
            raise UserError(f'action contract: {missing} is missing')
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                  for name, value in data.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that this space has; of OSC_POSE those of the first versions."""
        return {name: value for name, value in asdict(self).items() if name not in self._unused}

    @property
    def _unused(self) -> tuple[str, ...]:
        """The fields that say nothing of this space."""
        return (_OF_END_EFFECTOR if self.is_joints else _OF_OFFSETS if self.is_pose else
                _OF_CHANNELS)

    @property
    def is_joints(self) -> bool:
        """Whether the channels are joints."""
        return self.controller in JOINT_SPACES

    @property
    def is_pose(self) -> bool:
        """Whether rows are poses of the end effector, not offsets of it."""
        return self.controller == OSC_POSE_ABSOLUTE

    @property
    def is_normalised(self) -> bool:
        """Whether rows are offsets of the end effector, each channel from -1 to 1."""
        return not (self.is_joints or self.is_pose)

    @property
    def dim(self) -> int:
        """Number of channels, D."""
        return len(self.channels)

    @property
    def joints(self) -> tuple[str, ...]:
        """The joints' names; none where the channels are no joints."""
        return tuple(n for n in self.channels if n != self.gripper) if self.is_joints else ()

    @property
    def gripper_index(self) -> int | None:
        """Which channel is the gripper's."""
        return self.channels.index(self.gripper) if self.gripper else None

    @property
    def motion(self) -> NDArray[np.intp]:
        """Which channels move the arm, [D - 1] or [D]."""
        return np.array([k for k, name in enumerate(self.channels) if name != self.gripper])

    @property
    def is_offset(self) -> bool:
        """Whether zeros in all channels that move the arm keep it where it is."""
        return self.controller not in (JOINT_POSITION, OSC_POSE_ABSOLUTE)

    def switch(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return what a gripper channel says, -1 open to +1 closed, from its own numbers."""
        x = np.asarray(values, np.float64)
        if (self.gripper_open, self.gripper_close) == (osc.GRIPPER_OPEN, osc.GRIPPER_CLOSED):
            return x
        return 2.0 * (x - self.gripper_open) / (self.gripper_close - self.gripper_open) - 1.0

    def from_switch(self, values: ArrayLike) -> NDArray[np.float64]:
        """Return a gripper channel's own numbers; inverse of `switch`."""
        x = np.asarray(values, np.float64)
        if (self.gripper_open, self.gripper_close) == (osc.GRIPPER_OPEN, osc.GRIPPER_CLOSED):
            return x
        return self.gripper_open + 0.5 * (x + 1.0) * (self.gripper_close - self.gripper_open)

    def closes(self, actions: ArrayLike) -> NDArray[np.bool_]:
        """Return of actions [..., D] whether the gripper is told to close, [...]."""
        x = np.asarray(actions)
        if self.gripper_index is None:
            return np.zeros(x.shape[:-1], bool)
        return self.switch(x[..., self.gripper_index]) > 0

    def at_rest(self, action: ArrayLike) -> NDArray[np.float32]:
        """Return the action [D] that keeps arm and gripper where ``action`` [D] leads them."""
        rest = np.array(action, np.float32)
        if self.is_offset:
            rest[self.motion] = 0.0
        return rest

    def fade(self, old: NDArray[np.float32], new: NDArray[np.float32],
             weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows [n, D] between ``old`` and ``new`` [n, D], by the ``weight`` [n] of new.

        The gripper is a switch, and half open is not between open and closed: it is new's. Turns
        go the shorter way.
        """
        rows, motion, share = new.copy(), self.motion, weight[:, None]
        rows[:, motion] = (1 - share) * old[:, motion] + share * new[:, motion]
        if self.is_pose:
            rows[:, 3:6] = osc.between(old[:, 3:6], new[:, 3:6], weight)
        return rows


def other_space(wanted: str, found: str) -> str:
    """Return in words that ``found`` is another action space than ``wanted``, '' if it is not."""
    return '' if wanted == found else (
        f'the action space is {found} ({SPACES.get(found, "?")}), not {wanted} '
        f'({SPACES.get(wanted, "?")})')


def differences(wanted: ActionContract, found: ActionContract) -> list[str]:
    """Return in what ``found`` is another contract than ``wanted``, in words; replanning is free.

    Each reads '... is A, not B', B being what is wanted.
    """
    told: list[str] = []
    if other := other_space(wanted.controller, found.controller):
        return [other]
    if wanted.channels != found.channels:
        told.append(f'the channels are {", ".join(found.channels)}, not '
                    f'{", ".join(wanted.channels)}')
    elif wanted.units != found.units and wanted.is_joints:
        told += [f'the unit of {name} is {b}, not {a}' for name, a, b in zip(
            wanted.channels, wanted.units, found.units, strict=True)
            if a != b and name != wanted.gripper]
    if wanted.gripper != found.gripper:
        told.append(f'the gripper is {found.gripper or "none"}, not {wanted.gripper or "none"}')
    for name in ('gripper_open', 'gripper_close', *(
            field for field in _OF_END_EFFECTOR if field not in wanted._unused)):
        a, b = getattr(wanted, name), getattr(found, name)
        if a != b:
            told.append(f'{name} is {b}, not {a}')
    if not math.isclose(wanted.rate_hz, found.rate_hz, rel_tol=1e-3):
        told.append(f'the rate is {found.rate_hz:g} Hz, not {wanted.rate_hz:g} Hz')
    return told


def require_offsets(contract: ActionContract, policy: str, command: str) -> None:
    """Raise ``UserError`` where what makes sense for OSC_POSE only is asked of another policy."""
    if not contract.is_normalised:
        raise UserError(f'{policy}: its actions are {contract.controller}, {command} is for '
                        f'{OSC_POSE}; use dtvla train sft and dtvla eval')
