"""What controllers of joints do with commands and with silence, by their documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.ros import conversions


class TrajectoryController:
    """joint_trajectory_controller: straight to a point that has no velocity, then held.

    Its documentation: a point of positions only is interpolated linearly, a new trajectory takes
    the old one's place from the present desired state, and after the last point that is held.
    """

    def __init__(self, names: tuple[str, ...], at: NDArray[np.float64]) -> None:
        self._names, self.at = names, at.copy()
        self._begun, self._from, self._to, self._lasts = 0.0, at.copy(), at.copy(), 0.0

    def take(self, message: Any, now: float) -> None:
        """Take a JointTrajectory at a time [s]."""
        [point] = message.points
        assert tuple(message.joint_names) == self._names
        assert conversions.seconds(message.header.stamp) == 0.0, 'now, by its own clock'
        self._from, self._begun = self.move(now), now
        self._to = np.array(point.positions)
        self._lasts = conversions.seconds(point.time_from_start)
        assert self._lasts > 0

    def move(self, now: float) -> NDArray[np.float64]:
        """Return where the joints are at a time [s]."""
        share = 1.0 if not self._lasts else min((now - self._begun) / self._lasts, 1.0)
        self.at = self._from + share * (self._to - self._from)
        return self.at.copy()


class ForwardController:
    """A controller that forwards positions, and holds the last ones for ever."""

    def __init__(self, names: tuple[str, ...], at: NDArray[np.float64]) -> None:
        self._count, self.at = len(names), at.copy()

    def take(self, message: Any, now: float) -> None:
        """Take a Float64MultiArray; one of another length is refused."""
        assert len(message.data) == self._count
        self.at = np.array(message.data)

    def move(self, now: float) -> NDArray[np.float64]:
        """Return where the joints are at a time [s]."""
        return self.at.copy()
