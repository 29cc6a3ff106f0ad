"""Bounds on speed, acceleration, jerk and workspace of commanded motions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions import osc
from dtvla_ros.conventions import parameter

TINY = 1e-6  # smallest bound; none of them may be zero
EXACT = 1e-9  # difference of two speeds that are the same [m/s]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a commanded motion; the defaults are for an arm among people's things.

    Of a vector's norm, or of each axis with ``per_axis``; ``step_*`` bound the offset of a goal
    from the measured pose. Raises UserError if the workspace box is empty.
    """

    linear_speed: float = parameter(0.25, 'largest speed of the end effector [m/s]', low=TINY)
    angular_speed: float = parameter(
        0.5, 'largest angular speed of the end effector [rad/s]', low=TINY)
    acceleration: float = parameter(1.0, 'largest acceleration [m/s^2]', low=TINY)
    jerk: float = parameter(10.0, 'largest jerk while speeding up [m/s^3]', low=TINY)
    step_linear: float = parameter(0.05, 'largest offset of one step [m]', low=TINY)
    step_angular: float = parameter(0.5, 'largest turn of one step [rad]', low=TINY)
    workspace_low: tuple[float, float, float] = parameter(
        osc.WORKSPACE_LOW, 'lower corner of the box that goals must lie in, base frame [m]',
        length=3)
    workspace_high: tuple[float, float, float] = parameter(
        osc.WORKSPACE_HIGH, 'upper corner of the box that goals must lie in, base frame [m]',
        length=3)
    per_axis: bool = parameter(False, 'bound each axis instead of the length of the vector')

    def __post_init__(self) -> None:
        osc.require_box(self.workspace_low, self.workspace_high)


PROFILES = {
    'default': Limits(),
    # LIBERO's whole action cube passes untouched, so that the simulator behaves as trained on.
    'fidelity': Limits(linear_speed=0.27, angular_speed=2.7, acceleration=math.inf,
                       jerk=math.inf, per_axis=True)}


class Limiter:
    """Clamps the motion channels of normalised actions, one per control tick.

    Acceleration is bounded always, jerk while the arm speeds up: braking is not slowed by it.
    """

    def __init__(self, limits: Limits, period: float) -> None:
        self._limits = limits
        self._period = period
        self.reset()

    def reset(self) -> None:
        """Start again from rest: the arm was stopped without the limiter."""
        self._velocity = np.zeros(3)
        self._acceleration = np.zeros(3)

    def clamp(self, action: ArrayLike) -> NDArray[np.float64]:
        """Return the normalised motion [6] nearest to ``action`` [>=6] that the limits allow."""
        limits, wanted = self._limits, osc.velocity(action)
        linear = self._shrink(wanted[:3], limits.linear_speed)
        angular = self._shrink(wanted[3:], limits.angular_speed)
        motion = osc.from_velocity(np.concatenate((self._ramp(linear), angular)))
        motion[:3] = self._shrink(motion[:3], limits.step_linear / osc.METRES_PER_UNIT)
        motion[3:] = self._shrink(motion[3:], limits.step_angular / osc.RADIANS_PER_UNIT)
        velocity = osc.velocity(motion)[:3]
        self._acceleration = (velocity - self._velocity) / self._period
        self._velocity = velocity
        return motion

    def outside(self, action: ArrayLike, position: ArrayLike) -> str | None:
        """Return how a goal leaves the workspace box; None also where it brings the arm back."""
        step = osc.METRES_PER_UNIT * np.clip(np.asarray(action, np.float64)[:3], -1, 1)
        return self.beyond(np.asarray(position, np.float64) + step, position)

    def beyond(self, goal: ArrayLike, position: ArrayLike) -> str | None:
        """Return how a goal [3] m lies outside the workspace box, as `outside` does."""
        here, goal = np.asarray(position, np.float64), np.asarray(goal, np.float64)
        box = zip(self._limits.workspace_low, self._limits.workspace_high)
        for axis, at, to, (low, high) in zip('xyz', here, goal, box, strict=True):
            beyond = max(low - to, to - high)
            if beyond > 0 and beyond >= max(low - at, at - high):
                return f'target {axis} = {to:.3f} m is outside [{low}, {high}]'
        return None

    def _ramp(self, linear: NDArray[np.float64]) -> NDArray[np.float64]:
        limits, dt = self._limits, self._period
        change, bound = linear - self._velocity, limits.acceleration
        speeding_up = np.linalg.norm(linear) > np.linalg.norm(self._velocity)
        if speeding_up:
            # Leave room to bring the acceleration back to zero before the target is reached.
            bound = min(bound, math.sqrt(2 * limits.jerk * float(np.linalg.norm(change))))
        acceleration = self._shrink(change / dt, bound)
        if speeding_up and math.isfinite(limits.jerk):
            acceleration = self._acceleration + self._shrink(
                acceleration - self._acceleration, limits.jerk * dt)
            acceleration = self._shrink(acceleration, limits.acceleration)
        reached = self._velocity + acceleration * dt
        if np.abs(reached - linear).max() < EXACT:  # else a stop would leave a rounding error
            return linear
        return self._shrink(reached, limits.linear_speed)

    def _shrink(self, vector: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
        if self._limits.per_axis:
            return np.clip(vector, -bound, bound)
        norm = float(np.linalg.norm(vector))
        return vector if norm <= bound else vector * (bound / norm)
