"""Reads rosbag2 bags: commands, measurements, thoughts and episodes; images by their stamps.

Stamps are those of the message headers, ``received`` is when the recorder got a message; both
are integers [ns], and the two clocks need not agree.
"""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
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
from dtvla_ros.ros import conversions, images

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


@dataclass(frozen=True, slots=True)
class Track:
    """Messages of one topic, in the order they were received: times [N] ns, N values."""

    received: NDArray[np.int64]
    stamps: NDArray[np.int64]
    values: list[Any]

    def during(self, since: int, until: int) -> Track:
        """Return the messages received from ``since`` on and before ``until`` [ns]."""
        kept = np.flatnonzero((since <= self.received) & (self.received < until))
        return Track(self.received[kept], self.stamps[kept], [self.values[k] for k in kept])

    def nearest(self, stamps: NDArray[np.int64], tolerance: int) -> NDArray[np.int64]:
        """Return the index of the message nearest to each time, -1 where none is near [ns]."""
        if not self.values:
            return np.full(len(stamps), -1)
        order = np.argsort(self.stamps, kind='stable')
        known = self.stamps[order]
        after = np.searchsorted(known, stamps)
        before, after = np.maximum(after - 1, 0), np.minimum(after, len(known) - 1)
        best = np.where(stamps - known[before] <= np.abs(known[after] - stamps), before, after)
        return np.where(np.abs(known[best] - stamps) <= tolerance, order[best], -1)


@dataclass(frozen=True, slots=True)
class Bag:
    """An open bag: ``tracks`` by topic, and ``commands`` with actions [7] as values.

    The values of a track: poses are (position [3] m, quaternion [4] xyzw) in the base frame,
    joints {name: rad or m}, reports what ``sim/episode`` said, the rest texts and numbers; images
    have none. Thoughts (whole ones only), instructions and reports have no stamps.
    """

    reader: Reader
    path: Path
    tracks: dict[str, Track]
    commands: Track

    def images(self, topic: str, wanted: NDArray[np.int64], track: Track,
               ) -> dict[int, NDArray[np.uint8]]:
        """Return images [H, W, 3] of a camera that can be decoded, by their index in ``track``."""
        if not len(wanted):
            return {}
        connections: list[Connection] = [c for c in self.reader.connections if c.topic == topic]
        places = {int(track.stamps[k]): int(k) for k in wanted}
        received = track.received[wanted]
        found: dict[int, NDArray[np.uint8]] = {}
        for connection, _, data in self.reader.messages(
                connections, int(received.min()), int(received.max()) + 1):
            place = places.get(stamp_in(data))
            if place is not None and place not in found:
                raw = connection.msgtype.endswith('/Image')
                parse = images.image_to_numpy if raw else images.compressed_to_numpy
                with suppress(images.ImageError):
                    found[place] = np.array(parse(decode(connection, data)))
        return found


def read_bag(reader: Reader, path: Path, command: str | None = None) -> Bag:
    """Read everything but images, of which only the stamps; ``command``: the topic, if several.

    Raises ``UserError`` when the bag lacks commands, or a command is not one.
    """
    command = _command_topic(reader, path, command)
    values: dict[str, Callable[[Any], Any]] = {
        command: lambda m: m,
        topics.EE_POSE: lambda m: conversions.pose_arrays(m.pose),
        topics.JOINT_STATES: lambda m: dict(zip(m.name, m.position.tolist())),
        topics.ACTION_CHUNK: lambda m: None,
        topics.REASONING: lambda m: m.data,
        topics.INSTRUCTION: lambda m: m.data.strip(),
        topics.EPISODE: lambda m: _report(path, m.data),
        topics.GRIPPER: lambda m: m.data}
    cameras = topics.IMAGES.values()
    rows: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
    for connection, received, data in reader.messages(
            [c for c in reader.connections if c.topic in {*values, *cameras}]):
        topic = connection.topic
        if topic in cameras:
            rows[topic].append((received, stamp_in(data), None))
            continue
        message = decode(connection, data)
        stamp = stamp_of(message) if hasattr(message, 'header') else 0
        if topic == topics.ACTION_CHUNK and rows[topic] and stamp == rows[topic][-1][1]:
            continue  # one sent again
        if topic == topics.REASONING and message.data.endswith(topics.UNFINISHED):
            continue
        rows[topic].append((received, stamp, values[topic](message)))
    tracks = {topic: _track(rows[topic]) for topic in (*values, *cameras)}
    return Bag(reader, path, tracks, _actions(path, tracks, command))


def _track(rows: list[tuple[int, int, Any]]) -> Track:
    times = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
    return Track(times[:, 0], times[:, 1], [row[2] for row in rows])


def _command_topic(reader: Reader, path: Path, wanted: str | None) -> str:
    """Return the topic that commanded the arm. Raises ``UserError`` unless there is one."""
    counts = {c.topic: c.msgcount for c in reader.connections}
    found = [topic for topic in topics.COMMANDS if counts.get(topic)]
    fitting = [topic for topic in found if wanted in (None, topic)]
    if len(fitting) == 1:
        return fitting[0]
    raise UserError(f'{path}: it has {" and ".join(found) or "no command"}; choose one of them '
                    f'with --command, or record one of {", ".join(topics.COMMANDS)}')


def _report(path: Path, text: str) -> dict[str, Any]:
    with suppress(ValueError, TypeError):
        row = json.loads(text)
        if {'instruction', 'done', 'success'} <= set(row):
            return row
    raise UserError(f'{path}: {topics.EPISODE} says {text[:60]!r}, which is not what sim_bridge '
                    'says; record without it')


def _actions(path: Path, tracks: dict[str, Track], topic: str) -> Track:
    """Turn commands of any kind into normalised actions; one per stamp, the last one sent."""
    sent, gripper = tracks[topic], tracks[topics.GRIPPER]
    rows: list[tuple[int, int, Any]] = []
    for received, stamp, message, until in zip(
            sent.received, sent.stamps, sent.values, [*sent.received[1:], NEVER], strict=True):
        if topic == topics.ACTION:
            action = np.concatenate([point.positions for point in message.points] or [[]])
        else:
            motion = (osc.from_velocity(conversions.twist_array(message.twist))
                      if topic == topics.TWIST else _offset(tracks[topics.EE_POSE], message))
            if motion is None:
                continue
            # The gripper's channel is told before the next command: a tick's comes second.
            k = int(np.searchsorted(gripper.received, until)) - 1
            action = np.append(
                motion, osc.GRIPPER_OPEN if k < 0 else 1.0 - 2.0 * gripper.values[k])
        if action.shape != (len(CHANNELS),) or not np.isfinite(action).all():
            raise UserError(f'{path}: a command on {topic} is not one point of {len(CHANNELS)} '
                            'finite channels; record another one')
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        if rows and rows[-1][1] == stamp:
            rows[-1] = (*rows[-1][:2], action)
        else:
            rows.append((received, stamp, action))
    return _track(rows)


def _offset(poses: Track, message: Any) -> NDArray[np.float64] | None:
    """Return the offset of a goal from the pose last measured before it, None if none was."""
    before = int(np.searchsorted(poses.stamps, stamp_of(message), side='right')) - 1
    if before < 0:
        return None
    position, quaternion = poses.values[before]
    goal, turn = conversions.pose_arrays(message.pose)
    turned = Rotation.from_quat(turn) * Rotation.from_quat(quaternion).inv()
    return np.concatenate([(goal - position) / osc.METRES_PER_UNIT,
                           turned.as_rotvec() / osc.RADIANS_PER_UNIT])
