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
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.settings import declare
from dtvla_ros.ros import conversions, qos

SOURCES = ('topic', 'tf')
OnPose = Callable[[NDArray[np.float64], NDArray[np.float64], float], None]
_Placed = tuple[NDArray[np.float64], float]  # transform [4, 4] to the parent, stamp


class FrameTree:
    """The newest transform of every frame to its parent (REP 105)."""

    def __init__(self) -> None:
        self._frames: dict[str, tuple[str, _Placed]] = {}

    def take(self, message: Any, static: bool) -> None:
        """Take a tf2_msgs/TFMessage; what is not finite or no rotation is left out."""
        for entry in message.transforms:
            t, q = entry.transform.translation, entry.transform.rotation
            position = np.array([t.x, t.y, t.z])
            quaternion = np.array([q.x, q.y, q.z, q.w])
            if (np.isfinite(position).all() and abs(np.linalg.norm(quaternion) - 1) < 0.01
                    and entry.child_frame_id != entry.header.frame_id):
                stamp = np.inf if static else conversions.seconds(entry.header.stamp)
                placed = np.eye(4)
                placed[:3, :3], placed[:3, 3] = (
                    Rotation.from_quat(quaternion).as_matrix(), position)
                self._frames[entry.child_frame_id.lstrip('/')] = (
                    entry.header.frame_id.lstrip('/'), (placed, stamp))

    def look_up(
        self, base: str, frame: str,
    ) -> tuple[NDArray[np.float64], Rotation, float] | None:
        """Return position [3] and rotation of ``frame`` in ``base``, and the oldest stamp used."""
        to_frame, to_base = self._path(frame), self._path(base)
        common = next((name for name in to_frame if name in to_base), None)
        if common is None:
            return None
        there, stamp = self._place(to_frame[:to_frame.index(common)])
        back, when = self._place(to_base[:to_base.index(common)])
        placed = np.asarray(np.linalg.solve(back, there), np.float64)
        return placed[:3, 3], Rotation.from_matrix(placed[:3, :3]), min(stamp, when)

    def _path(self, frame: str) -> list[str]:
        """Return the frame, its parent and so on; a loop ends where it closes."""
        path = [frame]
        while path[-1] in self._frames and self._frames[path[-1]][0] not in path:
            path.append(self._frames[path[-1]][0])
        return path

    def _place(self, path: list[str]) -> _Placed:
        placed = [self._frames[frame][1] for frame in reversed(path)]
        return (functools.reduce(np.matmul, (matrix for matrix, _ in placed), np.eye(4)),
                min((stamp for _, stamp in placed), default=np.inf))


class PoseSource:
    """Calls ``on_pose(position [3] m, quaternion [4] xyzw, stamp s)`` for every new pose.

    Declares ``pose_source``, ``base_frame`` and ``ee_frame`` on the node it is built for; `open`
    subscribes, `close` takes that back. Raises UserError where tf2_msgs is needed and missing.
    """

    def __init__(self, node: Node, on_pose: OnPose) -> None:
        self._node = node
        self._on_pose = on_pose
        self._source = declare(
            node, 'pose_source', 'topic', 'of the end effector', choices=SOURCES)
        self._base = declare(node, 'base_frame', 'base', 'frame of poses and commands')
        self._frame = declare(
            node, 'ee_frame', 'gripper', 'frame of the gripper site, with pose_source tf')
        self._type = self._transforms() if self._source == 'tf' else PoseStamped
        self._tree = FrameTree()
        self._last = -np.inf
        self._open: list[Any] = []

    def _transforms(self) -> Any:
        try:
            return conversions.message_type('tf2_msgs/msg/TFMessage')
        except KeyError:
            raise UserError(
                'parameter pose_source = "tf": tf2_msgs is not installed; install '
                'ros-$ROS_DISTRO-tf2-msgs, or use "topic"') from None

    def open(self) -> None:
        """Subscribe to ``ee_pose``, or to ``/tf`` and ``/tf_static``."""
        node = self._node
        if self._source == 'topic':
            self._open = [node.create_subscription(
                self._type, relative(EE_POSE), self._on_topic, qos_profile_sensor_data)]
            return
        self._open = [
            node.create_subscription(self._type, '/tf', self._on_transforms,
                                     qos.profile(100, reliable=True, latched=False)),
            node.create_subscription(self._type, '/tf_static', self._on_static,
                                     qos.profile(100, reliable=True, latched=True))]

    def close(self) -> None:
        """Stop listening."""
        for subscription in self._open:
            self._node.destroy_subscription(subscription)
        self._open = []

    def _on_topic(self, message: PoseStamped) -> None:
        self._on_pose(*conversions.pose_arrays(message.pose),
                      conversions.seconds(message.header.stamp))

    def _on_static(self, message: Any) -> None:
        self._tree.take(message, static=True)

    def _on_transforms(self, message: Any) -> None:
        self._tree.take(message, static=False)
        placed = self._tree.look_up(self._base, self._frame)
        if placed is None or not np.isfinite(placed[2]) or placed[2] == self._last:
            return
        self._last = placed[2]
        self._on_pose(placed[0], placed[1].as_quat(), placed[2])
