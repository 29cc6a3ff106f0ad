"""Reads demonstrations of a LeRobot dataset: motion, images and what the instruction asks for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_sim.experts.grammar import AXIS_WORDS, MOVE_THRESHOLD, STILL

CLOSE_ABOVE, OPEN_BELOW = 0.65, 0.35  # of the gripper's range: it counts as closing, opening
SMOOTHING = 0.15  # standard deviation of the filter on the speed [s]
WIDE = 0.86  # of the widest opening: the fingers count as fully open

Array = NDArray[np.float64]

_FORMS = (
    re.compile(r'^(?P<verb>pick) up (?P<objects>.+?) and (?:place|put) (?:it|them) '
               r'(?:in|on|into|onto|inside|to)(?: top of)? (?P<to>.+)$'),
    re.compile(r'^(?P<verb>put|place|stack|push|move|slide) (?P<objects>.+?) '
               r'(?:in|on|into|onto|inside|to)(?: top of)? (?P<to>.+)$'),
    re.compile(r'^(?P<verb>pick) up (?P<objects>.+)$'),
    re.compile(r'^(?P<verb>open|close|push|turn on|turn off) (?P<objects>.+)$'),
)
_ARTICLES = re.compile(r'\b(?:the|a|an|both|all)\b')
# What follows such a word tells objects of the same name apart and is itself not moved.
_WHERE = re.compile(r' (?:between|next to|in front of|on top of|on|in|from|at|of) .*$')


@dataclass(frozen=True, slots=True)
class Motion:
    """One episode's proprioception.

    ``position`` [N, 3] m of the end effector in base axes; ``closing`` [N] bool: the gripper
    command; ``opening`` [N] m between the finger pads, None where it is not recorded; ``widest``
    [m]: the opening of an empty open gripper; ``fps``; ``places`` [N, 3] m by object, where
    recorded.
    """

    position: Array
    closing: NDArray[np.bool_]
    opening: Array | None
    widest: float
    fps: float
    places: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.position)

    @property
    def speed(self) -> Array:
        """Speed of the end effector [N] m/s, smoothed."""
        if len(self) < 2:
            return np.zeros(len(self))
        steps = np.linalg.norm(np.gradient(self.position, axis=0), axis=1) * self.fps
        return gaussian_filter1d(steps, max(SMOOTHING * self.fps, 0.5))

    @property
    def toggles(self) -> NDArray[np.int64]:
        """Frames at which the gripper command first differs from the one before."""
        return np.flatnonzero(np.diff(self.closing)) + 1

    def is_wide(self) -> NDArray[np.bool_]:
        """Return whether the gripper is fully open [N]; as commanded if that is not recorded."""
        return ~self.closing if self.opening is None else self.opening > WIDE * self.widest

    def phrase(self, frame: int, end: int) -> str:
        """Describe the motion from ``frame`` until before ``end`` in words."""
        offset = self.position[min(end, len(self) - 1)] - self.position[frame]
        words = [word for word in move_words(offset).split() if word != STILL]
        now = bool(self.closing[frame])
        if frame > 0 and bool(self.closing[frame - 1]) != now:
            gripper = 'closes' if now else 'opens'
        else:
            gripper = 'stays closed' if now else 'stays open'
        return f'{"move " + " ".join(words) if words else "stay"}, gripper {gripper}'


def hysteresis(level: Array) -> NDArray[np.bool_]:
    """Return whether a gripper level in 0 (open) .. 1 (closed) counts as closing [N].

    It changes above ``CLOSE_ABOVE`` and back below ``OPEN_BELOW``; noise in between does nothing.
    """
    state = np.where(level >= CLOSE_ABOVE, 1, np.where(level <= OPEN_BELOW, 0, -1))
    if not len(state):
        return np.zeros(0, bool)
    if state[0] < 0:
        state[0] = level[0] > (CLOSE_ABOVE + OPEN_BELOW) / 2
    last = np.maximum.accumulate(np.where(state >= 0, np.arange(len(state)), 0))
    return state[last].astype(bool)


def move_words(offset: Array) -> str:
    """Return the grammar's three words for a displacement [3] m in base axes."""
    return ' '.join(plus if amount > MOVE_THRESHOLD else minus if amount < -MOVE_THRESHOLD
                    else STILL for amount, (plus, minus) in zip(offset, AXIS_WORDS))


