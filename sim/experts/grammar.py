"""The thought's closed grammar.

A thought reads: what is held, what is done, what comes now and where, what comes next, and in
which direction the gripper should go::

    holding nothing done nothing now reach can at x45 y-12 next lower move forward left down

Places are location words of the robot's base frame (see :mod:`dtvla_ros.actions.grid`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions.grid import location_word

AXIS_WORDS = (('forward', 'back'), ('left', 'right'), ('up', 'down'))  # +x, +y, +z of the base
STILL = 'still'
MOVE_THRESHOLD = 0.015  # [m]


def move_words(move: NDArray[np.float64]) -> list[str]:
    """Return the three words for a displacement [3] m in base axes."""
    return [plus if amount > MOVE_THRESHOLD else minus if amount < -MOVE_THRESHOLD else STILL
            for amount, (plus, minus) in zip(move, AXIS_WORDS)]


@dataclass(frozen=True, slots=True)
class Thought:
    """The fields of one thought; ``place`` [3] and ``move`` [3] in base axes [m]."""

    held: str | None
    done: str | None
    trouble: str | None
    phase: str
    object: str
    place: NDArray[np.float64]
    following: str
    move: NDArray[np.float64]

    def text(self) -> str:
        """Write the thought out as words."""
        words = ['holding', self.held or 'nothing', 'done', self.done or 'nothing']
        if self.trouble:
            words += [self.trouble]
        return ' '.join([
            *words, 'now', self.phase, self.object, 'at', location_word('x', self.place[0]),
            location_word('y', self.place[1]), 'next', self.following,
            'move', *move_words(self.move)])
