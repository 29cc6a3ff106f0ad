"""Detects a gripper that is stuck or absent."""

from __future__ import annotations

from dtvla_ros.actions import osc

MOVED = 0.002  # change of the opening that counts as motion [m]
WIDE = 0.95  # share of the widest opening seen above which a gripper is open


class GripperMonitor:
    """Compares the commanded gripper with its measured opening on the steady clock.

    A closing gripper that moved and then stalls holds something. One that has not moved
    ``timeout`` seconds after the command, though it was not at its end, is stuck; one whose
    commands nobody receives for as long is absent. ``timeout`` 0 watches nothing.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._command = self._widest = 0.0
        self._commanded_at: float | None = None
        self._unheard_since: float | None = None
        self._opening_then: float | None = None
        self._opening: float | None = None

    def measure(self, opening: float) -> None:
        """Take the opening between the fingers [m]."""
        self._opening = opening
        self._widest = max(self._widest, opening)

    def command(self, channel: float, steady: float) -> None:
        """Take the command in force at ``steady`` [s]: -1 open, +1 closed, 0 none yet."""
        if channel != self._command:
            self._command = channel
            self._commanded_at, self._opening_then = steady, self._opening

    def listeners(self, count: int, steady: float) -> None:
        """Take how many subscribers the gripper's commands have at ``steady`` [s]."""
        if count or not self._command:
            self._unheard_since = None
        elif self._unheard_since is None:
            self._unheard_since = steady

    def reset(self) -> None:
        """Give the gripper a new chance."""
        self._commanded_at = self._unheard_since = None

    def fault(self, steady: float) -> str | None:
        """Return what is wrong with the gripper, or None."""
        if not self._timeout:
            return None
        if self._unheard_since is not None and steady - self._unheard_since > self._timeout:
            return 'nobody receives the gripper commands'
        then, now = self._opening_then, self._opening
        if self._commanded_at is None or then is None or now is None:
            return None
        if abs(now - then) <= MOVED:
            if steady - self._commanded_at <= self._timeout:
                return None
            wide = now >= WIDE * self._widest
            if self._command == osc.GRIPPER_CLOSED and wide and self._widest > MOVED:
                return f'the gripper does not close: {now:.3f} m open'
            if self._command == osc.GRIPPER_OPEN and not wide:
                return f'the gripper does not open: {now:.3f} m open'
        self._commanded_at = None
        return None
