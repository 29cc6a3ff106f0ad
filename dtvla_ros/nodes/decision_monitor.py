"""State of the policy node, judged once per heartbeat, and when its task must stop.

Pure state machine: no ROS, no threads of its own, the clock passed in. ``now`` is
``time.monotonic()``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dtvla_ros.safety.watchdog import Watchdog

GATE = 'gate_state'
INPUT_LOST = 5.0
"""Seconds without usable inputs after which holding becomes stopping."""


class Phase(enum.Enum):
    """How far the node is in its life cycle."""

    UNCONFIGURED = 'not configured'
    LOADING = "the policy's weights are being read"
    INACTIVE = 'not activated'
    ACTIVE = ''


class DecisionState(str, enum.Enum):
    """What the policy node is doing, as published on its ``state`` topic."""

    UNCONFIGURED = 'UNCONFIGURED'
    LOADING = 'LOADING'
    INACTIVE = 'INACTIVE'
    IDLE = 'IDLE'
    THINKING = 'THINKING'
    ACTING = 'ACTING'
    HOLDING = 'HOLDING'
    STOPPED = 'STOPPED'
    FAULT = 'FAULT'


@dataclass(frozen=True, slots=True)
class Status:
    """A state and its reason."""

    state: DecisionState
    reason: str


@dataclass(frozen=True, slots=True)
class Readings:
    """What a tick is judged by.

    ``busy_since``: when the running inference began, None without one. ``trouble``: why the arm
    should hold, None with good inputs. ``missing``: what an observation lacks, '' when complete.
    ``has_chunk``: the last decision's chunk was published.
    """

    phase: Phase
    busy_since: float | None = None
    trouble: str | None = None
    missing: str = ''
    has_chunk: bool = False


class DecisionMonitor:
    """Follows a task from its instruction to its end.

    ``note`` explains a state that is not an error, ``refusal`` why a transition was refused.
    ``stopped`` is the reason why the task ended, '' while it goes on. ``period`` [s]: how often
    `tick` is called.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self.status = Status(DecisionState.UNCONFIGURED, Phase.UNCONFIGURED.value)
        self.note = self.refusal = self.stopped = ''
        self.estop = False
        self.has_task = False
        self._lost_since: float | None = None
        self.configure(deadline=0.0, gate_timeout=0.0)

    def configure(self, deadline: float, gate_timeout: float) -> None:
        """Set the longest decision and the gate's longest silence [s]; 0: not watched."""
        self._deadline = deadline
        self._gate = Watchdog({GATE: gate_timeout}, own_period=self._period)
        self._gate_heard = False

    @property
    def ready(self) -> bool:
        """Whether an active node may begin a decision."""
        return self.has_task and not self.estop and not self.stopped

    def begin_task(self) -> None:
        """Start over with a new instruction."""
        self.has_task = True
        self.note = self.stopped = ''
        self._lost_since = None

    def on_gate(self, now: float) -> None:
        """Take a sign of life of the command gate."""
        self._gate.feed(GATE, now)
        self._gate_heard = True

    def stop(self, reason: str) -> None:
        """End the task; a new one begins again."""
        self.stopped = reason

    def tick(self, now: float, readings: Readings) -> Status:
        """Judge the present; may stop the task."""
        self.status = self._judge(now, readings)
        return self.status

    def _judge(self, now: float, readings: Readings) -> Status:
        phase, busy = readings.phase, readings.busy_since
        if self.estop:
            return Status(DecisionState.FAULT, 'e-stop')
        if phase is not Phase.ACTIVE:
            note = '' if phase is Phase.UNCONFIGURED else self.note
            return Status(DecisionState[phase.name], self.refusal or note or phase.value)
        if not self.stopped and self.has_task:
            self.stopped = self._why_stop(now, readings)
        if self.stopped:
            return Status(DecisionState.STOPPED, self.stopped)
        if not self.has_task:
            return Status(DecisionState.IDLE, self.note or 'no instruction')
        if readings.trouble:
            return Status(DecisionState.HOLDING, readings.trouble)
        if busy is None and readings.missing:
            return Status(DecisionState.THINKING, f'waiting for {readings.missing}')
        if busy is not None or not readings.has_chunk:
            return Status(DecisionState.THINKING, self.note)
        return Status(DecisionState.ACTING, self.note)

    def _why_stop(self, now: float, readings: Readings) -> str:
        """Return why the task must end now, '' if it need not."""
        if self._gate_heard and self._gate.late(now):
            return 'command_gate is silent'
        if readings.busy_since is not None and now - readings.busy_since > self._deadline:
            return f'no decision within {self._deadline:g} s'
        if not readings.trouble:
            self._lost_since = None
            return ''
        if self._lost_since is None:
            self._lost_since = now
        if now - self._lost_since > INPUT_LOST:
            return f'{readings.trouble} for {INPUT_LOST:g} s'
        return ''
