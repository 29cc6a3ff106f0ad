"""A dataset as the annotation reads it: one episode's motion, pictures and words at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.annotation.motion import Motion, hysteresis
from dtvla_ros.annotation.task import Goal, parse_instruction
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError


class Source:
    """A LeRobot dataset with an end effector state and a gripper command.

    The hand's position is the state's channels named x, y, z, else its first three; the fingers
    are those named ``finger_*``, else channels 6 and 7 of an eight-channel state (LIBERO's
    layout). The command is the action's last channel, larger values close it unless
    ``invert_gripper``. ``things``: names to use where the dataset records no places.

    Raises
    ------
    UserError
        If the dataset has no such state or action.

    """

    def __init__(self, root: Path, things: Sequence[str] = (), invert_gripper: bool = False):
        self.root = root
        self.reader = DatasetReader(root)
        self._things = tuple(things)
        self._sign = -1.0 if invert_gripper else 1.0
        state = self._numbers(layout.STATE)
        names = self._names(layout.STATE)
        axes = [names.index(a) for a in 'xyz'] if set('xyz') <= set(names) else [0, 1, 2]
        if state.ndim != 2 or state.shape[1] <= max(axes):
            raise UserError(f'{root}: {layout.STATE} has shape {state.shape}; an end effector '
                            'position of three channels is needed')
        self._hand = state[:, axes]
        fingers = [k for k, name in enumerate(names) if name.startswith('finger')]
        if not fingers and state.shape[1] == 8:
            fingers = [6, 7]
        self._opening = None
        if fingers:
            self._opening = np.abs(state[:, fingers]).sum(axis=1)
        action = self._numbers(layout.ACTION)
        if action.ndim != 2 or not len(action):
            raise UserError(f'{root}: {layout.ACTION} has shape {action.shape}; a vector per '
                            'frame is needed, its last channel the gripper command')
        command = self._sign * action[:, -1]
        low, high = float(command.min()), float(command.max())
        span = high - low
        self._level = (command - low) / span if span > 1e-6 else np.zeros(len(command))

    def __len__(self) -> int:
        return len(self.reader.episodes)

    def prepare(self) -> None:
        """Read what is read once, before several threads ask for it."""
        self.motion(0)

    def _numbers(self, name: str) -> NDArray[np.float64]:
        return np.asarray(self.reader.column(name), np.float64)

    def _names(self, feature: str) -> list[str]:
        names: Any = self.reader.info['features'].get(feature, {}).get('names') or []
        while isinstance(names, dict):
            names = next(iter(names.values()), [])
        return [str(name) for name in names]

    @property
    def fingerprint(self) -> str:
        """A short hash of what makes this dataset this one."""
        facts = {'episodes': [[row['length'], row['tasks'][0]] for row in self.reader.episodes],
                 'fps': self.reader.fps,
                 'hand': hashlib.sha256(self._hand.tobytes()).hexdigest()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self.reader.fps)

    @cached_property
    def _widest(self) -> float:
        return 0.0 if self._opening is None else float(np.quantile(self._opening, 0.99))

    @cached_property
    def _places(self) -> dict[str, NDArray[np.float64]]:
        if layout.PLACES not in self.reader.info['features']:
            return {}
        names = [name.removesuffix('.x') for name in self._names(layout.PLACES)[::3]]
        values = self._numbers(layout.PLACES).reshape(len(self._hand), -1, 3)
        return {name: values[:, k] for k, name in enumerate(names)}

    @cached_property
    def _thoughts(self) -> list[str]:
        return [str(text) for text in self.reader.column(layout.REASONING)]

    def rows(self, episode: int) -> slice:
        """Return where an episode's frames lie in the whole dataset."""
        row = self.reader.episodes[episode]
        return slice(row['dataset_from_index'], row['dataset_to_index'])

    def motion(self, episode: int) -> Motion:
        """Return an episode's proprioception."""
        part = self.rows(episode)
        return Motion(
            hand=self._hand[part], closing=hysteresis(self._level[part]),
            opening=None if self._opening is None else self._opening[part],
            widest=self._widest, fps=self.fps,
            places={name: values[part] for name, values in self._places.items()})

    def level(self, episode: int) -> NDArray[np.float64]:
        """Return the gripper command [N] in 0 (open) .. 1 (closed)."""
        return self._level[self.rows(episode)]

    def instruction(self, episode: int) -> str:
        """Return the task's sentence."""
        return str(self.reader.episodes[episode]['tasks'][0])

    def things(self, episode: int) -> tuple[str, ...]:
        """Return the names a label may use in this episode."""
        known = self._things or tuple(self._places)
        return tuple(dict.fromkeys((*known, *self.goal(episode).things)))

    def goal(self, episode: int) -> Goal:
        """Return the parsed instruction, in the names of ``things``."""
        known = self._things or tuple(self._places)
        return parse_instruction(self.instruction(episode), known)

    def thoughts(self, episode: int) -> list[str]:
        """Return the thoughts the dataset holds already.

        Raises ``UserError`` when it has none.
        """
        return self._thoughts[self.rows(episode)]

    def pictures(self, episode: int, frames: Sequence[int]) -> list[dict[str, NDArray[np.uint8]]]:
        """Return uint8 RGB [H, W, 3] by the policy's camera names, for each of ``frames``."""
        wanted = set(frames)
        found: dict[int, dict[str, NDArray[np.uint8]]] = {frame: {} for frame in frames}
        for key in self.reader.camera_keys:
            name = layout.CAMERAS.get(key, key.rpartition('.')[2])
            if len(wanted) == 1:
                found[frames[0]][name] = self.reader.image(episode, frames[0], key)
                continue
            for k, image in enumerate(self.reader.frames(episode, key)):
                if k in wanted:
                    found[k][name] = image
                if k >= max(wanted):
                    break
        return [found[frame] for frame in frames]
