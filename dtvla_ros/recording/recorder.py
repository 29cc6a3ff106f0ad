"""``dtvla record``: a node that writes every message of some topics into a bag, as it came."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rosbags.interfaces import Qos

from dtvla_ros.errors import UserError
from dtvla_ros.recording.bag import BagWriter, bag_qos, types
from dtvla_ros.ros import qos
from dtvla_ros.ros.conversions import message_type
from dtvla_ros.ros.run import STEADY, end, run

QUEUE_BYTES = 64 * 2**20  # waiting for the disk; what comes on top of it is dropped and counted
LOOK_PERIOD = 0.1  # between two looks for new publishers [s]
TELL_PERIOD = 1.0
TELL_EVERY = 10  # of these, where no terminal shows them
PICTURES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
PICTURES_DEPTH, DEPTH = 10, 1000
DISK_FULL = 3  # exit code


@dataclass(frozen=True, slots=True)
class _Topic:
    name: str
    kind: str
    qos: list[Qos]


class BagThread:
    """Writes in a thread of its own, so that a slow disk never keeps anybody waiting.

    ``on_end`` is called from that thread when it ends by ``error``, mostly because the disk takes
    no more; what comes after that is ignored. ``dropped`` counts by topic what found the queue
    full.
    """

    def __init__(self, bag: BagWriter, on_end: Callable[[], None],
                 queue_bytes: int = QUEUE_BYTES) -> None:
        self.bag = bag
        self.dropped: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.error: Exception | None = None
        self._on_end, self._limit = on_end, queue_bytes
        self._waiting: deque[_Topic | tuple[str, int, bytes]] = deque()
        self._bytes = 0
        self._open = True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name='bag', daemon=True)
        self._thread.start()

    def add_topic(self, name: str, kind: str, qos: list[Qos]) -> None:
        """Begin a topic; its messages come after this."""
        with self._changed:
            self._waiting.append(_Topic(name, kind, qos))
            self._changed.notify()

    def add(self, topic: str, stamp: int, data: bytes) -> None:
        """Take a message received at ``stamp`` [ns]; never waits."""
        with self._changed:
            if not self._open:
                return
            if self._bytes + len(data) > self._limit:
                self.dropped[topic] += 1
                return
            self._bytes += len(data)
            self._waiting.append((topic, stamp, data))
            self._changed.notify()

    def close(self) -> None:
        """Write what waits, and finish the bag."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._write_all()
        except Exception as error:  # noqa: BLE001 - the recorder raises it
            self.error = error
            with self._changed:
                self._open = False
                self._waiting.clear()
            self._on_end()
        finally:
            self.bag.finish()

    def _write_all(self) -> None:
        connections: dict[str, Any] = {}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or not self._open)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
            if isinstance(item, _Topic):
                connections[item.name] = self.bag.add_topic(item.name, item.kind, item.qos)
                continue
            topic, stamp, data = item
            self.bag.write(connections[topic], stamp, data)
            self.written[topic] += 1
            with self._changed:
                self._bytes -= len(data)


class Recorder(Node):
    """Subscribes to each of ``topics`` once somebody publishes it, as reliably as it is offered.

    Ends by itself after ``seconds`` (0: never) and when the disk is full.
    """

    def __init__(self, out: Path, topics: Sequence[str], seconds: float) -> None:
        super().__init__('recorder', use_global_arguments=False)
        self._out, self._topics = out, tuple(topics)
        self._subscribed: dict[str, tuple[Any, bool, bool]] = {}
        self._refused: set[str] = set()
        self._told = 0
        self.writer = BagThread(BagWriter(out), end)
        self.started = time.monotonic()
        self.create_timer(LOOK_PERIOD, self._look, clock=STEADY)
        self.create_timer(TELL_PERIOD, self._tell, clock=STEADY)
        if seconds:
            self.create_timer(seconds, end, clock=STEADY)

    def destroy_node(self) -> None:
        """Finish the bag before the node leaves."""
        self.writer.close()
        super().destroy_node()

    def _look(self) -> None:
        for topic in self._topics:
            publishers = self.get_publishers_info_by_topic(topic)
            if publishers and topic not in self._refused:
                self._follow(topic, publishers)

    def _follow(self, topic: str, publishers: Sequence[Any]) -> None:
        offers = qos.offered(publishers)
        reliable, latched = (all(column) for column in zip(*offers))
        before = self._subscribed.get(topic)
        if before is not None:
            # A later publisher that offers less would not be heard.
            if reliable >= before[1] and latched >= before[2]:
                return
            self.destroy_subscription(before[0])
            reliable, latched = reliable and before[1], latched and before[2]
        kind = publishers[0].topic_type
        try:
            cls = message_type(kind)
            if kind not in types().fielddefs:
                raise KeyError(kind)
        except KeyError:
            self._refused.add(topic)
            self.get_logger().error(f'{topic} is not recorded: its type {kind} is not known here')
            return
        if before is None:
            self.writer.add_topic(topic, kind, [bag_qos(*offer) for offer in sorted(set(offers))])
        def add(data: bytes) -> None:
            self.writer.add(topic, time.time_ns(), data)
        profile = qos.profile(PICTURES_DEPTH if kind in PICTURES else DEPTH, reliable, latched)
        self._subscribed[topic] = (
            self.create_subscription(cls, topic, add, profile, raw=True), reliable, latched)

    def _tell(self) -> None:
        self._told += 1
        terminal = sys.stderr.isatty()
        if terminal or self._told % TELL_EVERY == 0:
            print(('\r\033[K' if terminal else '') + self.progress(), file=sys.stderr,
                  end='' if terminal else '\n', flush=True)

    def progress(self) -> str:
        """Return how far it got, in one line."""
        writer = self.writer
        dropped = sum(writer.dropped.values())
        return (f'{self._out}: {time.monotonic() - self.started:.0f} s, '
                f'{sum(writer.written.values())} messages on {len(self._subscribed)} topics, '
                f'{writer.bag.bytes / 1e6:.1f} MB'
                + (f', {dropped} dropped: the disk is too slow' if dropped else ''))


def record(out: Path, topics: Sequence[str], seconds: float = 0.0) -> int:
    """Record until Ctrl-C, SIGTERM or ``seconds`` are over; return the exit code.

    Raises
    ------
    UserError
        If ``out`` exists or cannot be written.

    """
    if out.exists():
        raise UserError(f'{out} exists already; choose another --out')
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder(out, topics, seconds))
        return made[0]
    code = run(factory, [])
    if not made:
        return code
    writer, bag = made[0].writer, made[0].writer.bag
    print('\r\033[K' if sys.stderr.isatty() else '', end='', file=sys.stderr)
    if writer.error is not None and not isinstance(writer.error, OSError):
        raise writer.error
    for topic in sorted(writer.written):
        lost = writer.dropped[topic]
        print(f'{topic:24} {writer.written[topic]:8}' + (f'  {lost} dropped' if lost else ''))
    if bag.cut_short:
        what = (f'its first {sum(bag.counts.values())} messages are kept and can be read'
                if bag.finished else 'not even an index could be written')
        print(f'error: {out}: {bag.cut_short}; recording stopped, {what}', file=sys.stderr)
        return DISK_FULL
    print(made[0].progress())
    return code
