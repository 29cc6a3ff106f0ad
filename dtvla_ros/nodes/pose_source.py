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

from dtvla_ros.conventions import EE_POSE, relative
from dtvla_ros.nodes.settings import declare_all, installed
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.frames import FrameTree
from dtvla_ros.ros.settings import PoseSettings
from dtvla_ros.ros.waiting import why_silent

OnPose = Callable[[NDArray[np.float64], NDArray[np.float64], float], None]


class PoseSource:
    """Calls ``on_pose(position [3] m, quaternion [4] xyzw, stamp s)`` for every new pose.

    ``on_refused(why)``: instead, for one that is in another frame, not finite or no pose.
    Declares ``pose_source``, ``base_frame`` and ``ee_frame`` on the node it is built for; `open`
    subscribes, `close` takes that back. Raises UserError where tf2_msgs is needed and missing.
    """

    def __init__(self, node: Node, on_pose: OnPose, on_refused: Callable[[str], None]) -> None:
        self._node, self._on_pose, self._on_refused = node, on_pose, on_refused
        given = declare_all(node, PoseSettings())
        self._base, self._frame = given.base_frame, given.ee_frame
        self._type = None if given.pose_source == 'topic' else installed(
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

    def lacking(self) -> str:
        """Return why no pose came, as far as the graph shows."""
        return why_silent(self._node, self._open[0])

    def close(self) -> None:
        while self._open:
            self._node.destroy_subscription(self._open.pop())

    def _on_topic(self, message: PoseStamped) -> None:
        position, quaternion = conversions.pose_arrays(message.pose)
        if refused := (conversions.refuse_frame(message.header.frame_id, self._base)
                       or conversions.refuse_pose(position, quaternion)):
            return self._on_refused(refused)
        self._on_pose(position, quaternion, conversions.seconds(message.header.stamp))

    def _on_transforms(self, static: bool, message: Any) -> None:
        self._tree.take(message, static)
        placed = self._tree.look_up(self._base.lstrip('/'), self._frame.lstrip('/'))
        if placed is None:
            return self._on_refused(f'/tf has no way from ee_frame = "{self._frame}" to '
                                    f'base_frame = "{self._base}"')
        if np.isfinite(placed[2]) and placed[2] != self._last:
            self._last = placed[2]
            self._on_pose(placed[0], placed[1].as_quat(), placed[2])
