"""rosbag2 bags in MCAP files that stay readable when the disk fills up."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, ReaderError, StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionMode
from rosbags.rosbag2.storage_mcap import McapWriter, PendingChunk
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from dtvla_ros.errors import UserError

# Every ROS 2 from Humble on reads it; in version 9 the profiles are spelt so that Humble does not.
VERSION: Literal[8] = 8
_FOREVER = QosTime(9223372036, 854775807)


@cache
def types() -> Typestore:
    """Return the message types a bag can hold."""
    return get_typestore(Stores.ROS2_JAZZY)


def bag_qos(reliable: bool, latched: bool, depth: int = 10) -> Qos:
    """Return a profile as ``ros2 bag play`` will offer the topic."""
    return Qos(
        QosHistory.KEEP_LAST, depth,
        QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _FOREVER, _FOREVER, QosLiveliness.AUTOMATIC, _FOREVER, False)


@dataclass(frozen=True, slots=True)
class _Held:
    """One chunk on the disk: where it ends, its messages by channel, their first and last time."""

    end: int
    counts: dict[int, int] = field(default_factory=dict)
    first: int = 2**63 - 1
    last: int = 0


class _Mcap(McapWriter):
    """Puts whole chunks on the disk or nothing, so that what is there can always be read."""

    def __init__(self, path: Path, compression: CompressionMode) -> None:
        super().__init__(path, compression)
        self.held = [_Held(self.bio.tell())]  # the file's head, then its chunks

    def close_chunk(self) -> None:
        chunk = self.chunk
        try:
            super().close_chunk()
            self.bio.flush()
        except OSError:
            self.chunk = _empty_chunk()
            raise
        self.held.append(_Held(
            self.bio.tell(), {channel: len(rows) for channel, rows in chunk.msgs.items()},
            chunk.message_start_time, chunk.message_end_time))

    def cut(self, chunks: int) -> None:
        """Drop what is not on the disk yet and the last ``chunks`` of what is."""
        del self.held[max(1, len(self.held) - chunks):]
        del self.chunks[len(self.held) - 1:]
        self.chunk = _empty_chunk()
        self.channel_stats = {
            channel: sum(held.counts.get(channel, 0) for held in self.held)
            for channel in self.channel_stats}
        self.message_start_time = min(held.first for held in self.held)
        self.message_end_time = max(held.last for held in self.held)
        # Closed below its buffer: what could not be written must not be written later.
        self.bio.raw.close()  # type: ignore[attr-defined]
        os.truncate(self.path, self.held[-1].end)
        self.bio = os.fdopen(os.open(self.path, os.O_WRONLY), 'wb')
        self.bio.seek(self.held[-1].end)


def _empty_chunk() -> PendingChunk:
    return PendingChunk(2**63 - 1, 0, BytesIO(), defaultdict(list))


class BagWriter(Writer):
    """A bag of raw CDR messages, to be ended with `finish`.

    ``bytes`` counts the message data. ``cut_short``: why the disk took no more, or ''.
    ``finished``: index and metadata are there.
    """

    STORAGE_PLUGINS = {StoragePlugin.MCAP: _Mcap}

    def __init__(self, path: Path) -> None:
        """Create the folder.

        Raises
        ------
        UserError
            If it exists already or cannot be created.

        """
        if path.exists():
            raise UserError(f'{path} exists already; choose another --out')
        super().__init__(path, version=VERSION, storage_plugin=StoragePlugin.MCAP)
        self.bytes = 0
        self.cut_short = ''
        self.finished = False
        try:
            self.open()
        except OSError as error:
            raise UserError(f'cannot write {path}: {error.strerror}; choose another --out'
                            ) from error

    def add_topic(self, topic: str, kind: str, qos: list[Qos]) -> Connection:
        """Begin a topic of type 'pkg/msg/Type'; its definition goes into the file."""
        return self.add_connection(topic, kind, typestore=types(), offered_qos_profiles=qos)

    def write(self, connection: Connection, timestamp: int, data: bytes | memoryview) -> None:
        """Add a message; raise OSError when the disk takes no more, after which only `finish`."""
        try:
            super().write(connection, timestamp, data)
        except OSError as error:
            self.cut_short = error.strerror or str(error)
            raise
        self.bytes += len(data)

    def finish(self) -> None:
        """Write index and metadata; where they do not fit, give up the last messages for them."""
        storage = self.storage
        if storage is None:
            return
        assert isinstance(storage, _Mcap)
        for attempt in range(bool(self.cut_short), len(storage.held) + 2):
            try:
                if attempt:
                    storage.cut(min(attempt - 1, 1))
                    self.counts.update(storage.channel_stats)
                    self.min_timestamp = storage.message_start_time
                    self.max_timestamp = storage.message_end_time
                self.storage = storage
                self.close()
                self.finished = True
                return
            except OSError as error:
                self.cut_short = self.cut_short or error.strerror or str(error)
        self.storage = None


@contextmanager
def open_bag(path: Path) -> Iterator[Reader]:
    """Open a bag's folder, or its .mcap or .db3 file alone.

    Raises
    ------
    UserError
        If it is none.

    """
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
    return types().deserialize_cdr(data, connection.msgtype)
