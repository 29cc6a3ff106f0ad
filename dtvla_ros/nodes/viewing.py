"""What nodes for people read: cameras while somebody watches, and where a chunk leads."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.subscription import Subscription

from dtvla_ros import conventions as names
from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.nodes.pose_source import OnPose, PoseSource
from dtvla_ros.nodes.settings import declare
from dtvla_ros.ros import images, qos
from dtvla_ros.ros.waiting import why_silent

SILENT = 2.0  # age at which a state is no longer believed [s]
LINGER = 0.5  # how long a path is shown after its chunk [s]
POSES = 64  # kept to find the one a chunk was decided at; at 100 Hz half a second


class Cameras:
    """The cameras ``names``, subscribed to only between `open` and `close`.

    Declares ``cameras`` and ``transport``.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.names: tuple[str, ...] = tuple(declare(
            node, 'cameras', names.CAMERAS, 'cameras to show, each on image_NAME', distinct=True))
        self._type, self._parse, self._decode = images.TRANSPORTS[declare(
            node, 'transport', 'raw', 'image topics', choices=images.TRANSPORTS)]
        self._open: list[Subscription] = []
        self._frames: dict[str, bytes] = {}  # as they came

    def open(self) -> None:
        """Subscribe, unless that is done already."""
        if not self._open:
            self._open = [self._node.create_subscription(
                self._type, names.image_input(name),
                functools.partial(self._frames.__setitem__, name), qos.NEWEST, raw=True)
                for name in self.names]

    def close(self) -> None:
        """Unsubscribe, and forget the images."""
        while self._open:
            self._node.destroy_subscription(self._open.pop())
        self._frames.clear()

    def lacking(self) -> Iterator[str]:
        """Yield why a camera that is subscribed to has sent nothing."""
        for name, subscription in zip(self.names, self._open):
            if name not in self._frames:
                yield why_silent(self._node, subscription)

    def newest(self, name: str) -> tuple[float, str, NDArray[np.uint8]] | None:
        """Return a camera's newest image: stamp [s], frame_id, RGB [H, W, 3]; None without one.

        One that cannot be read is logged.
        """
        if name not in self._frames:
            return None
        try:
            frame = self._parse(self._frames[name])
            return frame.stamp, frame.frame_id, self._decode(frame)
        except images.ImageError as error:
            self._node.get_logger().warning(f'image_{name}: {error}', throttle_duration_sec=1.0)
            return None


class Poses:
    """The last poses of the end effector. Declares the parameters of `PoseSource`.

    ``on_pose`` is called for each, too, as `PoseSource` does. `open` and `close` subscribe.
    """

    def __init__(self, node: Node, on_pose: OnPose | None = None) -> None:
        self._on_pose = on_pose
        self._kept: deque[tuple[float, NDArray[np.float64]]] = deque(maxlen=POSES)
        source = PoseSource(node, self._take, lambda why: node.get_logger().warning(
            f'ee_pose refused: {why}', throttle_duration_sec=5.0))
        self.open, self.close = source.open, source.close

    def at(self, stamp: float) -> NDArray[np.float64] | None:
        """Return the position [3] m that is nearest to a stamp [s]; None before the first."""
        return min(self._kept, key=lambda pose: abs(pose[0] - stamp))[1] if self._kept else None

    def _take(self, position: NDArray[np.float64], quaternion: NDArray[np.float64],
              stamp: float) -> None:
        self._kept.append((stamp, position))
        if self._on_pose is not None:
            self._on_pose(position, quaternion, stamp)


def leads_somewhere(chunk: Chunk) -> bool:
    """Return whether a chunk has rows of finite offsets or poses of the end effector."""
    rows, width = chunk.values.shape
    return bool(rows and width == len(names.CHANNELS) and chunk.channels in (
        (), names.CHANNELS, names.POSE_CHANNELS) and np.isfinite(chunk.values).all())


def path_of(position: NDArray[np.float64], chunk: Chunk) -> NDArray[np.float64]:
    """Return where a chunk of T rows leads from ``position`` [3] m: [T + 1, 3] m.

    A row of poses leads there. One of offsets adds the speed at which the arm settles times the
    period (0.267 m/s per unit, 13 mm in 50 ms), not the 0.05 m its goal is ahead, which is
    re-based every period.
    """
    if chunk.channels == names.POSE_CHANNELS:
        return np.vstack([position, chunk.values[:, :3].astype(np.float64)])
    steps = np.clip(chunk.values[:, :3].astype(np.float64), -1.0, 1.0) * (
        osc.METRES_PER_SECOND_PER_UNIT * chunk.period)
    return np.vstack([position, position + np.cumsum(steps, axis=0)])


def closed_along(chunk: Chunk) -> list[bool]:
    """Return whether the gripper is to be closed at each of the T + 1 points of `path_of`."""
    grips = [osc.GRIPPER_OPEN]
    for row in chunk.values:
        grips.append(osc.gripper_command(float(row[6]), grips[-1]))
    return [grip == osc.GRIPPER_CLOSED for grip in (grips[1], *grips[1:])]
