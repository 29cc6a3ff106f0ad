"""What a bag says, without its pictures: commands, measurements, thoughts, episodes.

Stamps are those of the message headers, ``received`` is when the recorder got a message; both
are integers [ns], and the two clocks need not agree.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from scipy.spatial.transform import Rotation

from dtvla_ros import conventions as topics
from dtvla_ros.actions import osc
from dtvla_ros.conventions import CHANNELS
from dtvla_ros.errors import UserError
from dtvla_ros.recording.bag import decode

AGES = 2**62  # later than anything [ns]


@dataclass(slots=True)
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


class Nearest:
    """Finds messages of a track by their stamp."""

    def __init__(self, track: Track) -> None:
        self.track = track
        self._order = np.argsort(track.stamps, kind='stable')
        self._stamps = np.asarray(track.stamps, np.int64)[self._order]

    def __call__(self, stamp: int, tolerance: int) -> int | None:
        """Return the place in the track of the nearest message, if it is near enough [ns]."""
        k = int(np.searchsorted(self._stamps, stamp))
        near = range(max(0, k - 1), min(len(self._stamps), k + 1))
        best = min(near, key=lambda j: abs(self._stamps[j] - stamp), default=None)
        if best is None or abs(self._stamps[best] - stamp) > tolerance:
            return None
        return int(self._order[best])


@dataclass(slots=True)
class Timeline:
    """One bag.

    ``commands`` hold actions [7], ``poses`` (position [3] m, quaternion [4] xyzw) in the base
    frame, ``joints`` {name: rad or m}, ``reports`` what ``sim/episode`` said. ``thoughts``
    (whole ones only), ``instructions`` and ``reports`` have no stamps; ``cameras`` no values.
    """

    path: Path
    command_topic: str
    commands: Track = field(default_factory=Track)
    poses: Track = field(default_factory=Track)
    joints: Track = field(default_factory=Track)
    cameras: dict[str, Track] = field(default_factory=lambda: {c: Track() for c in topics.IMAGES})
    chunks: Track = field(default_factory=Track)
    thoughts: Track = field(default_factory=Track)
    instructions: Track = field(default_factory=Track)
    reports: Track = field(default_factory=Track)


def stamp_of(message: Any) -> int:
    """Return a message's header stamp [ns]."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def stamp_in(data: bytes | memoryview) -> int:
    """Return the stamp [ns] of a serialised message that begins with its header."""
    sec, nanosec = struct.unpack_from('<iI' if data[1] else '>iI', data, 4)
    return sec * 10**9 + nanosec


def command_topic(reader: Reader, path: Path, wanted: str | None) -> str:
    """Return the topic whose messages commanded the arm.

    Raises
    ------
    UserError
        If there is none, or more than one and none is ``wanted``.

    """
    counts = {c.topic: c.msgcount for c in reader.connections}
    found = [t for t in topics.COMMANDS if counts.get(t)]
    if wanted is not None:
        if wanted not in topics.COMMANDS or not counts.get(wanted):
            raise UserError(f'--command {wanted}: {path} has {", ".join(found) or "no command"}')
        return wanted
    if not found:
        raise UserError(f'{path}: no command; record one of {", ".join(topics.COMMANDS)}')
    if len(found) > 1:
        raise UserError(f'{path}: commands on {" and ".join(found)}; choose with --command')
    return found[0]


