"""State machine of the command gate: RUN, HOLD, STOP or FAULT, and why.

Pure state machine: no ROS, no threads of its own, both clocks passed in. ``now`` is the time of
the control tick on the clock that stamps observations [s]; ``steady`` is ``time.monotonic()``.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk, ChunkQueue
from dtvla_ros.actions.continuity import ContinuityMeter
from dtvla_ros.actions.contract import ActionContract, other_space
from dtvla_ros.actions.joints import JointCommand
from dtvla_ros.conventions import (
    CHANNELS,
    CLOCK_DOMAIN,
    CONTROL_RATE,
    HEARTBEAT_TIMEOUT,
    NOT_STARTED,
    PERSON,
    POLICY,
    parameter,
)
from dtvla_ros.errors import UserError
from dtvla_ros.safety.gripper import GripperMonitor
from dtvla_ros.safety.limits import Limiter, Limits
from dtvla_ros.safety.takeover import Handover, Person
from dtvla_ros.safety.watchdog import Watchdog

HEARTBEAT, JOINTS, POSE = 'policy heartbeat', 'joint states', 'end-effector pose'
HUMAN = 'human_twist'
THINKING = 'thinking'
IDLE = 'policy is idle'
DONE = 'policy says that the task is done'
NO_STAMP = 'its stamp is 0: let its driver stamp what it publishes'
OTHER_CLOCK = 'stamped {:.1f} s away from this clock: is use_sim_time the same everywhere?'
NOT_PLACED = 'no end-effector pose yet'
PAUSED = 'paused'
TAKEN_OVER = 'taken over: no human_twist yet'
PERSON_DRIVES = 'a person drives'
OF_PERSON = (f': human_twist is more than {osc.METRES_PER_SECOND_PER_UNIT} m/s or '
             f'{osc.RADIANS_PER_SECOND_PER_UNIT} rad/s; scale it down where it is published')
HANDED_BACK = 'handed back, as it was before the person drove; start lets the policy begin'
SAME_SPACE = '; give policy and gate the same action_space, as one robot file does'
NOT_READY = ('UNCONFIGURED', 'LOADING', 'INACTIVE')  # of the policy, before its first task
ENDED = ('STOPPED', 'FAULT', *NOT_READY)
MAX_ROWS = 256
BAD_CHUNKS = 2  # non-finite ones in a row before STOP; twists of a person, too
CLOCK_JUMP = 0.5  # step of the tick clock that voids every chunk [s]
# Beyond float noise of de-normalised codes, a value past +-1 breaks the action contract.
CONTRACT_MARGIN = 1.05

WAITING = (THINKING, IDLE, DONE)  # reasons of a HOLD in which nothing is wrong

GateState = enum.Enum('GateState', ('RUN', 'HOLD', 'STOP', 'FAULT'))
"""RUN plays rows; HOLD is stillness that ends by itself, STOP and FAULT are not."""


@dataclass(frozen=True, slots=True)
class GateConfig:
    """Parameters of the gate. Raises UserError if its rate is no multiple of the chunks'."""

    rate: float = parameter(CONTROL_RATE, 'control rate [Hz]', low=1.0, high=200.0)
    chunk_rate: float = parameter(CONTROL_RATE, 'rows of a chunk per second [Hz]', low=1.0)
    lockstep: bool = parameter(False, 'tick with the pose, not the clock')
    heartbeat_timeout_s: float = parameter(HEARTBEAT_TIMEOUT, 'silence of vla/state', low=0.05)
    human_timeout_s: float = parameter(
        0.2, 'silence of human_twist while a person drives', low=0.05)
    handover_acceleration: float = parameter(
        0.4, 'largest acceleration from one driver to the other, policy and person [m/s^2]',
        low=1e-3)
    joints_timeout_s: float = parameter(0.1, 'silence of joint_states; 0: never', low=0)
    pose_timeout_s: float = parameter(0.1, "silence of the end effector's pose; 0: never", low=0)
    clock_stall_s: float = parameter(0.15, 'standstill of the clock before HOLD; 0: never', low=0)
    clock_domain_s: float = parameter(
        CLOCK_DOMAIN, "distance of a measurement's stamp from this clock that shows another one; "
        '0: never', low=0)
    thinking_deadline_s: float = parameter(10.0, 'longest wait for a chunk before STOP', low=0)
    heartbeat_stop_s: float = parameter(
        0.0, 'age of the policy heartbeat at which HOLD becomes STOP', low=0)
    contract_breaks: int = parameter(5, 'rows in a row beyond +-1 before FAULT', low=1)
    auto_start: bool = parameter(False, 'move without the start service, after each new task')
    max_latency_s: float = parameter(
        0.5, 'a chunk older than its length and this is dropped', low=0)
    blend_steps: int = parameter(0, 'rows over which a new chunk is faded in', low=0)
    gripper_timeout_s: float = parameter(
        1.6, 'time without effect after which a gripper is stuck or absent; 0: not watched',
        low=0)

    def __post_init__(self) -> None:
        if not math.isclose(self.ticks_per_row * self.chunk_rate, self.rate, rel_tol=1e-3):
            raise UserError(f'parameter rate = {self.rate:g} Hz is no multiple of chunk_rate = '
                            f'{self.chunk_rate:g} Hz')

    @property
    def ticks_per_row(self) -> int:
        """Control ticks that one row of a chunk lasts."""
        return round(self.rate / self.chunk_rate)


