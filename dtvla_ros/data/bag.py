"""Reads rosbag2 bags: commands, measurements, thoughts and episodes; images by their stamps.

Stamps are those of the message headers, ``received`` is when the recorder got a message; both
are integers [ns], and the two clocks need not agree.
"""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore
from scipy.spatial.transform import Rotation

from dtvla_ros import conventions as topics
from dtvla_ros.actions import osc
from dtvla_ros.conventions import CHANNELS
from dtvla_ros.errors import UserError

NEVER = 2**62  # later than anything [ns]


@cache
def message_types() -> Typestore:
    """Return the message types a bag can hold."""
    return get_typestore(Stores.ROS2_JAZZY)


@contextmanager
def open_bag(path: Path) -> Iterator[Reader]:
    """Open a bag's folder, or its .mcap or .db3 file alone. Raises ``UserError`` if it is none."""
    try:
        reader = Reader(path)
        reader.open()
    except (ReaderError, OSError, KeyError) as error:
        remedy = ('give a folder of dtvla record or ros2 bag record, or its .mcap file; after a '
                  'recorder was killed, mcap recover writes one with an index')
        raise UserError(f'{path}: cannot read this bag ({error}); {remedy}') from error
    try:
        yield reader
    finally:
        reader.close()


def decode(connection: Connection, data: bytes) -> Any:
    """Return the message in ``data``."""
    return message_types().deserialize_cdr(data, connection.msgtype)


def stamp_of(message: Any) -> int:
    """Return a message's header stamp [ns]."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def stamp_in(data: bytes | memoryview) -> int:
    """Return the stamp [ns] of a serialised message that begins with its header."""
    sec, nanosec = struct.unpack_from('<iI' if data[1] else '>iI', data, 4)
    return sec * 10**9 + nanosec


@dataclass
class Track:
    """Messages of one topic, in the order they were received."""

    received: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, received: int, stamp: int, value: Any = None) -> None:
        """Append a message."""
        self.received.append(received)
        self.stamps.append(stamp)
        self.values.append(value)

    def during(self, since: int, until: int) -> Track:
        """Return the messages received from ``since`` on and before ``until`` [ns]."""
        kept = [k for k, t in enumerate(self.received) if since <= t < until]
        return Track(*([column[k] for k in kept]
                       for column in (self.received, self.stamps, self.values)))

    @cached_property
    def _by_stamp(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The indices of the messages by stamp, and the sorted stamps."""
        order = np.argsort(self.stamps, kind='stable')
        return order, np.asarray(self.stamps, np.int64)[order]

    def nearest(self, stamp: int, tolerance: int) -> int | None:
        """Return the index of the message nearest in time, if it is near enough [ns].

        Nothing may be added afterwards.
        """
        order, stamps = self._by_stamp
        k = int(np.searchsorted(stamps, stamp))
        near = range(max(0, k - 1), min(len(stamps), k + 1))
        best = min(near, key=lambda j: abs(stamps[j] - stamp), default=None)
        if best is None or abs(stamps[best] - stamp) > tolerance:
            return None
        return int(order[best])


@dataclass(slots=True)
class Timeline:
    """One bag: ``tracks`` by topic, and ``commands`` with actions [7] as values.

    The values of a track: poses are (position [3] m, quaternion [4] xyzw) in the base frame,
    joints {name: rad or m}, reports what ``sim/episode`` said, the rest texts and numbers; images
    have none. Thoughts (whole ones only), instructions and reports have no stamps.
    """

    path: Path
    command_topic: str
    tracks: dict[str, Track] = field(default_factory=lambda: defaultdict(Track))
    commands: Track = field(default_factory=Track)


def _command_topic(reader: Reader, path: Path, wanted: str | None) -> str:
    """Return the topic that commanded the arm. Raises ``UserError`` unless there is one."""
    counts = {c.topic: c.msgcount for c in reader.connections}
    found = [topic for topic in topics.COMMANDS if counts.get(topic)]
    if wanted is not None:
        if wanted not in found:
            raise UserError(f'--command {wanted}: {path} has {", ".join(found) or "no command"}')
        return wanted
    if not found:
        raise UserError(f'{path}: no command; record one of {", ".join(topics.COMMANDS)}')
    if len(found) > 1:
        raise UserError(f'{path}: commands on {" and ".join(found)}; choose with --command')
    return found[0]


