"""Pairs cameras and measurements by their header stamps."""

from __future__ import annotations

import unicodedata
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.conventions import EE_POSE, JOINT_STATES, relative
from dtvla_ros.policy.observation import Observation

KEEP = 16  # samples per input; at 100 Hz joints and 30 Hz cameras this still spans a frame
JOINTS, POSE = relative(JOINT_STATES), relative(EE_POSE)
MAX_INSTRUCTION_BYTES = 10_000


def refuse_instruction(text: str) -> str | None:
    """Return why an instruction cannot be given to the policy, or None."""
    if not text.strip():
        return 'it is empty'
    if len(text.encode('utf-8', 'replace')) >= MAX_INSTRUCTION_BYTES:
        return f'it is not shorter than {MAX_INSTRUCTION_BYTES} bytes'
    if any(unicodedata.category(c) in ('Cc', 'Cs') for c in text):
        return 'it has control characters'
    return None


class Observer:
    """Newest complete look at the world.

    ``cameras``: names whose images must all be there. ``fingers``: joints whose absolute
    positions add up to the gripper opening [m]; LIBERO signs them, a real Franka does not.
    ``max_skew`` [s]: largest difference of any stamp from the first camera's.
    """

    def __init__(
        self, cameras: Sequence[str], joints: Sequence[str], fingers: Sequence[str],
        max_skew: float,
    ) -> None:
        self.cameras = tuple(cameras)
        self._joints = tuple(joints)
        self._fingers = tuple(fingers)
        self._max_skew = max_skew
        self._samples: dict[str, OrderedDict[float, Any]] = {}
        self.missing = 'nothing seen yet'
        self.clear()

    def clear(self) -> None:
        """Forget everything seen: what comes next belongs to another task."""
        self._samples = {n: OrderedDict() for n in (*self.cameras, JOINTS, POSE)}

    def image(self, camera: str, image: NDArray[np.uint8], stamp: float) -> str | None:
        """Take an image [H, W, 3]; return why it was refused, or None."""
        if not image[::4, ::4].any():
            return f'{camera} image is all black'
        self._keep(camera, stamp, image)
        return None

    def joints(self, names: Sequence[str], positions: Sequence[float], stamp: float) -> str | None:
        """Take a joint state in any order; return why it was refused, or None."""
        if len(names) != len(positions):
            return f'joint_states has {len(names)} names and {len(positions)} positions'
        state = {n: float(p) for n, p in zip(names, positions, strict=True)}
        absent = [n for n in (*self._joints, *self._fingers) if n not in state]
        if absent:
            return f'joint_states lacks {absent[0]}'
        if not np.isfinite(list(state.values())).all():
            return 'joint_states has a non-finite position'
        self._keep(JOINTS, stamp, state)
        return None

    def pose(
        self, position: NDArray[np.float64], quaternion: NDArray[np.float64], stamp: float,
    ) -> str | None:
        """Take the gripper pose in the base frame; return why it was refused, or None."""
        norm = float(np.linalg.norm(quaternion))
        if not np.isfinite(position).all() or not abs(norm - 1.0) < 0.01:
            return 'ee_pose is not finite or its quaternion is not of unit length'
        self._keep(POSE, stamp, (position, quaternion / norm))
        return None

    def look(self, instruction: str) -> Observation | None:
        """Return the newest complete observation; None and `missing` where there is none."""
        first = self._samples[self.cameras[0]]
        lacking = []
        for stamp in reversed(first):
            parts = {name: self._nearest(name, stamp) for name in self._samples}
            absent = [name for name, part in parts.items() if part is None]
            if not absent:
                self.missing = ''
                return self._assemble(parts, instruction, stamp)
            lacking.append(f'{absent[0]} within {self._max_skew:g} s of {self.cameras[0]}')
        self.missing = lacking[0] if lacking else f'{self.cameras[0]} image'
        return None

    def _assemble(
        self, parts: Mapping[str, Any], instruction: str, stamp: float,
    ) -> Observation:
        state, (position, quaternion) = parts[JOINTS], parts[POSE]
        return Observation(
            images={name: parts[name] for name in self.cameras},
            joint_positions={n: state[n] for n in (*self._joints, *self._fingers)},
            ee_position=position,
            ee_quaternion=quaternion,
            gripper_opening=sum(abs(state[n]) for n in self._fingers),
            instruction=instruction,
            stamp=stamp)

    def _keep(self, name: str, stamp: float, sample: Any) -> None:
        samples = self._samples[name]
        samples[stamp] = sample
        samples.move_to_end(stamp)
        if len(samples) > KEEP:
            samples.popitem(last=False)

    def _nearest(self, name: str, stamp: float) -> Any:
        samples = self._samples[name]
        if not samples:
            return None
        best = min(samples, key=lambda t: abs(t - stamp))
        return samples[best] if abs(best - stamp) <= self._max_skew else None
