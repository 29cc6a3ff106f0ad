"""Reads demonstrations of a LeRobot dataset: motion, images and what the instruction asks for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.files import Journal
from dtvla_ros.thought import STILL, move_words

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
    command; ``opening`` [N] m between the finger pads, if recorded; ``widest`` [m]: that of an
    empty open gripper; ``fps``; ``places`` [N, 3] m by object, if recorded.
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
        words = [word for word in move_words(offset) if word != STILL]
        names = ('opens', 'closes') if frame in self.toggles else ('stays open', 'stays closed')
        gripper = names[int(self.closing[frame])]
        return f'{"move " + " ".join(words) if words else "stay"}, gripper {gripper}'


def latched(on: NDArray[np.bool_], off: NDArray[np.bool_], begin: bool = False
            ) -> NDArray[np.bool_]:
    """Return a state [N] that ``on`` [N] sets and ``off`` [N] clears; before that ``begin``."""
    last = np.maximum.accumulate(np.where(on | off, np.arange(len(on)), -1))
    return np.where(last < 0, begin, on[last])


def hysteresis(level: Array) -> NDArray[np.bool_]:
    """Return whether a gripper level in 0 (open) .. 1 (closed) counts as closing [N]."""
    middle = (CLOSE_ABOVE + OPEN_BELOW) / 2
    return latched(level >= CLOSE_ABOVE, level <= OPEN_BELOW, bool((level[:1] > middle).any()))


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
    """Return what an instruction asks for, in ``known`` names first, or known objects."""
    text = ' '.join(instruction.replace('_', ' ').lower().rstrip('.').split())
    for form in _FORMS:
        if match := form.match(text):
            parts: dict[str, Any] = {'to': None} | match.groupdict()
            listed = re.split(r',| and ', _WHERE.sub('', parts['objects']))
            objects = tuple(name for part in listed if (name := _name(part, known)))
            return Goal(parts['verb'], objects, _name(parts['to'], known) if parts['to'] else None)
    found = sorted((match.start(), name) for name in known if (match := _find(name, text)))
    return Goal('', tuple(name for _, name in found), None)


def _find(name: str, text: str) -> re.Match[str] | None:
    return re.search(rf'\b{re.escape(name.replace("_", " "))}\b', text)


def _name(phrase: str, known: Sequence[str]) -> str:
    text = ' '.join(_ARTICLES.sub(' ', phrase).split())
    # The longest known name that is part of the phrase ("yellow mark" is the mark).
    inside = [name for name in known if _find(name, text)]
    return max(inside, key=len, default='_'.join(_WHERE.sub('', text).split()))


class Source:
    """A LeRobot dataset with an end effector state and a gripper command, or ``UserError``.

    Positions and fingers are the state's channels that ``data.channels`` finds. The action's
    channel called gripper, else its last, closes with larger values unless ``invert_gripper``.
    ``objects``: names to use where the dataset records no places.
    """

    def __init__(self, root: Path, objects: Sequence[str] = (), invert_gripper: bool = False):
        self.root = root
        self.reader = reader = DatasetReader(root)
        reader.require_pose('position')
        reader.require_finite(layout.STATE, layout.ACTION)
        state, channels = reader.rows(layout.STATE), reader.end_effector
        self._position = state[:, channels.position]
        self._opening = (np.abs(state[:, channels.fingers]).sum(axis=1) if channels.fingers
                         else None)
        self._widest = 0.0 if self._opening is None else float(np.quantile(self._opening, 0.99))
        if (gripper := reader.gripper) is None:
            raise UserError(f'{root / layout.INFO}: {layout.ACTION} '
                            f'({", ".join(reader.channels(layout.ACTION)[:8])}) has no command of '
                            'the gripper; record one, or name the channel that is it')
        command = reader.rows(layout.ACTION)[:, gripper] * (-1.0 if invert_gripper else 1.0)
        low, span = float(command.min()), float(np.ptp(command))
        self.level = (command - low) / span if span > 1e-6 else np.zeros(len(command))
        objects_x = (reader.channels(layout.PLACES)
                     if layout.PLACES in reader.table.column_names else [])[::3]
        self._places = {name.removesuffix('.x'): reader.rows(layout.PLACES)[:, 3 * k:3 * k + 3]
                        for k, name in enumerate(objects_x)}
        self._known = tuple(objects) or tuple(self._places)

    def __len__(self) -> int:
        return len(self.reader.episodes)

    @property
    def fingerprint(self) -> str:
        """A short hash of the dataset's episodes, rate and motion."""
        content = {'episodes': [[length, self.reader.task(k)]
                                for k, length in enumerate(self.reader.lengths)],
                   'fps': self.reader.fps,
                   'hand': hashlib.sha256(self._position.tobytes()).hexdigest()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def motion(self, episode: int) -> Motion:
        """Return an episode's proprioception."""
        part = self.reader.span(episode)
        return Motion(
            position=self._position[part], closing=hysteresis(self.level[part]),
            opening=None if self._opening is None else self._opening[part],
            widest=self._widest, fps=float(self.reader.fps),
            places={name: values[part] for name, values in self._places.items()})

    def goal(self, episode: int) -> Goal:
        """Return the parsed instruction, in the names of ``objects``."""
        return parse_instruction(self.reader.task(episode), self._known)

    def objects(self, episode: int) -> tuple[str, ...]:
        """Return the names a label may use in this episode."""
        return tuple(dict.fromkeys((*self._known, *self.goal(episode).names)))

    def thoughts(self, episode: int) -> list[str]:
        """Return the thoughts that the dataset holds; raises ``UserError`` if it has none."""
        return list(self.reader.column(layout.REASONING, episode))

    def images(self, episode: int, frames: Sequence[int]) -> list[dict[str, NDArray[np.uint8]]]:
        """Return uint8 RGB [H, W, 3] by the policy's camera names; ``frames`` must ascend."""
        cameras = {}
        for key in self.reader.camera_keys:
            first, end = frames[0], frames[-1] + 1
            stream = islice(self.reader.frames(episode, key, first), end - first)
            cameras[layout.CAMERAS.get(key, key.rpartition('.')[2])] = [
                image for k, image in enumerate(stream, first) if k in frames]
        return [dict(zip(cameras, row)) for row in zip(*cameras.values())] or [{}] * len(frames)

    def read(self, path: Path, kind: str, maker: str
             ) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
        """Return header and rows by episode; ``UserError`` until ``maker`` made them."""
        header, rows = Journal.read(path, maker)
        if (header.get('kind'), header.get('dataset')) != (kind, self.fingerprint):
            raise UserError(f'{path}: no {kind} of {self.root}, but another file or of another '
                            f'dataset; choose another folder and run {maker}')
        return header, {row['episode']: self.checked(path, row, maker) for row in rows}

    def checked(self, path: Path, row: dict[str, Any], maker: str) -> dict[str, Any]:
        """Return a row about an episode's ``keyframes`` or ``labels``, or raise ``UserError``."""
        try:
            episode = row['episode']
            frames = [part['frame'] for part in row.get('keyframes') or row['labels']]
            if type(episode) is not int or {*map(type, frames)} != {int} or not (
                    0 <= episode < len(self) and frames == sorted({*frames})
                    and frames[0] >= 0 and frames[-1] < self.reader.lengths[episode]):
                raise ValueError('no frames of an episode, in order')
            if 'keyframes' in row:
                _ = [str.lower(part['why']) for part in row['keyframes']]
            else:
                _ = [str.lower(row['instruction']), *(
                    (part['frame'], part['kind'], part['text']) for part in row['findings'])]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f'{path}: the row of episode {row.get("episode")!r:.20} is damaged '
                            f'({error!r:.80}); delete the file and run {maker}') from None
        return row
