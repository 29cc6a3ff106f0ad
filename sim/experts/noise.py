"""Perturbs executed actions, not recorded ones (DART), so that data shows recoveries.

Laskey et al., "DART: Noise Injection for Robust Imitation Learning", 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .tabletop import ExpertStep

CARRY_PHASES = frozenset({'lift', 'carry'})
KINDS = ('noisy', 'clean', 'drop', 'shove')  # as datasets name them


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """Standard deviations in action units (0.05 m, 0.5 rad) and the chance of a held push."""

    position: float
    rotation: float
    push_position: float
    push_rotation: float
    push_chance: float


COARSE = NoiseScale(0.15, 0.04, 0.5, 0.10, 0.05)
FINE = NoiseScale(0.06, 0.02, 0.2, 0.03, 0.02)


class Departure:
    """Moves the arm away from a finished task: in half of the episodes up, then anywhere.

    So a policy learns to wait wherever the arm is. It begins when the fingers have opened.
    """

    def __init__(self, rng: Generator):
        self._steps = int(rng.integers(5, 9)) if rng.random() < 0.5 else None
        self._rise = int(rng.integers(3, 13))
        self._up = rng.uniform(0.3, 1.0)
        self._away = rng.uniform([-0.7, -0.7, -0.1], [0.7, 0.7, 0.4])

    def __call__(self, executed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the action [7] to execute in the next step after success instead."""
        if self._steps is None:
            return executed
        self._steps -= 1
        if self._steps >= 0:
            return executed
        offset = np.zeros(7)
        offset[:3] = [0.0, 0.0, self._up] if self._steps >= -self._rise else self._away
        return np.clip(executed + offset, -1.0, 1.0).astype(np.float32)


class Disturber:
    """Turns the expert's clean action into the executed one.

    ``kind``: ``'clean'`` changes nothing; ``'noisy'`` adds Gaussian noise and, now and then, a
    push held for 3 to 7 steps; ``'drop'`` also forces the gripper open once while something is
    carried; ``'shove'`` also pushes the arm hard aside once in a fine phase. ``scale`` multiplies
    the noise. ``active`` tells whether the last action was part of such a perturbation.
    """

    def __init__(self, kind: str, rng: Generator, scale: float = 1.0):
        if kind not in KINDS:
            raise ValueError(f'disturbance {kind!r} is none of {KINDS}')
        self.kind = kind
        self.active = False
        self._rng = rng
        self._scale = scale
        self._held = 0
        self._push = np.zeros(7)
        self._wait = int(rng.integers(2, 16))
        self._length = int(rng.integers(5, 9))
        self._aside = np.zeros(7)
        angle = rng.uniform(0.0, 2.0 * np.pi)
        self._aside[:3] = [0.9 * np.cos(angle), 0.9 * np.sin(angle), rng.uniform(-0.1, 0.6)]

    def __call__(self, step: ExpertStep) -> NDArray[np.float32]:
        """Return the action [7] to execute instead of the expert's."""
        executed = np.array(step.action, np.float64)
        if self.kind != 'clean':
            executed += self._noise(step.fine)
        if self.kind == 'drop' and self._due(step.phase in CARRY_PHASES):
            executed[6] = -1.0
        elif self.kind == 'shove' and self._due(step.fine):
            executed += self._aside
        return np.clip(executed, -1.0, 1.0).astype(np.float32)

    def _noise(self, fine: bool) -> NDArray[np.float64]:
        rng, size = self._rng, FINE if fine else COARSE
        noise = np.zeros(7)
        noise[:3] = rng.normal(0.0, size.position, 3)
        noise[3:6] = rng.normal(0.0, size.rotation, 3)
        if self._held == 0 and rng.random() < size.push_chance:
            self._held = int(rng.integers(3, 8))
            self._push[:3] = rng.normal(0.0, size.push_position, 3)
            self._push[3:6] = rng.normal(0.0, size.push_rotation, 3)
        if self._held:
            self._held -= 1
            noise += self._push
        return noise * self._scale

    def _due(self, ripe: bool) -> bool:
        """Count down to the one disturbance of the episode, then through it."""
        if self._wait > 0:
            self._wait -= ripe
            return False
        self.active = self._length > 0
        self._length -= self.active
        return self.active