@dataclass(frozen=True, slots=True)
class Goal:
    """A parsed instruction; names have underscores for blanks, ``destination`` may be unknown."""

    verb: str
    objects: tuple[str, ...]
    destination: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Everything named, objects first."""
        return (*self.objects, *([self.destination] if self.destination else ()))


def parse_instruction(instruction: str, known: Sequence[str] = ()) -> Goal:
    """Return what an instruction asks for; ``known`` names win over the instruction's words.

    A sentence of another form names no verb, and as objects the known ones it mentions.
    """
    text = ' '.join(instruction.replace('_', ' ').lower().rstrip('.').split())
    for form in _FORMS:
        if match := form.match(text):
            parts = match.groupdict()
            listed = re.split(r',| and ', _WHERE.sub('', parts['objects']))
            objects = tuple(name for part in listed if (name := _name(part, known)))
            to = parts.get('to')
            return Goal(parts['verb'], objects, _name(to, known) if to else None)
    found = [(at, name) for name in known if (at := _find(name, text)) is not None]
    return Goal('', tuple(name for _, name in sorted(found)), None)


def _find(name: str, text: str) -> int | None:
    match = re.search(rf'\b{re.escape(name.replace("_", " "))}\b', text)
    return match.start() if match else None


def _name(phrase: str, known: Sequence[str]) -> str:
    words = _ARTICLES.sub(' ', phrase).split()
    # The longest known name that is part of the phrase ("yellow mark" is the mark).
    for name in sorted(known, key=len, reverse=True):
        if _find(name, ' '.join(words)) is not None:
            return name
    return '_'.join(_WHERE.sub('', ' '.join(words)).split())


class Source:
    """A LeRobot dataset with an end effector state and a gripper command.

    The end effector's position is the state's channels named x, y, z, else its first three; the
    fingers are those named ``finger_*``, else channels 6 and 7 of an eight-channel state
    (LIBERO's layout). The command is the action's last channel, larger values close it unless
    ``invert_gripper``. ``objects``: names to use where the dataset records no places.

    Raises
    ------
    UserError
        If the dataset has no such state or action.

    """

    def __init__(self, root: Path, objects: Sequence[str] = (), invert_gripper: bool = False):
        self.root = root
        self.reader = DatasetReader(root)
        self._objects = tuple(objects)
        state, names = self._numbers(layout.STATE), self._names(layout.STATE)
        axes = [names.index(a) for a in 'xyz'] if set('xyz') <= set(names) else [0, 1, 2]
        if state.ndim != 2 or state.shape[1] <= max(axes):
            raise UserError(f'{root}: {layout.STATE} has shape {state.shape}; an end effector '
                            'position of three channels is needed')
        self._position = state[:, axes]
        fingers = [k for k, name in enumerate(names) if name.startswith('finger')]
        if not fingers and state.shape[1] == 8:
            fingers = [6, 7]
        self._opening = np.abs(state[:, fingers]).sum(axis=1) if fingers else None
        action = self._numbers(layout.ACTION)
        if action.ndim != 2 or not len(action):
            raise UserError(f'{root}: {layout.ACTION} has shape {action.shape}; a vector per '
                            'frame is needed, its last channel the gripper command')
        command = -action[:, -1] if invert_gripper else action[:, -1]
        low, span = float(command.min()), float(np.ptp(command))
        self._level = (command - low) / span if span > 1e-6 else np.zeros(len(command))

    def __len__(self) -> int:
        return len(self.reader.episodes)

    def _numbers(self, name: str) -> Array:
        return np.asarray(self.reader.column(name), np.float64)

    def _names(self, feature: str) -> list[str]:
        names: Any = self.reader.info['features'].get(feature, {}).get('names') or []
        while isinstance(names, dict):
            names = next(iter(names.values()), [])
        return [str(name) for name in names]

    @property
    def fingerprint(self) -> str:
        """A short hash of the dataset's episodes, rate and motion."""
        content = {'episodes': [[row['length'], row['tasks'][0]] for row in self.reader.episodes],
                   'fps': self.reader.fps,
                   'hand': hashlib.sha256(self._position.tobytes()).hexdigest()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def _widest(self) -> float:
        return 0.0 if self._opening is None else float(np.quantile(self._opening, 0.99))

    @cached_property
    def _places(self) -> dict[str, Array]:
        if layout.PLACES not in self.reader.info['features']:
            return {}
        names = [name.removesuffix('.x') for name in self._names(layout.PLACES)[::3]]
        values = self._numbers(layout.PLACES).reshape(len(self._position), -1, 3)
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
            position=self._position[part], closing=hysteresis(self._level[part]),
            opening=None if self._opening is None else self._opening[part],
            widest=self._widest, fps=float(self.reader.fps),
            places={name: values[part] for name, values in self._places.items()})

    def level(self, episode: int) -> Array:
        """Return the gripper command [N] in 0 (open) .. 1 (closed)."""
        return self._level[self.rows(episode)]

    def instruction(self, episode: int) -> str:
        """Return the task's sentence."""
        return str(self.reader.episodes[episode]['tasks'][0])

    def goal(self, episode: int) -> Goal:
        """Return the parsed instruction, in the names of ``objects``."""
        return parse_instruction(self.instruction(episode), self._objects or tuple(self._places))

    def objects(self, episode: int) -> tuple[str, ...]:
        """Return the names a label may use in this episode."""
        known = self._objects or tuple(self._places)
        return tuple(dict.fromkeys((*known, *self.goal(episode).names)))

    def thoughts(self, episode: int) -> list[str]:
        """Return the thoughts that the dataset holds; raises ``UserError`` if it has none."""
        return self._thoughts[self.rows(episode)]

    def images(self, episode: int, frames: Sequence[int]) -> list[dict[str, NDArray[np.uint8]]]:
        """Return uint8 RGB [H, W, 3] by the policy's camera names, for each of ``frames``."""
        found: dict[int, dict[str, NDArray[np.uint8]]] = {frame: {} for frame in frames}
        for key in self.reader.camera_keys:
            name = layout.CAMERAS.get(key, key.rpartition('.')[2])
            if len(found) == 1:
                found[frames[0]][name] = self.reader.image(episode, frames[0], key)
                continue
            for k, image in enumerate(self.reader.frames(episode, key)):
                if k in found:
                    found[k][name] = image
                if k >= max(found):
                    break
        return [found[frame] for frame in frames]
