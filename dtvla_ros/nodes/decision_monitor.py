"""State of the policy node, judged once per heartbeat, and when its task must stop.

Pure state machine: no ROS, no threads of its own, the clock passed in. ``now`` is
``time.monotonic()``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dtvla_ros.safety.watchdog import Watchdog

GATE = 'gate_state'
COMPLETE = 'the policy says that the task is complete'
INPUT_LOST = 5.0  # without usable inputs, after which holding becomes stopping [s]

DecisionState = enum.Enum(
    'DecisionState', ('UNCONFIGURED', 'LOADING', 'INACTIVE', 'IDLE', 'THINKING', 'ACTING',
                      'HOLDING', 'DONE', 'STOPPED', 'FAULT'))
"""What the policy node is doing; its ``state`` topic has the name."""
WAITING = {DecisionState.UNCONFIGURED: 'not configured',
           DecisionState.LOADING: "the policy's weights are being read",
           DecisionState.INACTIVE: 'not activated'}
"""States of a node that is not active yet, and why it is in them."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What a tick is judged by.

    ``waiting``: one of `WAITING`, None for an active node. ``busy_since``: when the running
    inference began, None without one. ``trouble``: why the arm should hold, None with good
    inputs. ``missing``: what an observation lacks, '' when complete. ``has_chunk``: the last
    decision's chunk was published.
    """

    waiting: DecisionState | None = None
    busy_since: float | None = None
    trouble: str | None = None
    missing: str = ''
    has_chunk: bool = False


class DecisionMonitor:
    """Follows a task from its instruction to its end.

    ``note`` explains a state that is not an error, ``refusal`` why a transition was refused.
    ``stopped`` is the reason why the task ended, '' while it goes on; ``done``: the policy says
    that it is complete; ``question``: what a person is asked meanwhile. A new task begins again.
    ``status``: the state judged last and its reason. ``period`` [s]: how often `tick` is called.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self.status = next(iter(WAITING.items()))
        self.note = self.refusal = self.stopped = self.question = ''
        self.estop = self.has_task = self.done = False
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
        return self.has_task and not (self.estop or self.stopped or self.done)

    def begin_task(self) -> None:
        """Start over with a new instruction."""
        self.has_task, self.done = True, False
        self.note = self.stopped = ''
        self._lost_since = None

    def on_gate(self, now: float) -> None:
        """Take a sign of life of the command gate."""
        self._gate.feed(GATE, now)
        self._gate_heard = True

    def tick(self, now: float, readings: Readings) -> tuple[DecisionState, str]:
        """Judge the present; may stop the task."""
        self.status = self._judge(now, readings)
        return self.status

    def _judge(self, now: float, readings: Readings) -> tuple[DecisionState, str]:
        waiting, busy = readings.waiting, readings.busy_since is not None
        if self.estop:
            return DecisionState.FAULT, 'e-stop'
        if waiting is not None:
            note = '' if waiting is DecisionState.UNCONFIGURED else self.note
            return waiting, self.refusal or note or WAITING[waiting]
        if self.has_task and not (self.stopped or self.done):
            self.stopped = self._why_stop(now, readings)
        if self.stopped:
            return DecisionState.STOPPED, self.stopped
        if self.done:
            return DecisionState.DONE, COMPLETE
        if not self.has_task:
            return DecisionState.IDLE, self.note or 'no instruction'
        if self.question:
            return DecisionState.HOLDING, f'asks: {self.question}'
        if readings.trouble:
            return DecisionState.HOLDING, readings.trouble
        if readings.missing and not busy:
            return DecisionState.THINKING, f'waiting for {readings.missing}'
        thinks = busy or not readings.has_chunk
        return DecisionState.THINKING if thinks else DecisionState.ACTING, self.note

    def _why_stop(self, now: float, readings: Readings) -> str:
        """Return why the task must end now, '' if it need not."""
        if self._gate_heard and self._gate.late(now):
            return 'command_gate is silent'
        if readings.busy_since is not None and now - readings.busy_since > self._deadline:
            return f'no decision within {self._deadline:g} s'
        if self.question or not readings.trouble:  # a person may take their time
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = now
        elif now - self._lost_since > INPUT_LOST:
            return f'{readings.trouble} for {INPUT_LOST:g} s'
        return ''
