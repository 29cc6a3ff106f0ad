"""Two control laws in numbers: FZI's motion controller over gz_ros2_control's position joints.

As their sources have them. FZI simulates a chain whose last link alone weighs something, pulled
by a force proportional to the pose error, and starts each control period from the measured
joints; gz_ros2_control makes velocities of the commanded positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]
INNER_PERIOD = 0.02  # of the simulated chain [s], whatever the control rate
DAMPING = 0.9  # its velocity, each inner period
LINK_MASS, LINK_INERTIA = 0.1, 1e-6  # kg, kg m2; the last link has 1 and 1
TICK = 0.05  # the gate's, between two targets [s]
SECONDS = 0.5  # the second half is measured


class Chain:
    """Revolute and fixed joints: ``offsets`` [n][4, 4] of links in their parents.

    ``axes`` [n][3], None where fixed.
    """

    def __init__(self, offsets: list[Array], axes: list[Array | None]):
        self._offsets, self._axes = offsets, axes
        self._turns = [None if axis is None else np.cross(np.eye(3), axis) for axis in axes]
        self._count = sum(axis is not None for axis in axes)

    def solve(self, q: Array) -> tuple[Array, Array, Array]:
        """Return the last link's pose [4, 4], its Jacobian [6, n] and the inertia [n, n]."""
        pose, k = np.eye(4), 0
        points, axes = np.empty((2, self._count, 3))
        for offset, axis, turn in zip(self._offsets, self._axes, self._turns, strict=True):
            pose = pose @ offset
            if axis is not None:
                points[k], axes[k] = pose[:3, 3], pose[:3, :3] @ axis
                pose[:3, :3] += pose[:3, :3] @ (
                    np.sin(q[k]) * turn + (1.0 - np.cos(q[k])) * turn @ turn)
                k += 1
        moved = np.tril(np.ones((k, k)))[..., None]  # [link, joint]: up to its own
        linear = moved * np.cross(axes[None], points[:, None] - points[None])
        turning = moved * axes[None]
        jacobian = np.concatenate([np.cross(axes, pose[:3, 3] - points).T, axes.T])
        inertia = (LINK_MASS * np.einsum('lic,ljc->ij', linear, linear)
                   + LINK_INERTIA * np.einsum('lic,ljc->ij', turning, turning)
                   + jacobian.T @ jacobian)
        return pose, jacobian, inertia


def settled_speed(chain: Chain, q: ArrayLike, offset: Array, *, gains: ArrayLike, iterations: int,
                  error_scale: float, position_gain: float, rate: float, pose_age: float) -> Array:
    """Return the mean velocity [6] (m/s, rad/s) while the target leads by ``offset`` [6] (m, rad).

    ``q``: where the joints begin [rad]. ``gains`` [6], ``iterations``, ``error_scale``: FZI's.
    ``position_gain``, ``rate`` [Hz]: gz_ros2_control's. ``pose_age`` [s]: of the measured pose to
    which the gate adds the offset.
    """
    q = np.array(q, np.float64)
    velocity, poses = np.zeros(len(q)), [chain.solve(q)[0]]
    simulated = poses[0]  # a period's first error is that of where the last one ended
    periods, ticks, late = (round(rate * t) for t in (SECONDS, TICK, pose_age))
    for k in range(periods):
        if k % ticks == 0:
            seen = poses[max(0, k - late)]
            goal = seen[:3, 3] + offset[:3]
            turned = Rotation.from_rotvec(offset[3:]).as_matrix() @ seen[:3, :3]
        wanted = q
        for step in range(iterations):
            pose, jacobian, inertia = chain.solve(wanted)
            simulated = pose if step else simulated
            error = np.append(goal - simulated[:3, 3], Rotation.from_matrix(
                turned @ simulated[:3, :3].T).as_rotvec())
            pull = jacobian.T @ (error_scale * np.asarray(gains) * error)
            wanted = wanted + velocity * INNER_PERIOD
            velocity = DAMPING * (velocity + np.linalg.solve(inertia, pull) * INNER_PERIOD)
        simulated = chain.solve(wanted)[0]
        speed = position_gain * (wanted - q) * rate
        q = q + speed / rate
        poses.append(chain.solve(q)[0])
    first, last = poses[periods // 2], poses[-1]
    way = np.append(last[:3, 3] - first[:3, 3], Rotation.from_matrix(
        last[:3, :3] @ first[:3, :3].T).as_rotvec())
    return way * rate / (periods - periods // 2)
