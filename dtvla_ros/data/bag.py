"""Reads rosbag2 bags: commands, measurements, thoughts and episodes; images by their stamps.

Stamps are those of the message headers, ``received`` is when the recorder got a message; both
are integers [ns], and the two clocks need not agree.
"""

from __future__ import annotations

import json
import struct
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from dtvla_ros import conventions as topics
from dtvla_ros.actions.contract import (
    JOINT_POSITION,
    OSC_POSE,
    OSC_POSE_ABSOLUTE,
    ActionContract,
)
from dtvla_ros.data import bag_commands, bag_joints, robot_names
from dtvla_ros.data.bag_commands import MEASURED
from dtvla_ros.data.robot_names import CAMERAS, COMMANDS, RobotNames, listed, remedy, types_of
from dtvla_ros.data.track import Row, Track, Unusable
from dtvla_ros.errors import UserError
from dtvla_ros.ros import conversions, images
from dtvla_ros.ros.frames import FrameTree
from dtvla_ros.thought import as_compact

UNFINISHED = '…'  # ends a thought that was being written, in bags of version 0.1
OTHER_CLOCK = 10**9  # distance of stamps from all commands that shows another clock [ns]
MEASURED_ARM = ('ee_pose', 'joint_states')  # in every frame, beside the images
LOOKED_AT = 10  # images of a camera after which none is expected to be decodable


@cache
def message_types() -> Typestore:
    """Return the message types a bag can hold."""
    return get_typestore(Stores.ROS2_JAZZY)


def _unreadable(path: Path, error: Exception) -> UserError:
    told = ' '.join(str(error).split()) or type(error).__name__
    cure = ('give a folder of dtvla record or ros2 bag record, or its .mcap or .db3 file; of a '
            'damaged or unfinished file mcap recover saves the rest')
    if path.suffix == '.bag':  # of ROS 1
        cure = f'rosbags-convert --src {path} --dst FOLDER makes a bag of ROS 2'
    return UserError(f'{path}: cannot read this bag ({told:.300}); {cure}')


@contextmanager
def open_bag(path: Path) -> Iterator[Reader]:
    """Open a bag's folder, or its .mcap or .db3 file alone. Raises ``UserError`` if it is none."""
    try:
        reader = Reader(path)
        reader.open()
        for c in reader.connections:
            if not (isinstance(c.topic, str) and isinstance(c.msgtype, str)
                    and isinstance(c.msgcount, int)):
                raise TypeError(f'metadata of topic {c.topic!r} of type {c.msgtype!r}: '
                                f'{c.msgcount!r} messages')
    except Exception as error:  # noqa: BLE001 - of a damaged file about anything is raised
        raise _unreadable(path, error) from None
    try:
        yield reader
    finally:
        with suppress(Exception):
            reader.close()


def messages(reader: Reader, path: Path, connections: Collection[Connection],
             start: int | None = None, stop: int | None = None,
             ) -> Iterator[tuple[Connection, int, bytes]]:
    """Yield (connection, received [ns], data) of an open bag. Raises ``UserError``."""
    found = iter(reader.messages(connections, start, stop)) if connections else iter(())
    while True:
        try:
            entry = next(found, None)
        except Exception as error:  # noqa: BLE001 - as above
            raise _unreadable(path, error) from None
        if entry is None:
            return
        yield entry


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
class Told:
    """What is told about a bag, and not found in it.

    ``command``: name or topic of the commands, where there are several; 'measured': of an arm
    that is commanded by its joints, where these were a control period later. ``gripper``: what its
    command is when closed and open; 'measured': none was recorded, the fingers tell. ``arrival``:
    the time a message was received counts as its stamp. ``rate`` [Hz] of the actions; None: as
    the stamps of the commands show. ``robot``: what counts where neither ``names`` nor the bag
    say anything.
    """

    names: RobotNames = field(default_factory=RobotNames)
    command: str | None = None
    gripper: tuple[float, float] | str | None = None
    arrival: bool = False
    rate: int | None = None
    robot: RobotNames = field(default_factory=RobotNames)


