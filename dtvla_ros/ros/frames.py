"""Transforms between named frames, as /tf and /tf_static tell them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtvla_ros.ros import conversions


class FrameTree:
    """The newest transform of every frame to its parent (REP 105)."""

    def __init__(self) -> None:
        # Of each frame its parent, the transform [4, 4] to that, and the stamp [s].
        self._frames: dict[str, tuple[str, NDArray[np.float64], float]] = {}

    def take(self, message: Any, static: bool) -> None:
        """Take a tf2_msgs/TFMessage; what is not finite or no rotation is left out."""
        for entry in message.transforms:
            t, q = entry.transform.translation, entry.transform.rotation
            quaternion, placed = np.array([q.x, q.y, q.z, q.w]), np.eye(4)
            placed[:3, 3] = t.x, t.y, t.z
            if (np.isfinite(placed).all() and abs(np.linalg.norm(quaternion) - 1) < 0.01
                    and entry.child_frame_id != entry.header.frame_id):
                placed[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
                self._frames[entry.child_frame_id.lstrip('/')] = (
                    entry.header.frame_id.lstrip('/'), placed,
                    np.inf if static else conversions.seconds(entry.header.stamp))

    def look_up(self, base: str, frame: str) -> tuple[NDArray[np.float64], Rotation, float] | None:
        """Return position [3] and rotation of ``frame`` in ``base``, and the oldest stamp used."""
        to_frame, to_base = self._path(frame), self._path(base)
        common = next((name for name in to_frame if name in to_base), None)
        if common is None:
            return None
        stamp, ends = np.inf, []
        for path in (to_base, to_frame):
            end = np.eye(4)
            for name in path[:path.index(common)]:
                _, placed, when = self._frames[name]
                end, stamp = placed @ end, min(stamp, when)
            ends.append(end)
        placed = np.asarray(np.linalg.solve(*ends), np.float64)
        return placed[:3, 3], Rotation.from_matrix(placed[:3, :3]), stamp

    def _path(self, frame: str) -> list[str]:
        """Return the frame, its parent and so on; a loop ends where it closes."""
        path = [frame]
        while path[-1] in self._frames and self._frames[path[-1]][0] not in path:
            path.append(self._frames[path[-1]][0])
        return path
