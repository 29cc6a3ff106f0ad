"""A person who drives in the policy's place, and the way from one driver to the other."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions import osc


class Person:
    """What the person who drives has commanded last.

    ``twist``: linear and angular velocity [6] (m/s, rad/s, base axes), None before the first.
    """

    twist: NDArray[np.float64] | None = None
    _grip = 0.0

    def move(self, twist: ArrayLike) -> bool:
        """Take a twist [6]; return whether it is finite, else it does not count."""
        wanted = np.asarray(twist, np.float64)
        if finite := bool(np.isfinite(wanted).all()):
            self.twist = wanted
        return finite

    def grip(self, opening: float) -> None:
        """Take where the gripper shall be, 0 closed to 1 open; what is not finite says nothing."""
        if math.isfinite(opening):
            self._grip = 1.0 - 2.0 * opening

    def action(self) -> NDArray[np.float64] | None:
        """Return the normalised action [7], its gripper 0 where none was told; None at first."""
        if self.twist is None:
            return None
        return np.append(osc.from_velocity(self.twist), np.clip(self._grip, -1.0, 1.0))


class Handover:
    """Bounds the change of the motion per tick until the new driver's first motion is reached.

    ``acceleration`` [m/s^2] of the linear part; the angular part changes as fast in units of the
    normalised action. ``period`` [s]: of a tick. ``largest``: the largest change of commanded
    velocity between two ticks of any handover [m/s].
    """

    def __init__(self, acceleration: float, period: float) -> None:
        self._step = acceleration * period / osc.METRES_PER_SECOND_PER_UNIT
        self._before = self._last = np.zeros(6)
        self._now = -math.inf
        self._active = False
        self.largest = 0.0

    def begin(self) -> None:
        """Let the other one drive from the next tick on."""
        self._active = True

    def tick(self, now: float) -> None:
        """Begin a tick; one that is asked for again begins where it began before."""
        if now != self._now:
            self._before, self._now = self._last, now

    def ease(self, motion: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the normalised motion [6] nearest to ``motion`` that this tick may have."""
        change = motion - self._before
        far = max(np.linalg.norm(change[:3]), np.linalg.norm(change[3:])) / self._step
        if self._active and far > 1.0:
            return self._before + change / far
        self._active &= not motion.any()
        return motion

    def note(self, motion: NDArray[np.float64], eased: bool) -> None:
        """Take the normalised motion [6] that is commanded after every limit, eased or not."""
        self._last = motion
        if eased and self._active:
            jump = float(np.linalg.norm(osc.velocity(motion - self._before)[:3]))
            self.largest = max(self.largest, jump)
