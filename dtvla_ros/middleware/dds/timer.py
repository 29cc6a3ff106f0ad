"""Timers, with rcl's rules for missed periods and clock jumps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .clock import Clock, ClockType, ROSClock

_NS = 10 ** 9


class Timer:
    """Calls back every ``timer_period_ns`` of its clock while somebody spins the node."""

    def __init__(self, period_ns: int, callback: Callable[[], Any], clock: Clock,
                 wake: Callable[[], None], autostart: bool = True) -> None:
        """Start now; the first call is one period away."""
        if period_ns < 0:
            raise ValueError(f'timer period must not be negative, got {period_ns} ns')
        self.timer_period_ns = period_ns
        self.callback = callback
        self.clock = clock
        self._wake = wake
        self._canceled = not autostart
        self._simulated = self._is_simulated()
        self._last = clock.nanoseconds()
        self._next = self._last + period_ns

    def _is_simulated(self) -> bool:
        return isinstance(self.clock, ROSClock) and self.clock.ros_time_is_active

    def cancel(self) -> None:
        """Stop calling back."""
        self._canceled = True

    def reset(self) -> None:
        """Start again: the next call is one period from now."""
        self._last = self.clock.nanoseconds()
        self._next = self._last + self.timer_period_ns
        self._canceled = False
        self._wake()

    def is_canceled(self) -> bool:
        """Return whether it was cancelled."""
        return self._canceled

    def is_ready(self) -> bool:
        """Return whether a call is due."""
        return not self._canceled and self.remaining_ns() <= 0

    def time_since_last_call(self) -> int:
        """Return the age of the last call [ns]."""
        return self.clock.nanoseconds() - self._last

    def time_until_next_call(self) -> int | None:
        """Return the time left [ns], None if cancelled."""
        return None if self._canceled else self.remaining_ns()

    def remaining_ns(self) -> int:
        """Return the time left [ns] on its own clock, after allowing for a clock jump."""
        now = self.clock.nanoseconds()
        if self._is_simulated() != self._simulated or now < self._last:
            self._simulated = self._is_simulated()
            self._last = now
            self._next = now + self.timer_period_ns
        return self._next - now

    def wall_timeout_ns(self) -> int | None:
        """Return how long a wait may last for its sake, None when /clock will wake it."""
        if self._canceled or (self.clock.clock_type == ClockType.ROS_TIME
                              and self._is_simulated()):
            return None
        return max(0, self.remaining_ns())

    def call(self) -> None:
        """Call back and plan the next call; periods that were missed are skipped."""
        now = self.clock.nanoseconds()
        self._last = now
        self._next += self.timer_period_ns
        if self._next < now and self.timer_period_ns:
            missed = 1 + (now - self._next - 1) // self.timer_period_ns
            self._next += missed * self.timer_period_ns
        elif self._next < now:
            self._next = now
        self.callback()
