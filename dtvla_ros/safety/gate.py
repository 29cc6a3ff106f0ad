"""State machine of the command gate: RUN, HOLD, STOP or FAULT, and why.

Pure state machine: no ROS, no threads of its own, both clocks passed in. ``now`` is the time of
the control tick on the clock that stamps observations [s]; ``steady`` is ``time.monotonic()``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions import osc
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.actions.continuity import ContinuityMeter
from dtvla_ros.actions.queue import ChunkQueue
from dtvla_ros.conventions import CHANNELS
from dtvla_ros.safety.gripper import GripperMonitor
from dtvla_ros.safety.limits import Limiter
from dtvla_ros.safety.watchdog import Watchdog

HEARTBEAT, JOINTS, POSE = 'policy heartbeat', 'joint states', 'end-effector pose'
THINKING = 'thinking'
IDLE = 'policy is idle'
PAUSED = 'paused'
NOT_READY = ('UNCONFIGURED', 'LOADING', 'INACTIVE')  # of the policy, before its first task
ENDED = ('STOPPED', 'FAULT', *NOT_READY)
MAX_ROWS = 256
# Beyond float noise of de-normalised codes, a value past +-1 breaks the action contract.
CONTRACT_MARGIN = 1.05


class GateState(str, enum.Enum):
    """RUN plays rows; HOLD is stillness that ends by itself, STOP and FAULT are not."""

    RUN = 'RUN'
    HOLD = 'HOLD'
    STOP = 'STOP'
    FAULT = 'FAULT'


@dataclass(frozen=True, slots=True)
class GateConfig:
    """Time-outs and limits of the gate.

    ``period``: control period [s]. ``ticks_per_row``: control ticks that one row of a chunk
    lasts. ``thinking_deadline``: longest wait for a chunk before STOP [s]. ``heartbeat_stop``:
    age of the policy's heartbeat at which HOLD becomes STOP [s]; at most the watchdog's own
    time-out means STOP at once. ``bad_chunks``: non-finite chunks in a row before STOP.
    ``contract_breaks``: rows in a row beyond +-1 before FAULT. ``clock_jump``: step of the tick
    clock that voids every chunk [s]. ``clock_stall``: longest standstill of that clock, in time
    that really passed, before HOLD [s]; 0: it may stand. ``clock_domain``: distance of a
    measurement's stamp from that clock beyond which it is another clock's [s]; 0: any.
    ``auto_start``: begin, and begin again with each new task, without `Gate.start`.
    """

    period: float = 0.05
    ticks_per_row: int = 1
    thinking_deadline: float = 10.0
    heartbeat_stop: float = 0.0
    bad_chunks: int = 2
    contract_breaks: int = 5
    clock_jump: float = 0.5
    clock_stall: float = 0.0
    clock_domain: float = 0.0
    auto_start: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One tick's outcome.

    ``action`` [7]: normalised, within limits; zero motion and the last gripper command unless
    ``state`` is RUN or a HOLD is still braking. ``played``: a row was used up in this tick.
    ``first_tick``: the tick is the first of its row.
    """

    stamp: float
    action: NDArray[np.float64]
    state: GateState
    reason: str
    played: bool
    first_tick: bool = True

    @property
    def waiting(self) -> bool:
        """Whether the arm is still only because there is nothing to play yet."""
        return self.state is GateState.HOLD and self.reason in (THINKING, IDLE)


