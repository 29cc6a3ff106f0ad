"""``dtvla record``: a node that writes every message of some topics into a bag, as it came.

Bags are rosbag2's, with MCAP storage, by ``rosbags``, which writes the metadata and message
definitions that ``mcap`` does not; here a bag also stays readable when the disk fills up.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from rclpy.node import Node
from rclpy.serialization import serialize_message
from rosbags import interfaces as rosbag
from rosbags.interfaces import Connection, Qos, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionMode
from rosbags.rosbag2.storage_mcap import McapWriter, PendingChunk
from std_msgs.msg import String

from dtvla_ros.conventions import EPISODE_MARK, INSTRUCTION
from dtvla_ros.data import robot_names
from dtvla_ros.data.bag import message_types
from dtvla_ros.data.robot_names import RobotNames
from dtvla_ros.errors import UserError
from dtvla_ros.ros import qos
from dtvla_ros.ros.conversions import message_type
from dtvla_ros.ros.run import STEADY, end, run

# Every ROS 2 from Humble on reads it; in version 9 the profiles are spelt so that Humble does not.
VERSION: Literal[8] = 8
QUEUE_BYTES = 64 * 2**20  # waiting for the disk; what comes on top of it is dropped and counted
DISCOVERY_PERIOD = 0.1  # between two searches for new publishers [s]
PROGRESS_PERIOD = 1.0
PROGRESS_EVERY = 10  # of these, where no terminal shows them
IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
IMAGES_DEPTH, DEPTH = 10, 1000
DISK_FULL = 3  # exit code
_FOREVER = QosTime(9223372036, 854775807)


def bag_qos(reliable: bool, latched: bool, depth: int = 10) -> Qos:
    """Return a profile as ``ros2 bag play`` will offer the topic."""
    return Qos(
        rosbag.QosHistory.KEEP_LAST, depth,
        rosbag.QosReliability.RELIABLE if reliable else rosbag.QosReliability.BEST_EFFORT,
        rosbag.QosDurability.TRANSIENT_LOCAL if latched else rosbag.QosDurability.VOLATILE,
        _FOREVER, _FOREVER, rosbag.QosLiveliness.AUTOMATIC, _FOREVER, False)


class _Mcap(McapWriter):
    """Puts whole chunks on the disk or nothing, so that what is there can always be read.

    ``held``: where the file's head and each chunk end, messages by channel, first and last time.
    """

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        super().__init__(path, compression)
        self.held = [(self.bio.tell(), Counter[int](), 2**63 - 1, 0)]

    def close_chunk(self) -> None:
        chunk = self.chunk
        super().close_chunk()
        self.bio.flush()
        self.held.append((
            self.bio.tell(), Counter({k: len(rows) for k, rows in chunk.msgs.items()}),
            chunk.message_start_time, chunk.message_end_time))

    def truncate(self, chunks: int) -> None:
        """Drop what is not on the disk yet and the last ``chunks`` of what is."""
        del self.held[max(1, len(self.held) - chunks):]
        del self.chunks[len(self.held) - 1:]
        ends, counts, firsts, lasts = zip(*self.held)
        self.chunk = PendingChunk(2**63 - 1, 0, BytesIO(), defaultdict(list))
        self.channel_stats = {k: sum(count[k] for count in counts) for k in self.channel_stats}
        self.message_start_time, self.message_end_time = min(firsts), max(lasts)
        # Closed below its buffer: what could not be written must not be written later.
        self.bio.raw.close()  # type: ignore[attr-defined]
        os.truncate(self.path, ends[-1])
        self.bio = self.path.open('ab')


class BagWriter(Writer):
    """A bag of raw CDR messages, to be ended with `finish`.

    ``truncated``: why the disk took no more, or ''. ``finished``: index and metadata are there.
    """

    STORAGE_PLUGINS = {StoragePlugin.MCAP: _Mcap}

    def __init__(self, path: Path) -> None:
        """Create the folder, which must not exist. Raises ``UserError`` if that fails."""
        super().__init__(path, version=VERSION, storage_plugin=StoragePlugin.MCAP)
        self.truncated, self.finished = '', False
        try:
            self.open()
        except OSError as error:
            raise UserError(f'cannot write {path}: {error.strerror}; choose another folder'
                            ) from error

    def finish(self, error: Exception | None = None) -> None:
        """Write index and metadata; where they do not fit, give up the last messages for them.

        ``error``: with which `write` failed, if it did.
        """
        storage = self.storage
        assert isinstance(storage, _Mcap)
        if isinstance(error, OSError):
            self.truncated = error.strerror or str(error)
        for attempt in range(bool(self.truncated), len(storage.held) + 2):
            try:
                if attempt:
                    storage.truncate(min(attempt - 1, 1))
                    self.counts.update(storage.channel_stats)
                    self.min_timestamp = storage.message_start_time
                    self.max_timestamp = storage.message_end_time
                self.storage = storage
                self.close()
                self.finished = True
                return
            except OSError as error:
                self.truncated = self.truncated or error.strerror or str(error)


class BagThread:
    """Writes in a thread of its own, so that a slow disk never keeps anybody waiting.

    ``on_end`` is called from that thread once an ``error`` ends it, mostly because the disk takes
    no more. ``dropped`` counts by topic what found the queue full; ``bytes`` what was written.
    """

    def __init__(self, bag: BagWriter, on_end: Callable[[], None],
                 queue_bytes: int = QUEUE_BYTES) -> None:
        self.bag, self.bytes = bag, 0
        self.dropped: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.error: Exception | None = None
        self._on_end, self._limit = on_end, queue_bytes
        self._connections: dict[str, Connection] = {}
        self._waiting, self._closed = 0, False
        self._lock = threading.Lock()  # of the bytes
        self._thread = ThreadPoolExecutor(1, 'bag')

    def add_topic(self, name: str, kind: str, profiles: list[Qos]) -> None:
        """Begin a topic of type 'pkg/msg/Type'; its messages come after this."""
        def begin() -> None:
            self._connections[name] = self.bag.add_connection(
                name, kind, typestore=message_types(), offered_qos_profiles=profiles)
        self._thread.submit(self._run, begin, 0)

    def add(self, topic: str, stamp: int, data: bytes) -> None:
        """Take a message received at ``stamp`` [ns]; never waits.

        One that arrived together with what closed the bag is not kept.
        """
        if self._closed:
            return

        def write() -> None:
            self.bag.write(self._connections[topic], stamp, data)
            self.written[topic] += 1
            self.bytes += len(data)
        with self._lock:
            if self._waiting + len(data) > self._limit:
                self.dropped[topic] += self.error is None
                return
            self._waiting += len(data)
        self._thread.submit(self._run, write, len(data))

    def close(self) -> None:
        """Write what waits, and finish the bag."""
        self._closed = True
        self._thread.shutdown()
        self.bag.finish(self.error)

    def _run(self, task: Callable[[], None], size: int) -> None:
        try:
            if self.error is None:
                task()
        except Exception as error:  # noqa: BLE001 - the recorder raises it
            self.error = error
            self._on_end()
        with self._lock:
            self._waiting -= size


class Recorder(Node):
    """Subscribes to each of ``topics`` once somebody publishes it, as reliably as it is offered.

    Of several in one entry the first one that is published. ``on_end`` is called after
    ``seconds`` (0: never) and when the disk is full. ``instruction``: kept as the task, in place
    of what is told meanwhile. ``published``: types by topic, as last seen. Raises ``UserError``
    where the bag cannot be made.
    """

    def __init__(self, out: Path, topics: Sequence[Sequence[str]], seconds: float,
                 names: RobotNames, on_end: Callable[[], None] = end,
                 instruction: str = '') -> None:
        bag = BagWriter(out)
        super().__init__('recorder', use_global_arguments=False)
        told = names.topic(INSTRUCTION[1:])
        self._out = out
        self._topics = [alternatives for alternatives in topics
                        if not (instruction and told in alternatives)]
        self.published: dict[str, str] = {}
        self._subscribed: dict[str, tuple[Any, bool, bool]] = {}
        self._refused: set[str] = set()
        self._ticks = 0
        if names != RobotNames():
            bag.set_custom_data(robot_names.KEY, names.to_text())
        self.writer = BagThread(bag, on_end)
        self.started = time.monotonic()
        mark = names.topic(EPISODE_MARK[1:])
        if any(mark in alternatives for alternatives in topics):
            # Not first discovered: who marks an episode from a terminal is soon gone.
            self._subscribe(mark, robot_names.TYPES[EPISODE_MARK[1:]][0], [(True, False)])
        if instruction:
            self.writer.add_topic(told, robot_names.TYPES[INSTRUCTION[1:]][0],
                                  [bag_qos(True, True)])
            self.writer.add(told, time.time_ns(), serialize_message(String(data=instruction)))
        self.create_timer(DISCOVERY_PERIOD, self._discover, clock=STEADY)
        self.create_timer(PROGRESS_PERIOD, self._show_progress, clock=STEADY)
        if seconds:
            self.create_timer(seconds, on_end, clock=STEADY)

    def destroy_node(self) -> None:
        """Finish the bag before the node leaves."""
        self.writer.close()
        super().destroy_node()

    def _discover(self) -> None:
        for alternatives in self._topics:
            for topic in alternatives:
                if topic not in self._refused and (
                        publishers := self.get_publishers_info_by_topic(topic)):
                    self._subscribe(topic, publishers[0].topic_type, qos.offered(publishers))
                    break

    def _subscribe(self, topic: str, kind: str, offered: Sequence[tuple[bool, bool]]) -> None:
        """Subscribe to a topic of a type; ``offered``: whether reliable, whether latched."""
        reliable, latched = (all(column) for column in zip(*offered))
        before = self._subscribed.get(topic)
        if before is not None:
            # A later publisher that offers less would not be heard.
            if reliable >= before[1] and latched >= before[2]:
                return
            self.destroy_subscription(before[0])
            reliable, latched = reliable and before[1], latched and before[2]
        try:
            message, _ = message_type(kind), message_types().fielddefs[kind]
        except KeyError:
            self._refused.add(topic)
            self.get_logger().error(f'{topic} is not recorded: its type {kind} is not known here')
            return
        if before is None:
            self.writer.add_topic(topic, kind, [
                bag_qos(*offer) for offer in sorted(set(offered))])

        def add(data: bytes) -> None:
            self.writer.add(topic, time.time_ns(), data)
        self._subscribed[topic] = (self.create_subscription(
            message, topic, add, qos.profile(IMAGES_DEPTH if kind in IMAGES else DEPTH, reliable,
                                             latched), raw=True), reliable, latched)

    def _show_progress(self) -> None:
        self._ticks += 1
        self.published = {topic: kinds[0] for topic, kinds in self.get_topic_names_and_types()}
        terminal = sys.stderr.isatty()
        if terminal or self._ticks % PROGRESS_EVERY == 0:
            print(('\r\033[K' if terminal else '') + f'{self._out}: {self.progress()}',
                  file=sys.stderr,
                  end='' if terminal else '\n', flush=True)

    def progress(self) -> str:
        """Return how far it got, in one line."""
        writer = self.writer
        dropped = sum(writer.dropped.values())
        return (f'{time.monotonic() - self.started:.0f} s, '
                f'{sum(writer.written.values())} messages on {len(self._subscribed)} topics, '
                f'{writer.bytes / 1e6:.1f} MB'
                + (f', {dropped} dropped: the disk is too slow' if dropped else ''))

    def trouble(self) -> str:
        """Return why a bag that is closed is not whole, '' where it is."""
        bag, error = self.writer.bag, self.writer.error
        if error is not None and not isinstance(error, OSError):
            return f'{self._out}: {type(error).__name__}: {error}'
        if not bag.truncated:
            return ''
        what = (f'its first {sum(bag.counts.values())} messages are kept and can be read'
                if bag.finished else 'not even an index could be written')
        return f'{self._out}: {bag.truncated}; recording stopped, {what}'


def wanted(names: RobotNames) -> list[list[str]]:
    """Return the topics of a bag under a robot's names, each with what may stand in for it."""
    return [list(found) for found in dict.fromkeys(
        tuple(names.candidates(name)) for name in names.recorded)]


