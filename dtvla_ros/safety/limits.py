"""Bounds on speed, acceleration, jerk and workspace of commanded motions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions import osc
from dtvla_ros.errors import UserError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a commanded motion; the defaults are for an arm among people's things.

    Speeds [m/s, rad/s], ``acceleration`` [m/s^2] and ``jerk`` [m/s^3] bound the norm of a
    vector, or each axis alone where ``per_axis`` is set. ``step_*`` bound the offset of one
    goal from the measured pose [m, rad]. The box bounds the goal, base frame [m].
    """

    linear_speed: float = 0.25
    angular_speed: float = 0.5
    acceleration: float = 1.0
    jerk: float = 10.0
    step_linear: float = 0.05
    step_angular: float = 0.5
    workspace_low: tuple[float, float, float] = osc.WORKSPACE_LOW
    workspace_high: tuple[float, float, float] = osc.WORKSPACE_HIGH
    per_axis: bool = False

    def __post_init__(self) -> None:
        for name in ('linear_speed', 'angular_speed', 'acceleration', 'jerk',
                     'step_linear', 'step_angular'):
            if not getattr(self, name) > 0:
                raise UserError(f'limit {name} = {getattr(self, name)} must be positive')
        osc.require_box(self.workspace_low, self.workspace_high)


PROFILES = {
    'default': Limits(),
    # LIBERO's whole action cube passes untouched, so that the simulator behaves as trained on.
    'fidelity': Limits(linear_speed=0.27, angular_speed=2.7, acceleration=math.inf,
                       jerk=math.inf, per_axis=True),
}


def _shrink(vector: NDArray[np.float64], bound: float, per_axis: bool) -> NDArray[np.float64]:
    if per_axis:
        return np.clip(vector, -bound, bound)
    norm = float(np.linalg.norm(vector))
    return vector if norm <= bound else vector * (bound / norm)


class Limiter:
    """Clamps the motion channels of normalised actions, one per control tick.

    Remembers the last commanded velocity: acceleration is bounded always, jerk while the arm
    speeds up. Braking is not slowed by the jerk bound.
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
        limits = self._limits
        wanted = osc.velocity(action)
        linear = _shrink(wanted[:3], limits.linear_speed, limits.per_axis)
        angular = _shrink(wanted[3:], limits.angular_speed, limits.per_axis)
        motion = osc.from_velocity(np.concatenate((self._ramp(linear), angular)))
        motion[:3] = _shrink(motion[:3], limits.step_linear / osc.METRES_PER_UNIT,
                             limits.per_axis)
        motion[3:] = _shrink(motion[3:], limits.step_angular / osc.RADIANS_PER_UNIT,
                             limits.per_axis)
        self._acceleration = (osc.velocity(motion)[:3] - self._velocity) / self._period
        self._velocity = osc.velocity(motion)[:3]
        return motion

    def outside(self, action: ArrayLike, position: ArrayLike) -> str | None:
        """Return how an action's goal leaves the workspace box, or None.

        A goal outside is allowed where it brings an arm that is outside back.
        """
        here = np.asarray(position, np.float64)
        goal = here + osc.METRES_PER_UNIT * np.clip(np.asarray(action, np.float64)[:3], -1, 1)
        for axis, at, to, low, high in zip(
                'xyz', here, goal, self._limits.workspace_low, self._limits.workspace_high,
                strict=True):
            beyond = max(low - to, to - high)
            if beyond > 0 and beyond >= max(low - at, at - high):
                return f'target {axis} = {to:.3f} m is outside [{low}, {high}]'
        return None

    def _ramp(self, linear: NDArray[np.float64]) -> NDArray[np.float64]:
        limits, dt = self._limits, self._period
        change = linear - self._velocity
        bound = limits.acceleration
        speeding_up = np.linalg.norm(linear) > np.linalg.norm(self._velocity)
        if speeding_up:
            # Leave room to bring the acceleration back to zero before the target is reached.
            bound = min(bound, math.sqrt(2 * limits.jerk * float(np.linalg.norm(change))))
        acceleration = _shrink(change / dt, bound, limits.per_axis)
        if speeding_up and math.isfinite(limits.jerk):
            acceleration = self._acceleration + _shrink(
                acceleration - self._acceleration, limits.jerk * dt, limits.per_axis)
            acceleration = _shrink(acceleration, limits.acceleration, limits.per_axis)
        return _shrink(self._velocity + acceleration * dt, limits.linear_speed, limits.per_axis)
