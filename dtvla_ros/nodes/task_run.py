"""One task from its instruction to its end, judged by what policy and gate say.

Pure state machine: no ROS, no threads of its own, the clock passed in. ``now`` is
``time.monotonic()``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dtvla_ros.policy.instructions import shown
from dtvla_ros.safety import gate as gates

ANSWER = 5.0  # longest wait for policy and gate to be there, and for an answer [s]
ASK_AGAIN = 1.0  # between repetitions of an instruction that is not answered [s]
SILENT = 3.0  # age at which a state is no longer believed [s]
STOPPING = 3.0  # longest wait for the gate to say that it has stopped [s]
STARTING = 1.0  # ... that it has started, after it refused to [s]
LISTED = 20  # tasks told of many
STILL = ('STOP', 'FAULT')  # states of the gate
OF_THE_POLICY = (gates.THINKING, gates.IDLE, gates.DONE)  # reasons of the gate to hold
REMEDIES = {'FAULT': '; dtvla stop --clear', 'STOP': '; dtvla topic call /start'}


class Outcome(enum.IntEnum):
    """How a task ended; the numbers are those of dtvla_interfaces/action/RunTask."""

    DONE = 1
    REFUSED = 2
    STOPPED = 3
    TIMED_OUT = 4
    CANCELED = 5
    PREEMPTED = 6


Ending = tuple[Outcome, str]
"""An outcome and its reason."""


@dataclass(frozen=True, slots=True)
class Said:
    """State that policy or gate told last, its values, and when [s]."""

    state: str = ''
    values: Mapping[str, str] = field(default_factory=dict)
    at: float = -math.inf

    @property
    def reason(self) -> str:
        """Why it is in its state."""
        return self.values.get('reason', '')

    def text(self, who: str) -> str:
        """Return who is in which state, and why."""
        return f'{who} {self.state}' + (f': {self.reason}' if self.reason else '')


class TaskRun:
    """A task that somebody waits for; `judge` it often.

    ``limit``: seconds from ``now`` on after which the arm is stopped; 0: none. ``taken``: the
    policy has taken the instruction. ``stopping``: the gate is to be stopped, then the task ends.
    """

    def __init__(self, instruction: str, limit: float, now: float) -> None:
        self.instruction = instruction.strip()
        self.taken, self.stopping = False, False
        self._ends_at = now + limit if limit else math.inf
        self._ready_by = now + ANSWER
        self._limit = limit
        self._said_at, self._answer_by = -math.inf, math.inf
        self._before = dict[str, str]()  # of the policy, when it was first told
        self._given_up = ''
        self._started = False  # the gate has been seen to move the arm, or to be about to
        self._not_started: tuple[float, str] | None = None
        self._ending: Ending = Outcome.CANCELED, ''  # once the gate has stopped
        self._stops_since = math.inf

    @property
    def told(self) -> bool:
        """Whether the policy is being told the instruction, or has been."""
        return self._answer_by < math.inf

    @property
    def busy(self) -> bool:
        """Whether the policy's answer or the gate's stop is waited for: no time for another."""
        return self.stopping or (self.told and not self.taken)

    def cancel(self, why: str = 'canceled') -> None:
        """Give the task up; an arm that may move is stopped first."""
        self._given_up = self._given_up or why

    def asks(self, now: float) -> bool:
        """Whether the policy is to be told the instruction now, for the first time or again."""
        return self.told and not self.taken and now - self._said_at >= ASK_AGAIN

    def said(self, now: float) -> None:
        """Note that the policy is told the instruction."""
        self._said_at = now

    def wants_start(self, gate: Said) -> bool:
        """Whether the gate has the task but is not started."""
        return (self.taken and not (self._started or self._not_started or self.stopping)
                and gate.state == 'STOP')

    def start_answered(self, now: float, refused: str) -> None:
        """Take the gate's answer to an order to start; '' where it obeys."""
        self._not_started = now, refused

    def judge(self, now: float, policy: Said, gate: Said, tasks: Sequence[str] = ()
              ) -> Ending | None:
        """Return how the task has ended, None while it goes on.

        ``tasks``: what the policy takes, for a refusal.
        """
        if self.stopping:
            return self._stop(now, gate)
        if (ending := self._follow(now, policy, gate) if self.taken else
                self._ask(now, policy, gate, tasks)):
            return ending
        timed_out = now > self._ends_at
        if not (self._given_up or timed_out):
            return None
        why = (Outcome.CANCELED, self._given_up) if self._given_up else (
            Outcome.TIMED_OUT, f'not done within {self._limit:g} s')
        if not self.taken:
            # What has been said may be taken yet, and is then stopped.
            return None if self.told else why
        return self._begin_stop(now, why)

    def state(self, policy: Said, gate: Said) -> str:
        """Return what keeps the arm still, else what the policy does."""
        if gate.state in STILL or (gate.state == 'HOLD' and gate.reason not in OF_THE_POLICY):
            return gate.text('gate') + REMEDIES.get(gate.state, '')
        return policy.text('policy')

    def _ask(self, now: float, policy: Said, gate: Said, tasks: Sequence[str]) -> Ending | None:
        """Tell the policy when it and the gate are ready; return why that leads to nothing."""
        values = policy.values

        def new(counter: str) -> bool:
            return values.get(counter) != self._before.get(counter)
        if self.told:
            if new('refusals') and values.get('rejected_instruction') == shown(self.instruction):
                return Outcome.REFUSED, values.get('rejected', '') + _offer(tasks)
            if new('task') and values.get('instruction') == self.instruction:
                self.taken = True
                return None
            if now > self._answer_by:
                return Outcome.STOPPED, f'the policy did not answer within {ANSWER:g} s'
        if broken := self._broken(now, policy, gate):
            # Both may just have been started, or be loading.
            return (Outcome.STOPPED, broken) if (
                now > self._ready_by or 'FAULT' in (policy.state, gate.state)) else None
        if policy.state in gates.NOT_READY:
            if policy.state == 'LOADING':
                self._ready_by = now + ANSWER
            return (Outcome.STOPPED, policy.text('policy')) if now > self._ready_by else None
        if not self.told and not self._given_up:
            self._before, self._answer_by = dict(values), now + ANSWER
        return None

    def _follow(self, now: float, policy: Said, gate: Said) -> Ending | None:
        """Return how the task that the policy has taken ended."""
        told = policy.values.get('instruction', '')
        if policy.state not in gates.NOT_READY and told not in ('', self.instruction):
            return Outcome.PREEMPTED, f'the policy was told "{shown(told)}"'
        if policy.state == 'DONE':
            return Outcome.DONE, policy.reason
        if broken := self._broken(now, policy, gate):
            return self._begin_stop(now, (Outcome.STOPPED, broken))
        if not told or policy.state in gates.ENDED:
            return self._begin_stop(now, (Outcome.STOPPED, policy.text('policy')))
        if gate.state not in STILL:
            self._started = True
        elif self._started:
            return Outcome.STOPPED, gate.text('gate')
        elif self._not_started and self._not_started[1] and (
                now - self._not_started[0] > STARTING):
            return Outcome.STOPPED, f'gate not started: {self._not_started[1]}'
        return None

    def _broken(self, now: float, policy: Said, gate: Said) -> str:
        """Return which of the two is in FAULT or gone."""
        for who, said in (('gate', gate), ('policy', policy)):
            if said.state == 'FAULT' and now - said.at <= SILENT:
                return said.text(who) + REMEDIES['FAULT']
            if now - said.at > SILENT:
                return f'nothing is heard of the {who}'
        return ''

    def _begin_stop(self, now: float, why: Ending) -> Ending | None:
        """Have the gate stopped before the task ends; return how it has ended: not yet."""
        self.stopping, self._ending, self._stops_since = True, why, now
        return None

    def _stop(self, now: float, gate: Said) -> Ending | None:
        outcome, reason = self._ending
        if gate.state in STILL and gate.at > self._stops_since:
            return outcome, reason
        if now - self._stops_since > STOPPING:
            return outcome, (f'{reason}; the gate has not said that it stopped: '
                             'use the stop of the arm itself')
        return None


def _offer(tasks: Sequence[str]) -> str:
    """Return what the policy takes, to follow a refusal."""
    more = f' and {len(tasks) - LISTED} more' if len(tasks) > LISTED else ''
    return f'; it takes: {", ".join(tasks[:LISTED])}{more}' if tasks else ''