def silence(names: RobotNames, topics: Sequence[Sequence[str]], heard: Mapping[str, int],
            published: Mapping[str, str]) -> list[str]:
    """Return lines about topics that were never heard, first about those a dataset needs."""
    def is_there(*of: str) -> bool:
        return any(heard.get(topic) for name in of for topic in names.candidates(name))

    every = robot_names.COMMANDS  # the gate has one of them
    spare = {names.topic(name) for name in every if is_there(*every)}
    silent = [alternatives[0] for alternatives in topics if alternatives[0] not in spare
              and not any(heard.get(topic) for topic in alternatives)]
    lines = []
    if topics == wanted(names):
        others = {topic: kind for topic, kind in published.items() if not heard.get(topic)}
        for needed in (*((name,) for name in (*names.images, 'joint_states')), ('ee_pose', 'tf'),
                       ('instruction', 'sim/episode'), names.commands):
            if not is_there(*needed):
                near = [robot_names.remedy(name, names, others) for name in needed
                        if robot_names.nearest(name, names, others)]
                kind = robot_names.types_of(needed[0])[0]
                told = near[0] if near else f'nobody publishes {kind}'
                mute = ' or '.join(dict.fromkeys(map(names.topic, needed)))
                lines.append(f'warning: nothing on {mute}, which dtvla data from-bag needs: '
                             f'{told}')
    unheard = [f'{topic} (published, but nothing came)' if topic in published else topic
               for topic in silent]
    return [*lines, *([f'never heard: {", ".join(unheard)}'] if unheard else [])]


def record(out: Path, topics: Sequence[str] = (), seconds: float = 0.0,
           names: RobotNames = RobotNames()) -> int:
    """Record until Ctrl-C, SIGTERM or ``seconds``; return the exit code. Raises ``UserError``.

    ``topics``: none: everything the package defines, under the robot's ``names``.
    """
    listened = [[topic] for topic in topics] or wanted(names)
    if out.exists():
        raise UserError(f'{out} exists already; choose another --out')
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder(out, listened, seconds, names))
        return made[0]
    code = run(factory, [])
    if not made:
        return code
    writer = made[0].writer
    print('\r\033[K' if sys.stderr.isatty() else '', end='', file=sys.stderr)
    if writer.error is not None and not isinstance(writer.error, OSError):
        raise writer.error
    for topic in sorted(writer.written):
        lost = writer.dropped[topic]
        print(f'{topic:24} {writer.written[topic]:8}' + (f'  {lost} dropped' if lost else ''))
    for line in silence(names, listened, writer.written, made[0].published):
        print(line)
    if trouble := made[0].trouble():
        print(f'error: {trouble}', file=sys.stderr)
        return DISK_FULL
    print(f'{out}: {made[0].progress()}')
    return code