@dataclass(frozen=True, slots=True)
class Command:
    """One tick's outcome; ``action`` [7] is normalised and within limits.

    Zero motion and the last grip unless ``state`` is RUN or a HOLD still brakes. ``played``: a row
    was used up in this tick; ``first_tick``: it is the first of its row. ``joints``: of an arm
    that is commanded by its joints (`JointGate`), once they were measured.
    """

    stamp: float
    action: NDArray[np.float64]
    state: GateState
    reason: str
    played: bool
    first_tick: bool = True
    joints: JointCommand | None = None

    @property
    def waiting(self) -> bool:
        """Whether the arm is still only because there is nothing to play yet."""
        return self.state is GateState.HOLD and self.reason in WAITING


class Gate:
    """Decides, once per control tick, which command the arm gets.

    ``contract``: what the rows of chunks are, offsets or poses of the end effector. ``driver``:
    whose commands these are, POLICY or PERSON.
    """

    def __init__(self, config: GateConfig, limits: Limits,
                 contract: ActionContract = ActionContract()) -> None:
        self._config, period = config, 1.0 / config.rate
        self._contract = contract
        if contract.is_pose and not (config.pose_timeout_s or config.lockstep):
            raise UserError(f'parameter pose_timeout_s = 0: with {contract.controller} the arm '
                            'goes from where it is measured to where it shall be; give the '
                            'silence after which it holds')
        timeouts = {HEARTBEAT: config.heartbeat_timeout_s, HUMAN: config.human_timeout_s}
        self._clock_stall = self._clock_domain = 0.0
        if not config.lockstep:  # else silent, and its clock stands, while the policy thinks
            timeouts |= {JOINTS: config.joints_timeout_s, POSE: config.pose_timeout_s}
            self._clock_stall, self._clock_domain = config.clock_stall_s, config.clock_domain_s
        self._watchdog = Watchdog(timeouts, own_period=period)
        self.queue = ChunkQueue(max_latency=config.max_latency_s, blend_steps=config.blend_steps,
                                ticks_per_row=config.ticks_per_row, fade=contract.fade)
        self.limiter = Limiter(limits, period)
        self.gripper = GripperMonitor(config.gripper_timeout_s)
        self.arm_unable = ''  # why the arm's controller does not follow commands
        self._continuity = ContinuityMeter()
        self._position: NDArray[np.float64] | None = None
        self._quaternion = osc.HOME.as_quat()  # of the same measurement
        self._row: NDArray[Any] | None = None  # the present one of poses
        self._action = np.zeros(len(CHANNELS))  # ... and what it asks for
        self._stamps: dict[str, float] = {}
        self._refused: dict[str, str] = {}  # why what comes of an input does not count
        self._grip = 0.0  # the last command
        self.driver, self._person = POLICY, Person()
        self._handover = Handover(config.handover_acceleration, period)
        self._went_on = False  # whether the policy's task had not ended when a person took over
        self._human_ticks = 0
        self._estop = self._paused = False
        self._task: str | None = None
        self._policy_state, self._policy_reason = 'IDLE', ''
        self._policy_space = ''  # of its chunks; '': it does not say
        self._tick: float | None = None
        self._clock, self._clock_went_at = math.nan, -math.inf
        self._empty_since: float | None = None
        self._bad_chunks = self._bad_twists = self._contract_breaks = 0
        self.state = GateState.HOLD if config.auto_start else GateState.STOP
        self.reason = IDLE if config.auto_start else NOT_STARTED

    @property
    def ended(self) -> bool:
        """Whether the task is over: STOP or FAULT."""
        return self.state in (GateState.STOP, GateState.FAULT)

    def account(self) -> dict[str, object]:
        """Return the reason, who drives, rows left and played, and `ContinuityMeter`'s."""
        return {'reason': self.reason, 'driver': self.driver, 'played': self.queue.consumed,
                'remaining': 0 if self._tick is None else self.queue.remaining(self._tick),
                **self._continuity.summary(), 'handover_jump': self._handover.largest}

    def start(self, steady: float) -> str | None:
        """Leave STOP; return why not, or None."""
        if self.state is GateState.FAULT:
            return f'fault: {self.reason}; clear it first'
        if self.state is not GateState.STOP:
            return 'already started'
        if other := self._other_space():
            return other
        if late := self._late(steady):
            return self._why_late(late[0])
        self._begin()
        return None

    def take_over(self, steady: float) -> str | None:
        """Let a person drive in the policy's place, also out of STOP; return why not, or None."""
        if self.state is GateState.FAULT:
            return f'fault: {self.reason}; clear it first'
        if self.driver == PERSON:
            return f'{PERSON_DRIVES} already'
        if late := [name for name in self._late(steady) if name != HEARTBEAT]:
            return self._why_late(late[0])
        self._went_on = not self.ended
        self.driver, self._person = PERSON, Person()
        self._bad_twists = self._contract_breaks = self._human_ticks = 0
        self._handover.begin()
        self.gripper.reset()
        self._enter(GateState.HOLD, TAKEN_OVER)
        return None

    def hand_back(self) -> str | None:
        """Let the policy go on by what it sees from now on; return why not, or None.

        A task that had ended before the person drove stays ended.
        """
        if self.driver == POLICY:
            return 'the policy drives already'
        self.driver, self._empty_since, self._contract_breaks = POLICY, None, 0
        self._handover.begin()
        if self._went_on:
            self._enter(GateState.HOLD, PAUSED if self._paused else THINKING)
        else:
            self.stop(HANDED_BACK)
        return None

    def pause(self, paused: bool) -> None:
        """Hold, the task unfinished, until this is taken back; void every chunk."""
        self._paused = paused
        if not self.ended:
            self._enter(GateState.HOLD, PAUSED if paused else THINKING)

    def stop(self, reason: str) -> None:
        """End the task: still until `start`, or until a new task where ``auto_start`` is set."""
        if self.state is not GateState.FAULT:
            self._enter(GateState.STOP, reason)

    def fault(self, reason: str) -> None:
        """End the task and stay still until `clear_fault`."""
        self._enter(GateState.FAULT, reason)

    def clear_fault(self) -> str | None:
        """Turn FAULT into STOP; return why not, or None."""
        if self._estop:
            return 'the e-stop is still pressed'
        if self.state is GateState.FAULT:
            self._contract_breaks = 0
            self._enter(GateState.STOP, f'cleared: {self.reason}')
        return None

    def on_estop(self, pressed: bool) -> None:
        """Latch a fault while the e-stop is pressed and after it is released."""
        self._estop = pressed
        if pressed:
            self.fault('e-stop')

    def on_heartbeat(
        self, steady: float, state: str = 'ACTING', reason: str = '', task: str = '',
        space: str = '') -> None:
        """Take the policy's sign of life, its own opinion of its state and its task counter.

        ``space``: the action space of its chunks; another one than the contract's ends the task,
        '' says nothing.
        """
        self._policy_space = space
        if state in NOT_READY and self._task is None:
            return  # reading weights may stall that process, and nothing can move yet
        self._watchdog.feed(HEARTBEAT, steady)
        self._policy_state, self._policy_reason = state, reason
        new_task = task != self._task and self._task is not None
        self._task = task
        if (new_task and state not in ENDED and self._config.auto_start
                and self.state is GateState.STOP):
            self._begin()

    def on_human(self, twist: ArrayLike, stamp: float, steady: float) -> str | None:
        """Take the twist [6] of the person who drives; return why it was refused, or None.

        m/s and rad/s, base axes. Nothing counts, nor is refused, while the policy drives.
        """
        if self.driver == POLICY:
            return None
        if not self._of_this_clock(HUMAN, stamp):
            return self._refused[HUMAN]
        if not self._person.move(twist):
            self._bad_twists += 1
            wrong = f'{HUMAN} is not finite'
            if self._bad_twists >= BAD_CHUNKS:
                self.stop(f'{wrong}, {self._bad_twists} in a row')
            return wrong
        self._bad_twists = 0
        self._watchdog.feed(HUMAN, steady)
        return None

    def on_human_gripper(self, opening: float) -> None:
        """Take the gripper command of the person who drives, 0 closed to 1 open."""
        if self.driver == PERSON:
            self._person.grip(opening)

    def heard(self, name: str) -> bool:
        """Return whether anything of HEARTBEAT, JOINTS or POSE came, be it refused."""
        return name in self._refused or math.isfinite(self._watchdog.age(name, 0.0))

    def on_refused(self, name: str, why: str) -> None:
        """Take why a sample of JOINTS or POSE is no sign of life."""
        self._refused[name] = why

    def on_joints(self, positions: ArrayLike, stamp: float, steady: float) -> None:
        """Take positions of all the arm's joints [rad].

        Non-finite or repeated samples do not count as life.
        """
        if np.isfinite(positions).all() and self._advances(JOINTS, stamp):
            self._watchdog.feed(JOINTS, steady)

    def on_pose(self, position: ArrayLike, quaternion: ArrayLike, stamp: float,
                steady: float) -> None:
        """Take the measured position [3] m and quaternion [4] xyzw.

        Non-finite or repeated samples do not count.
        """
        finite = np.isfinite(position).all() and np.isfinite(quaternion).all()
        if finite and self._advances(POSE, stamp):
            self._position = np.asarray(position, np.float64)
            self._quaternion = np.asarray(quaternion, np.float64)
            self._watchdog.feed(POSE, steady)

    def on_chunk(self, chunk: Chunk, now: float) -> str | None:
        """Take a chunk; return why it was dropped, or None."""
        if self.driver == PERSON:
            return PERSON_DRIVES
        shape, period = chunk.values.shape, 1.0 / self._config.chunk_rate
        channels = self._contract.channels
        for right, wrong in (
                (tuple(chunk.channels) == channels,
                 f'chunk channels are {tuple(chunk.channels)}, not {channels}'),
                (len(shape) == 2 and 0 < shape[0] <= MAX_ROWS and shape[1] == len(channels),
                 f'chunk shape is {shape}, not [1..{MAX_ROWS}, {len(channels)}]'),
                (math.isclose(chunk.period, period, rel_tol=1e-3),
                 f'chunk period is {chunk.period} s, not {period:g} s')):
            if not right:
                self.stop(wrong)
                return wrong
        if not np.isfinite(chunk.values).all():
            self._bad_chunks += 1
            wrong = 'chunk has non-finite actions'
            if self._bad_chunks >= BAD_CHUNKS:
                self.stop(f'{wrong}, {self._bad_chunks} in a row')
            return wrong
        self._bad_chunks = 0
        if self.ended:
            return f'{self.state.name}: {self.reason}'
        if chunk.stamp > now + CLOCK_JUMP:
            return f'observed {chunk.stamp - now:.3f} s in the future'
        return self.queue.put(chunk)

    def tick(self, now: float, steady: float) -> Command:
        """Decide the command at ``now``; call once per control period."""
        if self._tick is not None and not -1e-6 <= now - self._tick <= CLOCK_JUMP:
            self.queue.flush(now)
            self._stamps.clear()
            self.limiter.reset()
            self._empty_since = None
        self._see_clock(now, steady)
        self._tick = now
        self._handover.tick(now)

        if stuck := self.gripper.fault(steady):
            self.stop(stuck)
        hold = self._reason_to_hold(steady)
        if hold or self.ended:
            self.queue.flush(now)
            self._empty_since = None
            if hold and not self.ended:
                self._enter(GateState.HOLD, hold)
            return self._stay(now)
        if self.driver == PERSON:
            self.queue.flush(now)
            return self._drive(now, steady)
        before = self.queue.consumed
        row = self.queue.take(now)
        if row is None:
            return self._queue_empty(now, steady)
        self._empty_since = None
        play = self._lead if self._contract.is_pose else self._play
        command = play(row, now, first_tick=self.queue.consumed > before)
        if command.first_tick:
            self._continuity.add(self._speed(command), self.queue.at_boundary)
        self.gripper.command(self._grip, steady)
        return command

    def _speed(self, command: Command) -> NDArray[np.float64]:
        """Return the velocity that a command asks for, whose jumps are watched."""
        return osc.velocity(command.action)[:3]

    def has_stop_condition(self, now: float, steady: float) -> bool:
        """Whether an arm in motion should not wait for its next tick to be stopped."""
        self._see_clock(now, steady)
        return self.state is GateState.RUN and (
            self._reason_to_hold(steady) is not None or self.ended)

    def _see_clock(self, now: float, steady: float) -> None:
        if now != self._clock:
            self._clock, self._clock_went_at = now, steady

    def _reason_to_hold(self, steady: float) -> str | None:
        late = self._late(steady)
        if self.driver == POLICY and self._task is None:
            return IDLE
        if HEARTBEAT in late:
            age = self._watchdog.age(HEARTBEAT, steady)
            reason = f'{HEARTBEAT} is {age:.2f} s old'
            if age > self._config.heartbeat_stop_s and self.state is not GateState.STOP:
                self.stop(reason)
            return reason
        if late:
            return self._why_late(late[0])
        if self.driver == PERSON:
            pass
        elif other := self._other_space():
            self.stop(other)
        elif self._policy_state in ENDED:
            self.stop(f'policy says {self._policy_state}: {self._policy_reason}')
        elif self._policy_state == 'HOLDING':
            return f'policy holds: {self._policy_reason}'
        elif self._policy_state == 'DONE':
            return DONE
        if self.arm_unable or self._paused:
            return self.arm_unable or PAUSED
        stood = steady - self._clock_went_at
        if self._clock_stall and stood > self._clock_stall:
            return f'the clock has stood still for {stood:.2f} s'
        return None

    def _other_space(self) -> str:
        """Return in what space the policy says its chunks are, '' where it is the contract's."""
        wanted = self._contract.controller
        other = other_space(wanted, self._policy_space or wanted)
        return other and f'of the policy {other}{SAME_SPACE}'

    def _late(self, steady: float) -> list[str]:
        """Return which inputs are late, latest first, of those that the present driver needs."""
        needless = {HUMAN} if self.driver == POLICY else {HEARTBEAT} if (
            self._person.twist is not None) else {HEARTBEAT, HUMAN}
        return [name for name in self._watchdog.late(steady) if name not in needless]

    def _why_late(self, name: str) -> str:
        late = f'{name} missing or older than {self._watchdog.timeouts[name]:g} s'
        return f'{late}: {self._refused[name]}' if name in self._refused else late

    def _queue_empty(self, now: float, steady: float) -> Command:
        idle = self._policy_state == 'IDLE'
        if idle or self._empty_since is None:
            self._empty_since = None if idle else steady
        elif steady - self._empty_since > self._config.thinking_deadline_s:
            self.stop(f'no chunk within {self._config.thinking_deadline_s:g} s')
            return self._stay(now)
        self._enter(GateState.HOLD, IDLE if idle else THINKING)
        return self._stay(now)

    def _drive(self, now: float, steady: float) -> Command:
        """Command what the person wants, as `_play` does what the policy wants."""
        self._continuity.pause()
        action = self._person.action()
        if action is None:
            self._enter(GateState.HOLD, TAKEN_OVER)
            return self._stay(now)
        first_tick = self._human_ticks % self._config.ticks_per_row == 0
        self._human_ticks += 1
        command = self._play(action, now, first_tick)
        self.gripper.command(self._grip, steady)
        return command

    def _lead(self, row: NDArray[Any], now: float, first_tick: bool) -> Command:
        """Play a row of poses: the offset to it from where the arm is when the row begins.

        A pose further away than an action reaches is approached as fast as one may; one whose
        place lies outside the workspace is not approached at all.
        """
        if self._position is None:
            self._enter(GateState.HOLD, NOT_PLACED)
            return self._stay(now, played=True)
        if outside := self.limiter.beyond(row[:3], self._position):
            self._enter(GateState.HOLD, outside)
            return self._stay(now, played=True)
        if row is not self._row:
            self._row = row
            away = osc.action_towards(self._position, self._quaternion, *osc.pose_of(row))
            for part in (slice(3), slice(3, 6)):  # the direction stays
                away[part] /= max(1.0, float(np.abs(away[part]).max()))
            self._action = np.append(away, row[6])
        return self._play(self._action, now, first_tick)

    def _play(self, row: NDArray[Any], now: float, first_tick: bool) -> Command:
        if first_tick:
            broken = float(np.abs(row).max()) > CONTRACT_MARGIN
            self._contract_breaks = self._contract_breaks + 1 if broken else 0
        if self._contract_breaks >= self._config.contract_breaks:
            self.fault(f'{self._contract_breaks} actions in a row beyond +-1' + (
                OF_PERSON if self.driver == PERSON else ''))
            return self._stay(now)
        clipped = np.clip(row.astype(np.float64), -1.0, 1.0)
        clipped[:6] = self._handover.ease(clipped[:6])
        self._grip = osc.gripper_command(float(clipped[6]), self._grip)
        outside = self._position is not None and self.limiter.outside(clipped, self._position)
        if outside:
            self._enter(GateState.HOLD, outside)
            return self._stay(now, played=True)
        self._enter(GateState.RUN, '')
        motion = self.limiter.clamp(clipped)
        self._handover.note(motion, eased=True)
        return Command(now, np.append(motion, self._grip), self.state, self.reason, True,
                       first_tick)

    def _stay(self, now: float, played: bool = False) -> Command:
        """Brake within the limits, or be still at once where the task has ended."""
        self._continuity.pause()
        eased = self.state is GateState.HOLD and self.reason in (TAKEN_OVER, *WAITING)
        rest = self._handover.ease(np.zeros(6)) if eased else np.zeros(6)
        motion = self.limiter.clamp(rest)
        self._handover.note(motion, eased)
        return Command(now, np.append(motion, self._grip), self.state, self.reason, played)

    def _advances(self, name: str, stamp: float) -> bool:
        """Whether a sample is new and of this clock; a frozen driver repeats its stamps."""
        if not self._of_this_clock(name, stamp):
            return False
        last, self._stamps[name] = self._stamps.get(name), stamp
        return stamp != last

    def _of_this_clock(self, name: str, stamp: float) -> bool:
        away = 0.0 if self._tick is None else stamp - self._tick
        if self._clock_domain and abs(away) > self._clock_domain:
            self._refused[name] = OTHER_CLOCK.format(away) if stamp else NO_STAMP
            return False
        self._refused.pop(name, None)
        return True

    def _begin(self) -> None:
        self._empty_since = None
        self.gripper.reset()
        self._enter(GateState.HOLD, IDLE)

    def _enter(self, state: GateState, reason: str) -> None:
        self.state, self.reason = state, reason
        if self.ended:
            self.driver = POLICY
            self.limiter.reset()