def read_timeline(reader: Reader, path: Path, command: str | None = None) -> Timeline:
    """Read everything but pictures, of which only the stamps.

    Raises
    ------
    UserError
        If the bag lacks commands, or a command is not one.

    """
    line = Timeline(path, command_topic(reader, path, command))
    cameras = {topic: line.cameras[name] for name, topic in topics.IMAGES.items()}
    grips = Track()
    commands: list[tuple[int, Any]] = []
    wanted = {*cameras, topics.JOINT_STATES, topics.EE_POSE, topics.INSTRUCTION, topics.REASONING,
              topics.ACTION_CHUNK, topics.GRIPPER, topics.EPISODE, line.command_topic}
    for connection, received, data in reader.messages(
            [c for c in reader.connections if c.topic in wanted]):
        topic = connection.topic
        if topic in cameras:
            cameras[topic].add(received, stamp_in(data))
            continue
        message = decode(connection, data)
        if topic == line.command_topic:
            commands.append((received, message))
        elif topic == topics.EE_POSE:
            p, q = message.pose.position, message.pose.orientation
            line.poses.add(received, stamp_of(message), (
                np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])))
        elif topic == topics.JOINT_STATES:
            line.joints.add(received, stamp_of(message), dict(
                zip(message.name, message.position.tolist())))
        elif topic == topics.ACTION_CHUNK:
            if stamp_of(message) not in line.chunks.stamps[-1:]:  # not one sent again
                line.chunks.add(received, stamp_of(message))
        elif topic == topics.REASONING:
            if not message.data.endswith(topics.UNFINISHED):
                line.thoughts.add(received, 0, message.data)
        elif topic == topics.INSTRUCTION:
            line.instructions.add(received, 0, message.data.strip())
        elif topic == topics.EPISODE:
            line.reports.add(received, 0, _report(path, message.data))
        else:
            grips.add(received, 0, message.data)
    _add_actions(line, commands, grips)
    return line


def _report(path: Path, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
        if {'instruction', 'done', 'success'} <= set(row):
            return row
    except (ValueError, TypeError):
        pass
    raise UserError(f'{path}: {topics.EPISODE} says {text[:60]!r}, which is not what sim_bridge '
                    'says; record without it')


def _add_actions(line: Timeline, commands: Sequence[tuple[int, Any]], grips: Track) -> None:
    """Turn commands of any kind into normalised actions; one per stamp, the last one sent."""
    read = {topics.ACTION: _from_action, topics.TWIST: _from_twist,
            topics.TARGET_POSE: _from_target}[line.command_topic]
    track = line.commands
    nexts = [received for received, _ in commands[1:]] + [AGES]
    for (received, message), following in zip(commands, nexts):
        action = read(line, message)
        if action is None:
            continue
        if len(action) == len(CHANNELS) - 1:
            action = np.append(action, _grip_before(grips, following))
        if not np.isfinite(action).all():
            raise UserError(f'{line.path}: a command on {line.command_topic} is not finite')
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        if track.stamps and track.stamps[-1] == stamp_of(message):
            track.values[-1] = action
        else:
            track.add(received, stamp_of(message), action)


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
    stamps = np.asarray(line.poses.stamps)
    before = int(np.searchsorted(stamps, stamp_of(message), side='right')) - 1
    if before < 0:
        return None
    position, quaternion = line.poses.values[before]
    p, q = message.pose.position, message.pose.orientation
    turn = Rotation.from_quat([q.x, q.y, q.z, q.w]) * Rotation.from_quat(quaternion).inv()
    return np.concatenate([
        (np.array([p.x, p.y, p.z]) - position) / osc.METRES_PER_UNIT,
        turn.as_rotvec() / osc.RADIANS_PER_UNIT])


def _grip_before(grips: Track, received: int) -> float:
    """Return the gripper channel last told before the next command: its tick's comes second."""
    k = int(np.searchsorted(np.asarray(grips.received), received)) - 1
    return osc.GRIPPER_OPEN if k < 0 else 1.0 - 2.0 * grips.values[k]


def pictures(reader: Reader, topic: str, wanted: set[int], received: tuple[int, int]
             ) -> dict[int, NDArray[np.uint8]]:
    """Return images [H, W, 3] by stamp; those that cannot be decoded are left out."""
    from dtvla_ros.ros import images

    connections: list[Connection] = [c for c in reader.connections if c.topic == topic]
    found: dict[int, NDArray[np.uint8]] = {}
    for connection, _, data in reader.messages(connections, received[0], received[1] + 1):
        stamp = stamp_in(data)
        if stamp not in wanted or stamp in found:
            continue
        message = decode(connection, data)
        raw = connection.msgtype.endswith('/Image')
        try:
            found[stamp] = np.array(
                images.image_to_numpy(message) if raw else images.compressed_to_numpy(message))
        except images.ImageError:
            continue
    return found