def read_timeline(reader: Reader, path: Path, command: str | None = None) -> Timeline:
    """Read everything but images, of which only the stamps.

    ``command``: the topic that commanded, where there are several. Raises ``UserError`` when the
    bag lacks commands, or a command is not one.
    """
    line = Timeline(path, _command_topic(reader, path, command))
    values: dict[str, Callable[[Any], Any]] = {
        line.command_topic: lambda m: m,
        topics.EE_POSE: lambda m: _position_quaternion(m.pose),
        topics.JOINT_STATES: lambda m: dict(zip(m.name, m.position.tolist())),
        topics.ACTION_CHUNK: lambda m: None,
        topics.REASONING: lambda m: m.data,
        topics.INSTRUCTION: lambda m: m.data.strip(),
        topics.EPISODE: lambda m: _report(path, m.data),
        topics.GRIPPER: lambda m: m.data}
    images = topics.IMAGES.values()
    for connection, received, data in reader.messages(
            [c for c in reader.connections if c.topic in {*values, *images}]):
        track = line.tracks[connection.topic]
        if connection.topic in images:
            track.add(received, stamp_in(data))
            continue
        message = decode(connection, data)
        stamp = stamp_of(message) if hasattr(message, 'header') else 0
        if connection.topic == topics.ACTION_CHUNK and stamp in track.stamps[-1:]:
            continue  # one sent again
        if connection.topic == topics.REASONING and message.data.endswith(topics.UNFINISHED):
            continue
        track.add(received, stamp, values[connection.topic](message))
    _add_actions(line)
    return line


def _position_quaternion(pose: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, q = pose.position, pose.orientation
    return np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])


def _report(path: Path, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
        if {'instruction', 'done', 'success'} <= set(row):
            return row
    except (ValueError, TypeError):
        pass
    raise UserError(f'{path}: {topics.EPISODE} says {text[:60]!r}, which is not what sim_bridge '
                    'says; record without it')


def _add_actions(line: Timeline) -> None:
    """Turn commands of any kind into normalised actions; one per stamp, the last one sent."""
    read = {topics.ACTION: _from_action, topics.TWIST: _from_twist,
            topics.TARGET_POSE: _from_target}[line.command_topic]
    sent, gripper, actions = line.tracks[line.command_topic], line.tracks[topics.GRIPPER], (
        line.commands)
    for received, stamp, message, until in zip(
            sent.received, sent.stamps, sent.values, [*sent.received[1:], NEVER], strict=True):
        action = read(line, message)
        if action is None:
            continue
        if len(action) == len(CHANNELS) - 1:
            # The gripper's channel is told before the next command: a tick's comes second.
            k = int(np.searchsorted(np.asarray(gripper.received), until)) - 1
            action = np.append(
                action, osc.GRIPPER_OPEN if k < 0 else 1.0 - 2.0 * gripper.values[k])
        if not np.isfinite(action).all():
            raise UserError(f'{line.path}: a command on {line.command_topic} is not finite')
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        if actions.stamps and actions.stamps[-1] == stamp:
            actions.values[-1] = action
        else:
            actions.add(received, stamp, action)


def _from_action(line: Timeline, message: Any) -> NDArray[np.float64]:
    if len(message.points) != 1 or len(message.points[0].positions) != len(CHANNELS):
        raise UserError(f'{line.path}: {line.command_topic} is not one point of '
                        f'{len(CHANNELS)} channels')
    return np.asarray(message.points[0].positions, np.float64)


def _from_twist(line: Timeline, message: Any) -> NDArray[np.float64]:
    linear, angular = message.twist.linear, message.twist.angular
    return osc.from_velocity([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])


def _from_target(line: Timeline, message: Any) -> NDArray[np.float64] | None:
    """Return the offset of a goal from the pose last measured before it, None if none was."""
    poses = line.tracks[topics.EE_POSE]
    stamps = np.asarray(poses.stamps)
    before = int(np.searchsorted(stamps, stamp_of(message), side='right')) - 1
    if before < 0:
        return None
    position, quaternion = poses.values[before]
    goal, turn = _position_quaternion(message.pose)
    turned = Rotation.from_quat(turn) * Rotation.from_quat(quaternion).inv()
    return np.concatenate([(goal - position) / osc.METRES_PER_UNIT,
                           turned.as_rotvec() / osc.RADIANS_PER_UNIT])


def read_images(reader: Reader, topic: str, stamps: set[int], received: tuple[int, int],
                ) -> dict[int, NDArray[np.uint8]]:
    """Return images [H, W, 3] by stamp; those that cannot be decoded are left out.

    ``received``: when the recorder got the first and the last of them [ns].
    """
    from dtvla_ros.ros import images

    connections: list[Connection] = [c for c in reader.connections if c.topic == topic]
    found: dict[int, NDArray[np.uint8]] = {}
    for connection, _, data in reader.messages(connections, received[0], received[1] + 1):
        stamp = stamp_in(data)
        if stamp not in stamps or stamp in found:
            continue
        message = decode(connection, data)
        raw = connection.msgtype.endswith('/Image')
        try:
            found[stamp] = np.array(
                images.image_to_numpy(message) if raw else images.compressed_to_numpy(message))
        except images.ImageError:
            continue
    return found
