"""Time, duration and the three ROS clocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import IntEnum
from functools import total_ordering
from typing import Any

from .types import message_class

_NS = 10 ** 9


class ClockType(IntEnum):
    """What a clock follows."""

    ROS_TIME = 1
    SYSTEM_TIME = 2
    STEADY_TIME = 3


@total_ordering
class Duration:
    """A span of time with nanosecond resolution."""

    __slots__ = ('_ns',)

    def __init__(self, *, seconds: float = 0, nanoseconds: int = 0) -> None:
        """Add both parts."""
        self._ns = int(seconds * _NS) + int(nanoseconds)

    @property
    def nanoseconds(self) -> int:
        """Return the span [ns]."""
        return self._ns

    def to_msg(self) -> Any:
        """Return builtin_interfaces/msg/Duration."""
        return message_class('builtin_interfaces/msg/Duration')(
            sec=self._ns // _NS, nanosec=self._ns % _NS)

    @classmethod
    def from_msg(cls, message: Any) -> Duration:
        """Read builtin_interfaces/msg/Duration."""
        return cls(nanoseconds=message.sec * _NS + message.nanosec)

    def __eq__(self, other: object) -> bool:
        """Compare spans."""
        return self._ns == other._ns if isinstance(other, Duration) else NotImplemented

    def __lt__(self, other: Duration) -> bool:
        """Compare spans."""
        return self._ns < other._ns

    def __hash__(self) -> int:
        """Hash the span."""
        return hash(self._ns)

    def __repr__(self) -> str:
        """Show the span [ns]."""
        return f'Duration(nanoseconds={self._ns})'


@total_ordering
class Time:
    """A point in time of one clock."""

    __slots__ = ('_ns', 'clock_type')

    def __init__(self, *, seconds: float = 0, nanoseconds: int = 0,
                 clock_type: ClockType = ClockType.SYSTEM_TIME) -> None:
        """Add both parts; raise ValueError for a negative time."""
        self._ns = int(seconds * _NS) + int(nanoseconds)
        if self._ns < 0:
            raise ValueError('a time must not be negative')
        self.clock_type = clock_type

    @property
    def nanoseconds(self) -> int:
        """Return the time [ns] since the clock's epoch."""
        return self._ns

    def seconds_nanoseconds(self) -> tuple[int, int]:
        """Return whole seconds and the rest [ns]."""
        return divmod(self._ns, _NS)

    def to_msg(self) -> Any:
        """Return builtin_interfaces/msg/Time."""
        return message_class('builtin_interfaces/msg/Time')(
            sec=self._ns // _NS, nanosec=self._ns % _NS)

    @classmethod
    def from_msg(cls, message: Any, clock_type: ClockType = ClockType.ROS_TIME) -> Time:
        """Read builtin_interfaces/msg/Time."""
        return cls(nanoseconds=message.sec * _NS + message.nanosec, clock_type=clock_type)

    def __add__(self, other: Duration) -> Time:
        """Return a later time."""
        return Time(nanoseconds=self._ns + other.nanoseconds, clock_type=self.clock_type)

    def __sub__(self, other: Time | Duration) -> Any:
        """Return the duration since another time, or an earlier time."""
        if isinstance(other, Time):
            self._same_clock(other)
            return Duration(nanoseconds=self._ns - other._ns)
        return Time(nanoseconds=self._ns - other.nanoseconds, clock_type=self.clock_type)

    def _same_clock(self, other: Time) -> None:
        if self.clock_type != other.clock_type:
            raise TypeError(f'cannot compare {self.clock_type.name} with {other.clock_type.name}')

    def __eq__(self, other: object) -> bool:
        """Compare times of the same clock."""
        if not isinstance(other, Time):
            return NotImplemented
        self._same_clock(other)
        return self._ns == other._ns

    def __lt__(self, other: Time) -> bool:
        """Compare times of the same clock."""
        self._same_clock(other)
        return self._ns < other._ns

    def __hash__(self) -> int:
        """Hash the point in time."""
        return hash(self._ns)

    def __repr__(self) -> str:
        """Show the time [ns] and its clock."""
        return f'Time(nanoseconds={self._ns}, clock_type={self.clock_type.name})'


class Clock:
    """A steady or system clock; ``ROSClock`` follows /clock as well."""

    def __init__(self, *, clock_type: ClockType = ClockType.SYSTEM_TIME) -> None:
        """Make a clock of one type."""
        self.clock_type = clock_type
        self._read: Callable[[], int] = (
            time.monotonic_ns if clock_type == ClockType.STEADY_TIME else time.time_ns)

    def nanoseconds(self) -> int:
        """Return now [ns]."""
        return self._read()

    def now(self) -> Time:
        """Return the present time."""
        return Time(nanoseconds=self.nanoseconds(), clock_type=self.clock_type)


class ROSClock(Clock):
    """System time, or the time on /clock while ``use_sim_time`` is set."""

    def __init__(self) -> None:
        """Start on system time."""
        super().__init__(clock_type=ClockType.ROS_TIME)
        self._lock = threading.Lock()
        self._override: int | None = None

    @property
    def ros_time_is_active(self) -> bool:
        """Return whether the time comes from /clock."""
        return self._override is not None

    def nanoseconds(self) -> int:
        """Return now [ns]; 0 until the first /clock message when following it."""
        override = self._override
        return self._read() if override is None else override

    def set_override(self, nanoseconds: int | None) -> None:
        """Follow a given time, or the system again when None."""
        with self._lock:
            self._override = nanoseconds