@dataclass(frozen=True, slots=True)
class Bag:
    """An open bag: ``tracks`` by topic name, and ``commands`` with actions [D] as values.

    The values of a track: poses are (position [3] m, quaternion [4] xyzw) in the base frame,
    joints {name: rad or m}, reports what ``sim/episode`` said, chunks the stamp in their header
    [ns], marks whether the episode succeeded, states of the gate whether a person drives, those of
    the policy the stamp of a decision whose thought was forced [ns], the rest texts and numbers;
    images have none. Thoughts (whole ones only), instructions, marks and reports have no stamps.
    ``sources``: the topic each track was recorded from; ``left_out``: messages that say nothing,
    by why; ``clipped``: commands beyond what OSC_POSE can say, of actions in it. ``contract``:
    what the actions are, but for their rate, and ``command`` the topic they are made of.
    ``cameras``: names of their topics.
    """

    reader: Reader
    path: Path
    tracks: dict[str, Track]
    commands: Track
    sources: dict[str, str]
    fingers: tuple[str, ...]
    left_out: Counter[str]
    clipped: int
    contract: ActionContract
    command: str
    cameras: tuple[str, ...]

    @property
    def stated(self) -> tuple[str, ...]:
        """What a frame consists of, beside the command."""
        return (*MEASURED_ARM, *self.cameras)

    def images(self, name: str, wanted: NDArray[np.int64], track: Track,
               ) -> dict[int, NDArray[np.uint8]]:
        """Return images [H, W, 3] of a camera that can be decoded, by their index in ``track``."""
        if not len(wanted):
            return {}
        connections = [c for c in self.reader.connections if c.topic == self.sources[name]]
        places = {int(track.received[k]): int(k) for k in wanted}
        found: dict[int, NDArray[np.uint8]] = {}
        for connection, received, data in messages(
                self.reader, self.path, connections, min(places), max(places) + 1):
            place = places.get(received)
            if place is not None and place not in found:
                with suppress(images.ImageError):
                    found[place] = _image(connection, data)
        return found


def _image(connection: Connection, data: bytes) -> NDArray[np.uint8]:
    """Return a recorded image [H, W, 3]. Raises ``ImageError``."""
    _, parse, show = images.TRANSPORTS[
        'raw' if connection.msgtype.endswith('/Image') else 'compressed']
    return np.array(show(parse(bytes(data))))


def read_bag(reader: Reader, path: Path, told: Told = Told()) -> Bag:
    """Read everything but images, of which only the stamps.

    Raises ``UserError`` when the bag lacks what a dataset needs, or says what cannot be meant.
    """
    return _Reading(reader, path, told).bag()


def kept_names(reader: Reader, path: Path) -> RobotNames:
    """Return the names a recorder kept in a bag. Raises ``UserError`` if they are damaged."""
    custom = getattr(getattr(reader.storage, 'metadata', None), 'custom', None) or {}
    try:
        return RobotNames.from_text(custom[robot_names.KEY])
    except KeyError:
        return RobotNames()
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f'{path / "metadata.yaml"}: custom_data {robot_names.KEY}: {error}; '
                        'remove that line, and give --topic NAME=/TOPIC where topics have other '
                        'names') from None