class Gate:
    """Decides, once per control tick, which command the arm gets."""

    def __init__(
        self, config: GateConfig, queue: ChunkQueue, limiter: Limiter, watchdog: Watchdog,
        gripper: GripperMonitor | None = None,
    ) -> None:
        self._config = config
        self._queue = queue
        self.limiter = limiter
        self._watchdog = watchdog
        self._monitor = gripper or GripperMonitor(timeout=0.0)
        self.continuity = ContinuityMeter()
        self._position: NDArray[np.float64] | None = None
        self._stamps: dict[str, float] = {}
        self._foreign: dict[str, float] = {}
        self._gripper = 0.0
        self._estop = False
        self._task: str | None = None
        self._policy_state = 'IDLE'
        self._policy_reason = ''
        self._tick: float | None = None
        self._ticked_at = -math.inf
        self._paused = False
        self._arm_unable = ''
        self._empty_since: float | None = None
        self._bad_chunks = 0
        self._contract_breaks = 0
        self.state = GateState.HOLD if config.auto_start else GateState.STOP
        self.reason = IDLE if config.auto_start else 'not started'

    def start(self, steady: float) -> str | None:
        """Leave STOP; return why not, or None."""
        if self.state is GateState.FAULT:
            return f'fault: {self.reason}; clear it first'
        if self.state is not GateState.STOP:
            return 'already started'
        late = self._watchdog.late(steady)
        if late:
            return self._why_late(late[0])
        self._begin()
        return None

    def pause(self, paused: bool) -> None:
        """Hold, the task unfinished, until this is taken back; void every chunk."""
        self._paused = paused
        if self.state in (GateState.RUN, GateState.HOLD):
            self._enter(GateState.HOLD, PAUSED if paused else THINKING)

    def on_arm(self, unable: str) -> None:
        """Take why the arm's controller does not follow commands; empty when it does."""
        self._arm_unable = unable

    def on_gripper(self, opening: float) -> None:
        """Take the measured opening between the fingers [m]."""
        self._monitor.measure(opening)

    def on_gripper_listeners(self, count: int, steady: float) -> None:
        """Take how many subscribers the gripper's commands have."""
        self._monitor.listeners(count, steady)

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
    ) -> None:
        """Take the policy's sign of life, its own opinion of its state and its task counter."""
        if state in NOT_READY and self._task is None:
            return  # reading weights may stall that process, and nothing can move yet
        self._watchdog.feed(HEARTBEAT, steady)
        self._policy_state, self._policy_reason = state, reason
        new_task = task != self._task and self._task is not None
        self._task = task
        if (new_task and state not in ENDED and self._config.auto_start
                and self.state is GateState.STOP):
            self._begin()

    def on_joints(self, positions: ArrayLike, stamp: float, steady: float) -> None:
        """Take joint positions [rad]; non-finite or repeated samples do not count as life."""
        if np.isfinite(positions).all() and self._advances(JOINTS, stamp):
            self._watchdog.feed(JOINTS, steady)

    def on_pose(self, position: ArrayLike, stamp: float, steady: float) -> None:
        """Take the measured position [3] m; non-finite or repeated samples do not count."""
        if np.isfinite(position).all() and self._advances(POSE, stamp):
            self._position = np.asarray(position, np.float64)
            self._watchdog.feed(POSE, steady)

    def on_chunk(self, chunk: Chunk, now: float) -> str | None:
        """Take a chunk; return why it was dropped, or None."""
        config = self._config
        shape = chunk.values.shape
        wrong = None
        if tuple(chunk.channels) != CHANNELS:
            wrong = f'chunk channels are {tuple(chunk.channels)}, not {CHANNELS}'
        elif len(shape) != 2 or not 0 < shape[0] <= MAX_ROWS or shape[1] != len(CHANNELS):
            wrong = f'chunk shape is {shape}, not [1..{MAX_ROWS}, {len(CHANNELS)}]'
        elif not math.isclose(chunk.period, config.period * config.ticks_per_row, rel_tol=1e-3):
            wrong = (f'chunk period is {chunk.period} s, '
                     f'not {config.period * config.ticks_per_row:g} s')
        if wrong:
            self.stop(wrong)
            return wrong
        if not np.isfinite(chunk.values).all():
            self._bad_chunks += 1
            wrong = 'chunk has non-finite actions'
            if self._bad_chunks >= config.bad_chunks:
                self.stop(f'{wrong}, {self._bad_chunks} in a row')
            return wrong
        self._bad_chunks = 0
        if self.state in (GateState.STOP, GateState.FAULT):
            return f'{self.state.value}: {self.reason}'
        if chunk.stamp > now + config.clock_jump:
            return f'observed {chunk.stamp - now:.3f} s in the future'
        return self._queue.put(chunk)

    def tick(self, now: float, steady: float) -> Command:
        """Decide the command at ``now``; call once per control period."""
        config = self._config
        if self._tick is not None and not -1e-6 <= now - self._tick <= config.clock_jump:
            self._queue.flush(now)
            self._stamps.clear()
            self.limiter.reset()
            self._empty_since = None
        if now != self._tick:
            self._ticked_at = steady
        self._tick = now

        stuck = self._monitor.fault(steady)
        if stuck:
            self.stop(stuck)
        hold = self._reason_to_hold(steady)
        if self.state in (GateState.STOP, GateState.FAULT):
            self._queue.flush(now)
            return self._still(now)
        if hold:
            self._queue.flush(now)
            self._empty_since = None
            self._enter(GateState.HOLD, hold)
            return self._braking(now)

        before = self._queue.consumed
        row = self._queue.take(now)
        if row is None:
            return self._queue_empty(now, steady)
        self._empty_since = None
        command = self._play(row, now, first_tick=self._queue.consumed > before)
        if command.first_tick:
            self.continuity.add(command.action, self._queue.at_boundary)
        self._monitor.command(self._gripper, steady)
        return command

    def has_stop_condition(self, steady: float) -> bool:
        """Whether an arm in motion should not wait for its next tick to be stopped."""
        if self.state is not GateState.RUN:
            return False
        hold = self._reason_to_hold(steady)  # which may have ended the task
        return hold is not None or self.state is not GateState.RUN

    @property
    def played(self) -> int:
        """How many rows were played so far."""
        return self._queue.consumed

    def remaining(self) -> int:
        """Return how many rows are left to play."""
        return 0 if self._tick is None else self._queue.remaining(self._tick)

    def _reason_to_hold(self, steady: float) -> str | None:
        late = self._watchdog.late(steady)
        if HEARTBEAT in late and self._task is not None:
            age = self._watchdog.age(HEARTBEAT, steady)
            reason = f'{HEARTBEAT} is {age:.2f} s old'
            if age > self._config.heartbeat_stop and self.state is not GateState.STOP:
                self.stop(reason)
            return reason
        if self._task is None:
            return IDLE
        if late:
            return self._why_late(late[0])
        if self._policy_state in ENDED:
            if self.state is not GateState.FAULT:
                self.stop(f'policy says {self._policy_state}: {self._policy_reason}')
        elif self._policy_state == 'HOLDING':
            return f'policy holds: {self._policy_reason}'
        if self._arm_unable:
            return self._arm_unable
        if self._paused:
            return PAUSED
        stall = self._config.clock_stall
        if stall and steady - self._ticked_at > stall:
            return f'the clock has stood still for {steady - self._ticked_at:.2f} s'
        return None

    def _why_late(self, name: str) -> str:
        if name in self._foreign:
            return (f'{name} stamped {self._foreign[name]:.1f} s away from this clock: is '
                    'use_sim_time the same everywhere?')
        return f'{name} missing or older than {self._watchdog.timeouts[name]:g} s'

    def _queue_empty(self, now: float, steady: float) -> Command:
        if self._policy_state == 'IDLE':
            self._empty_since = None
            self._enter(GateState.HOLD, IDLE)
            return self._braking(now)
        if self._empty_since is None:
            self._empty_since = steady
        if steady - self._empty_since > self._config.thinking_deadline:
            self.stop(f'no chunk within {self._config.thinking_deadline:g} s')
            return self._still(now)
        self._enter(GateState.HOLD, THINKING)
        return self._braking(now)

    def _play(self, row: NDArray[np.float32], now: float, first_tick: bool) -> Command:
        config = self._config
        if first_tick:
            broken = float(np.abs(row).max()) > CONTRACT_MARGIN
            self._contract_breaks = self._contract_breaks + 1 if broken else 0
        if self._contract_breaks >= config.contract_breaks:
            self.fault(f'{self._contract_breaks} actions in a row beyond +-1')
            return self._still(now)
        clipped = np.clip(row.astype(np.float64), -1.0, 1.0)
        self._gripper = osc.gripper_command(float(clipped[6]), self._gripper)
        if self._position is not None:
            outside = self.limiter.outside(clipped, self._position)
            if outside:
                self._enter(GateState.HOLD, outside)
                return self._braking(now, played=True)
        self._enter(GateState.RUN, '')
        return Command(now, self._with_gripper(self.limiter.clamp(clipped)),
                       self.state, self.reason, played=True, first_tick=first_tick)

    def _braking(self, now: float, played: bool = False) -> Command:
        self.continuity.pause()
        motion = self.limiter.clamp(np.zeros(6))
        return Command(now, self._with_gripper(motion), self.state, self.reason, played)

    def _still(self, now: float) -> Command:
        self.continuity.pause()
        self.limiter.reset()
        return Command(now, self._with_gripper(np.zeros(6)), self.state, self.reason, False)

    def _with_gripper(self, motion: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        return np.append(np.asarray(motion, np.float64), self._gripper)  # [7]

    def _advances(self, name: str, stamp: float) -> bool:
        """Whether a sample is new and of this clock; a frozen driver repeats its stamps."""
        domain = self._config.clock_domain
        if domain and self._tick is not None and abs(stamp - self._tick) > domain:
            self._foreign[name] = stamp - self._tick
            return False
        self._foreign.pop(name, None)
        last = self._stamps.get(name)
        self._stamps[name] = stamp
        return last is None or stamp != last

    def _begin(self) -> None:
        self._empty_since = None
        self._monitor.reset()
        self._enter(GateState.HOLD, IDLE)

    def _enter(self, state: GateState, reason: str) -> None:
        if state in (GateState.STOP, GateState.FAULT) and self.state is not state:
            self.limiter.reset()
        self.state, self.reason = state, reason
