"""Labels as a few classes: things are named by their part in the task, not by name.

"Carry #1 while holding #0" is one class whatever the instruction's first and second thing are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.annotation.checks import TOLD_OPEN, TOLD_SHUT
from dtvla_ros.annotation.schema import FIELDS, Semantics
from dtvla_ros.annotation.task import Goal

Key = tuple[str, ...]
NAMED = tuple(FIELDS.index(name) for name in ('holding', 'done', 'object'))
SWITCH = -1.0  # log-probability of another class at the next frame, if that was ever seen ...
NEVER = -8.0  # ... and if it never was
IMPOSSIBLE = -1e9


def _generic(label: Semantics, goal: Goal) -> Key:
    key = list(label.key())
    for k in NAMED:
        if key[k] in goal.things:
            key[k] = f'#{goal.things.index(key[k])}'
    return tuple(key)


@dataclass(frozen=True)
class Classes:
    """The classes met in accepted labels, and which followed which."""

    keys: tuple[Key, ...]
    follows: NDArray[np.bool_]

    @classmethod
    def of(cls, accepted: Mapping[int, Sequence[tuple[int, Semantics]]],
           goals: Mapping[int, Goal]) -> Classes:
        """Collect the classes of accepted labels by episode."""
        rows = [[_generic(label, goals[k]) for _, label in labels]
                for k, labels in accepted.items()]
        keys = tuple(sorted({key for row in rows for key in row}))
        number = {key: k for k, key in enumerate(keys)}
        follows = np.eye(len(keys), dtype=bool)
        for row in rows:
            for a, b in zip(row, row[1:]):
                follows[number[a], number[b]] = True
        return cls(keys, follows)

    def __len__(self) -> int:
        return len(self.keys)

    def number(self, label: Semantics, goal: Goal) -> int:
        """Return the class of a label that was among the accepted ones."""
        return self.keys.index(_generic(label, goal))

    def label(self, number: int, goal: Goal, reason: str = '') -> Semantics:
        """Return a class in an episode's own names."""
        words = [goal.things[int(word[1:])] if word.startswith('#') else word
                 for word in self.keys[number]]
        return Semantics.model_validate(dict(zip(FIELDS, words)) | {'reason': reason})

    def fits(self, goal: Goal) -> NDArray[np.bool_]:
        """Return which classes [C] speak only of things that the episode has."""
        count = len(goal.things)
        return np.array([all(int(key[k][1:]) < count for k in NAMED if key[k].startswith('#'))
                         for key in self.keys])

    def best_path(self, scores: NDArray[np.floating], goal: Goal, closing: NDArray[np.bool_],
                  known: Mapping[int, int]) -> NDArray[np.int64]:
        """Return the likeliest class of each frame [N], by Viterbi's algorithm.

        ``scores`` [N, C]: log-probabilities frame by frame; ``closing`` [N]: what the gripper is
        told, which no phase may contradict; ``known``: classes of frames that are certain. A
        change of class costs, more so one never seen between key frames.
        """
        phases = [key[FIELDS.index('phase')] for key in self.keys]
        shut, opened = (np.array([p in told for p in phases]) for told in (TOLD_SHUT, TOLD_OPEN))
        contradicts = np.where(closing[:, None], opened, shut)
        emission = np.where(self.fits(goal) & ~contradicts, scores, IMPOSSIBLE)
        for frame, number in known.items():
            emission[frame] = IMPOSSIBLE
            emission[frame, number] = 0.0
        step = np.where(self.follows, SWITCH, NEVER)
        np.fill_diagonal(step, 0.0)
        value = emission[0]
        back = np.zeros(emission.shape, np.int64)
        for frame in range(1, len(emission)):
            ways = value[:, None] + step
            back[frame] = ways.argmax(0)
            value = ways.max(0) + emission[frame]
        path = [int(value.argmax())]
        for frame in range(len(emission) - 1, 0, -1):
            path.append(int(back[frame, path[-1]]))
        return np.array(path[::-1])