class _Reading:
    """One pass over a bag."""

    def __init__(self, reader: Reader, path: Path, told: Told) -> None:
        self.reader, self.path, self.told = reader, path, told
        self.names = told.names.over(kept_names(reader, path)).over(told.robot)
        self.cameras = self.names.images
        self.types = {c.topic: c.msgtype for c in reader.connections if c.msgcount}
        self.left_out: Counter[str] = Counter()
        self.frames: dict[str, set[str]] = defaultdict(set)
        self.by_tf = not self._source('ee_pose') or bool(
            self.names.ee_frame and self._source('tf'))
        self.tree, self.last = FrameTree(), -1
        self.shown: dict[str, str] = {}  # by camera: '' once an image was decoded, else why not
        self.looked_at: Counter[str] = Counter()
        self.command = self._command()
        self.sources = {name: topic for name in dict.fromkeys((*self.cameras, *robot_names.TYPES))
                        if (name in self.cameras or name not in CAMERAS)
                        and (topic := self._source(name))}

    def _source(self, name: str) -> str:
        """Return the topic that a name stands for in this bag, '' if it is not there."""
        counts = {c.topic: c.msgcount for c in self.reader.connections
                  if c.msgcount and c.topic in self.names.candidates(name)}
        if name in COMMANDS:  # several may be remapped to one topic
            counts = {topic: n for topic, n in counts.items()
                      if self.types[topic] in types_of(name)}
        if not counts:
            return ''
        topic = max(counts, key=lambda t: counts[t])
        if self.types[topic] not in types_of(name):
            raise self._other_type(name, topic, self.types[topic])
        return topic

    def _other_type(self, name: str, topic: str, kind: str) -> UserError:
        return UserError(f'{self.path}: {topic} is {kind}, and {name} must be '
                         f'{" or ".join(types_of(name))}; '
                         + remedy(name, self.names, self.types))

    def _command(self) -> str:
        """Return the name of what commanded the arm. Raises ``UserError`` unless there is one."""
        names, wanted = self.names.commands, self.told.command
        if wanted == MEASURED and self.names.is_joints:
            return MEASURED
        found = [name for name in names if self._source(name)]
        fitting = [n for n in found if wanted in (None, n, f'/{n}', self._source(n))]
        if len(fitting) == 1:
            return fitting[0]
        if self.names.is_pose and (twist := self._source('twist_cmd')) and (
                wanted in ('twist_cmd', '/twist_cmd', twist) or not found):
            raise UserError(
                f'{self.path}: {twist} says how fast the gripper shall go, and not where to, as '
                f'{OSC_POSE_ABSOLUTE} does; record what commands poses (target_pose), or give '
                f'--action-space {OSC_POSE}')
        if found:
            raise UserError(
                f'{self.path}: it has the commands {" and ".join(map(self._source, found))}'
                + (f', not {wanted}' if wanted else '') + '; choose one of them with --command')
        for name in names:
            if kind := self.types.get(topic := self.names.topic(name)):
                raise self._other_type(name, topic, kind)
        usual = ', '.join(dict.fromkeys(map(self.names.topic, names)))
        alike = {topic: name for name in reversed(names)
                 for topic in robot_names.nearest(name, self.names, self.types)[:1]}
        near = [f'--topic {name}={topic}' for topic, name in reversed(alike.items())]
        if self.names.is_joints and not near and wanted is None:
            return MEASURED
        cure = (f'if one of these moved the arm, give {" or ".join(near)}' if near else
                'record what moves the arm, too')
        if self.names.is_joints:
            cure += f'; else --command {MEASURED} takes where the joints were a period later'
        elif by_joints := [topic for name in COMMANDS if (topic := self._source(name))]:
            cure += (f'; if {by_joints[0]} commanded its joints, give --robot NAME, or '
                     f'--action-space {JOINT_POSITION}')
        raise UserError(f'{self.path}: it has no command ({usual}), but '
                        f'{listed(list(self.types))}; {cure}')

    def _missing(self, name: str) -> UserError:
        return UserError(f'{self.path}: it has no {self.names.topic(name)}, but '
                         f'{listed(list(self.types))}; {remedy(name, self.names, self.types)}')

    def bag(self) -> Bag:
        rows: dict[str, list[Row]] = defaultdict(list)
        for name in (*self.cameras, 'joint_states'):
            if name not in self.sources:
                raise self._missing(name)
        wanted = {topic: name for name, topic in self.sources.items()
                  if name not in COMMANDS or name == self.command}
        unused = ('ee_pose',) if self.by_tf else ('tf', 'tf_static')
        wanted = {topic: name for topic, name in wanted.items() if name not in unused}
        for name, topic in self.sources.items():
            if topic in wanted and wanted[topic] != name and name not in COMMANDS:
                raise UserError(f'{self.path}: {topic} is said to be {name} and {wanted[topic]}; '
                                'give each its own topic with --topic')
        if self.by_tf and not {'tf', 'tf_static'} & set(wanted.values()):
            raise UserError(f'{self._missing("ee_pose")}; or record /tf and /tf_static, as of '
                            'robot_state_publisher: every policy is told where the gripper is')
        if self.by_tf and not (self.names.base_frame and self.names.ee_frame):
            raise UserError(
                f'{self.path}: it has no {self.names.topic("ee_pose")}; to take the pose from /tf '
                'give --base-frame and --ee-frame; its frames are '
                + listed(self._known_frames(wanted)))
        for connection, received, data in messages(self.reader, self.path, [
                c for c in self.reader.connections if c.topic in wanted]):
            name = wanted[connection.topic]
            try:
                rows[self._track_of(name)] += self._read(
                    name, connection, received, data, rows[self._track_of(name)])
            except Unusable as error:
                self.left_out[f'{connection.topic}: {error}'] += 1
            except Exception as error:  # noqa: BLE001 - a damaged message raises about anything
                self.left_out[f'{connection.topic}: cannot be decoded '
                              f'({type(error).__name__})'] += 1
        for name in ('joint_states', *(() if self.command == MEASURED else (self.command,)),
                     *(() if self.by_tf else ('ee_pose',))):
            if not rows[name]:
                why = '; '.join(self.left_out) or 'there are none'
                raise UserError(f'{self.path}: no message on {self.sources[name]} can be used '
                                f'({why:.300}); record it again')
        if self.by_tf and not rows['ee_pose']:
            known, ends = self._known_frames(wanted), (self.names.base_frame, self.names.ee_frame)
            cure = 'choose --base-frame and --ee-frame among them' if (
                {*ends} - {*known} or ends[0] == ends[1]) else (
                'record transforms that are finite, and one parent of every frame')
            raise UserError(f'{self.path}: /tf does not lead from {ends[0]} to {ends[1]}; its '
                            f'frames are {listed(known)}; {cure}')
        self._require_images(wanted)
        self._require_one_frame()
        return self._tracks(rows)

    def _tracks(self, rows: dict[str, list[Row]]) -> Bag:
        rows['joint_states'], arm, fingers, left_out = bag_joints.joint_rows(
            rows['joint_states'], self.names, f'{self.path}: {self.sources["joint_states"]}')
        self.left_out += left_out
        tracks = {name: Track.of(rows[name]) for name in (*robot_names.TYPES, *self.cameras)}
        source = self.sources | {MEASURED: self.sources['joint_states']}
        if self.by_tf:
            source['ee_pose'] = self.sources.get('tf', '/tf_static')
        contract, gripper = self.names.contract(arm), self.told.gripper
        if contract.is_joints:
            tracks[self.command] = self._targets(tracks, contract, source[self.command])
            gripper = self._gripper(tracks, fingers, source)
        elif contract.is_pose:
            tracks[self.command] = tracks[self.command].at_rate(self.told.rate)
        for name in (self.command, *MEASURED_ARM, *self.cameras):
            self._require_stamps(source[name], tracks[name], tracks[self.command])
        commands, clipped = bag_commands.actions(
            tracks, self.command, contract, fingers, gripper, self.path, source, self.left_out,
            remedy('gripper_cmd', self.names, self.types))
        return Bag(self.reader, self.path, tracks, commands, source, fingers, self.left_out,
                   clipped, contract, source[self.command], self.cameras)

    def _targets(self, tracks: dict[str, Track], contract: ActionContract, topic: str) -> Track:
        """Return where the joints shall be, by name, for each control period."""
        states = tracks['joint_states']
        if self.command == MEASURED:
            return bag_joints.followed(states, contract.joints, self.told.rate)
        sent, named = tracks[self.command], contract.channels if (
            self.command == 'action') else contract.joints
        if self.told.arrival:
            sent = Track(sent.received, sent.received, sent.values)
        return bag_joints.commanded(sent, states, contract.joints, named, self.told.rate,
                                    f'{self.path}: {topic}', self.left_out)

    def _gripper(self, tracks: dict[str, Track], fingers: tuple[str, ...],
                 source: dict[str, str]) -> tuple[float, float] | str | None:
        """Take the gripper's command out of the arm's, where it is there and nowhere else.

        Return what is told of it, else what is known of these joints.
        """
        sent, told = tracks[self.command], self.told.gripper
        if told == MEASURED or tracks['gripper_cmd'].values or self.command == 'action':
            return told
        if self.command == MEASURED:
            return MEASURED
        if all(name in targets for targets in sent.values for name in fingers):
            tracks['gripper_cmd'] = Track(sent.received, sent.stamps, [
                sum(targets[name] for name in fingers) for targets in sent.values])
            source['gripper_cmd'] = source[self.command]
            if told is None and self.names.gripper_width:
                return self.names.finger_closed_position, self.names.finger_open_position
        return told

    def _track_of(self, name: str) -> str:
        return 'ee_pose' if name in ('tf', 'tf_static') else name

    def _read(self, name: str, connection: Connection, received: int, data: bytes,
              before: list[Row]) -> list[Row]:
        """Return the rows of a message. Raises ``Unusable`` saying why it has none."""
        if name in self.cameras:
            self._look(name, connection, data)
            return [(received, self._stamp(stamp_in(data), received), None)]
        message = decode(connection, data)
        if name in ('tf', 'tf_static'):
            return self._placed(message, received, name == 'tf_static')
        if not hasattr(message, 'header'):
            value = self._plain(name, message)
            return [] if value is None else [(received, 0, value)]
        header = message.header
        stamp = self._stamp(stamp_of(message), received)
        if name == 'vla/action_chunk':
            return [] if before and stamp == before[-1][1] else [
                (received, stamp, stamp_of(message))]
        if name in ('ee_pose', 'twist_cmd', 'target_pose') and header.frame_id:
            self.frames[connection.topic].add(header.frame_id.lstrip('/'))
        if name == 'ee_pose' or (name == 'target_pose' and self.names.is_pose):
            return [(received, stamp, _sound_pose(message.pose))]
        if name == 'joint_states':
            return [(received, stamp, (message.name, message.position.tolist()))]
        return [(received, stamp, message)]

    def _stamp(self, stamp: int, received: int) -> int:
        if self.told.arrival:
            return received
        return stamp

    def _plain(self, name: str, message: Any) -> Any:
        if name == 'sim/episode':
            return _report(self.path, message.data)
        if name == 'instruction':
            return message.data.strip() or None
        if name == 'episode_mark':
            if (succeeded := topics.MARKS.get(message.data.strip())) is None:
                raise Unusable(f'neither {" nor ".join(topics.MARKS)}')
            return succeeded
        if name == 'vla/reasoning':
            return None if message.data.endswith(UNFINISHED) else as_compact(message.data)
        if name == 'gate_state':
            return conversions.status_values(message).get('driver') == topics.PERSON
        if name == 'vla/state':
            told = conversions.status_values(message)
            return round(float(told['stamp']) * 1e9) if told.get('forced') else None
        if name == 'gripper_cmd':
            return _gripper_command(message)
        return message.data

    def _placed(self, message: Any, received: int, static: bool,
                ) -> list[Row]:
        """Return where the gripper is now, after a message of transforms."""
        self.tree.take(message, static)
        placed = self.tree.look_up(
            self.names.base_frame.lstrip('/'), self.names.ee_frame.lstrip('/'))
        if placed is None or not np.isfinite(placed[2]):
            return []
        stamp = self._stamp(round(placed[2] * 1e9), received)
        if stamp == self.last:
            return []
        self.last = stamp
        return [(received, stamp, (placed[0], placed[1].as_quat()))]

    def _known_frames(self, wanted: dict[str, str]) -> list[str]:
        """Return which frames the transforms of the bag name."""
        known: dict[str, None] = {}
        for connection, _, data in messages(self.reader, self.path, [
                c for c in self.reader.connections
                if wanted.get(c.topic) in ('tf', 'tf_static')]):
            with suppress(Exception):
                for entry in decode(connection, data).transforms:
                    known |= {entry.header.frame_id: None, entry.child_frame_id: None}
        return list(known)

    def _look(self, name: str, connection: Connection, data: bytes) -> None:
        """Decode an image until one could be decoded: a depth camera never shows one."""
        if self.shown.get(name, 'unseen') and self.looked_at[name] < LOOKED_AT:
            self.looked_at[name] += 1
            try:
                _image(connection, data)
                self.shown[name] = ''
            except images.ImageError as error:
                self.shown.setdefault(name, str(error))

    def _require_images(self, wanted: dict[str, str]) -> None:
        for name, why in self.shown.items():
            if why:
                topic = self.sources[name]
                others = {t: k for t, k in self.types.items() if t != topic}
                cure = remedy(name, self.names, others) if robot_names.nearest(
                    name, self.names, others) else 'record it as rgb8, bgr8, mono8, JPEG or PNG'
                raise UserError(f'{self.path}: {topic} shows no colour image ({why:.300}); {cure}')

    def _require_one_frame(self) -> None:
        """Poses and commands are of one frame, the one that is told if one is."""
        posed = self.sources.get('ee_pose', '')
        base = self.names.base_frame.lstrip('/')
        known = base or next(iter(sorted(self.frames.get(posed, ()))), '')
        told = '--base-frame, or the bag, says' if base else f'{posed} is in'
        for topic, found in self.frames.items():
            if known and (other := sorted(found - {known})):
                cures = ['record all poses and commands in one frame',
                         *([f'give --base-frame {other[0]} if it is that of all'] if base else []),
                         *([] if self.by_tf or 'tf' not in self.sources else [
                             'take the pose from /tf with --base-frame and --ee-frame'])]
                raise UserError(f'{self.path}: {topic}: header.frame_id is {other[0]!r}, {told} '
                                f'{known!r}; {", or ".join(cures)}')

    def _require_stamps(self, topic: str, track: Track, commands: Track) -> None:
        """Refuse a topic without stamps, or with those of another clock."""
        if not len(track.stamps):
            return
        if not track.stamps.any() or len(track.stamps) > 1 and not np.ptp(track.stamps):
            raise UserError(
                f'{self.path}: {topic}: header.stamp is {track.stamps[0] / 1e9:g} in all '
                f'{len(track.stamps)} messages; --stamps received takes the times they were '
                'received')
        if not len(commands.stamps):
            return
        low, high = commands.stamps.min(), commands.stamps.max()
        inside = (low - OTHER_CLOCK <= track.stamps) & (track.stamps <= high + OTHER_CLOCK)
        if not inside.any():
            away = (track.stamps.min() - low) / 1e9
            raise UserError(
                f'{self.path}: {topic}: header.stamp is {away:+.1f} s from those of the commands: '
                'another clock; --stamps received takes the times the messages were received')


def _sound_pose(pose: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    position, quaternion = conversions.pose_arrays(pose)
    if refused := conversions.refuse_pose(position, quaternion):
        raise Unusable(refused)
    return position, quaternion


def _gripper_command(message: Any) -> float:
    """Return what a Float64, a Float64MultiArray or a JointTrajectory tells a gripper."""
    values = np.ravel(message.data if hasattr(message, 'data') else
                      message.points[-1].positions if message.points else [])
    if not len(values) or not np.isfinite(values[0]):
        raise Unusable('not finite')
    return float(values[0])


def _report(path: Path, text: str) -> dict[str, Any]:
    with suppress(ValueError, TypeError, AttributeError):
        row = json.loads(text)
        if {'instruction', 'done', 'success'} <= set(row) and isinstance(row['instruction'], str):
            return row
    raise UserError(f'{path}: {topics.EPISODE} says {text[:60]!r}, which is not what sim_bridge '
                    'says; record without it')
