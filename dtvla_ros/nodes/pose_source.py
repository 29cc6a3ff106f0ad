"""Where the end effector is: a topic, or the transforms every robot publishes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from scipy.spatial.transform import Rotation

from dtvla_ros.conventions import EE_POSE, relative
from dtvla_ros.nodes.settings import declare, installed
from dtvla_ros.ros import conversions, qos

OnPose = Callable[[NDArray[np.float64], NDArray[np.float64], float], None]


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


class PoseSource:
    """Calls ``on_pose(position [3] m, quaternion [4] xyzw, stamp s)`` for every new pose.

    Declares ``pose_source``, ``base_frame`` and ``ee_frame`` on the node it is built for; `open`
    subscribes, `close` takes that back. Raises UserError where tf2_msgs is needed and missing.
    """

    def __init__(self, node: Node, on_pose: OnPose) -> None:
        self._node, self._on_pose = node, on_pose
        source = declare(
            node, 'pose_source', 'topic', 'of the end effector', choices=('topic', 'tf'))
        self._base = declare(node, 'base_frame', 'base', 'frame of poses and commands')
        self._frame = declare(
            node, 'ee_frame', 'gripper', 'frame of the gripper site, with pose_source tf')
        self._type = None if source == 'topic' else installed(
            'tf2_msgs/msg/TFMessage', 'pose_source = "tf"', '"topic"')
        self._tree = FrameTree()
        self._last = -np.inf
        self._open: list[Any] = []

    def open(self) -> None:
        """Subscribe to ``ee_pose``, or to ``/tf`` and ``/tf_static``."""
        subscribe = self._node.create_subscription
        self._open = [subscribe(
            PoseStamped, relative(EE_POSE), self._on_topic, qos_profile_sensor_data,
        )] if self._type is None else [subscribe(
            self._type, topic, functools.partial(self._on_transforms, static),
            qos.profile(100, reliable=True, latched=static),
        ) for topic, static in (('/tf', False), ('/tf_static', True))]

    def close(self) -> None:
        while self._open:
            self._node.destroy_subscription(self._open.pop())

    def _on_topic(self, message: PoseStamped) -> None:
        self._on_pose(*conversions.pose_arrays(message.pose),
                      conversions.seconds(message.header.stamp))

    def _on_transforms(self, static: bool, message: Any) -> None:
        self._tree.take(message, static)
        placed = self._tree.look_up(self._base, self._frame)
        if placed is not None and np.isfinite(placed[2]) and placed[2] != self._last:
            self._last = placed[2]
            self._on_pose(placed[0], placed[1].as_quat(), placed[2])
