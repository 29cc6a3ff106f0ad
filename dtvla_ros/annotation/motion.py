"""What an arm did, told by its own sensors alone: signals, toggles and phrases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from dtvla_sim.experts.grammar import AXIS_WORDS, MOVE_THRESHOLD, STILL

SHUT, OPEN = 0.65, 0.35  # levels of the gripper's range at which it counts as closing, opening
SMOOTHING = 0.15  # standard deviation of the filter on the speed [s]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Motion:
    """One episode's proprioception.

    ``hand`` [N, 3] m in base axes; ``closing`` [N] bool: what the gripper was told to do;
    ``opening`` [N] m between the pads, None where it is not recorded; ``widest`` [m]: the
    opening of an empty open hand; ``fps``; ``places`` [N, 3] m by thing, where it is recorded.
    """

    hand: Array
    closing: NDArray[np.bool_]
    opening: Array | None
    widest: float
    fps: float
    places: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hand)

    @property
    def speed(self) -> Array:
        """Speed of the hand [N] m/s, smoothed."""
        if len(self) < 2:
            return np.zeros(len(self))
        steps = np.linalg.norm(np.gradient(self.hand, axis=0), axis=1) * self.fps
        return gaussian_filter1d(steps, max(SMOOTHING * self.fps, 0.5))

    @property
    def toggles(self) -> NDArray[np.int64]:
        """Frames at which the gripper is first told something else than before."""
        return np.flatnonzero(np.diff(self.closing)) + 1

    def is_wide(self) -> NDArray[np.bool_]:
        """Whether the fingers are as far apart as they go [N]; as commanded if unknown."""
        if self.opening is None:
            return ~self.closing
        return self.opening > 0.86 * self.widest


def hysteresis(level: Array, shut: float = SHUT, opened: float = OPEN) -> NDArray[np.bool_]:
    """Return whether a gripper level in 0 (open) .. 1 (closed) counts as closing [N].

    It changes to closing above ``shut`` and back below ``opened``; noise in between does nothing.
    """
    state = np.where(level >= shut, 1, np.where(level <= opened, 0, -1))
    if not len(state):
        return np.zeros(0, bool)
    if state[0] < 0:
        state[0] = level[0] > (shut + opened) / 2
    last = np.maximum.accumulate(np.where(state >= 0, np.arange(len(state)), 0))
    return state[last].astype(bool)


def move_words(offset: Array) -> str:
    """Return the grammar's three words for a displacement [3] m in base axes."""
    return ' '.join(plus if amount > MOVE_THRESHOLD else minus if amount < -MOVE_THRESHOLD
                    else STILL for amount, (plus, minus) in zip(offset, AXIS_WORDS))


def phrase(motion: Motion, frame: int, end: int) -> str:
    """Tell in words what the arm does from ``frame`` until before ``end``."""
    last = min(end, len(motion) - 1)
    words = [word for word in move_words(motion.hand[last] - motion.hand[frame]).split()
             if word != STILL]
    text = f'move {" ".join(words)}' if words else 'stay'
    now = bool(motion.closing[frame])
    if frame > 0 and bool(motion.closing[frame - 1]) != now:
        return f'{text}, gripper {"closes" if now else "opens"}'
    return f'{text}, gripper {"stays closed" if now else "stays open"}'
