"""The process that alone talks to the arm: chunks in, limited commands out, stops on doubt."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from dtvla_ros.actions.queue import ChunkQueue
from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import (
    Bool,
    DiagnosticStatus,
    JointState,
    JointTrajectory,
    PoseStamped,
    String,
    Trigger,
)
from dtvla_ros.nodes import wire
from dtvla_ros.nodes.parameters import declare
from dtvla_ros.nodes.sinks import PRESETS, PoseSink, make_sink
from dtvla_ros.safety.gate import (
    HEARTBEAT,
    JOINTS,
    POSE,
    Command,
    Gate,
    GateConfig,
    GateState,
)
from dtvla_ros.safety.limits import PROFILES, Limiter, Limits
from dtvla_ros.safety.watchdog import Watchdog

STATE_PERIOD = 0.5
LEVELS = {
    GateState.RUN: DiagnosticStatus.OK,
    GateState.HOLD: DiagnosticStatus.OK,
    GateState.STOP: DiagnosticStatus.WARN,
    GateState.FAULT: DiagnosticStatus.ERROR,
}


class CommandGate(ros.Node):
    """Plays chunks at the control rate.

    In lock-step the tick is the simulator's: each new ``ee_pose`` asks for one command, and
    nothing is sent while the policy is alive and thinking, so that simulated time waits for it.
    A steady timer goes on beside it, to keep commanding stillness when the policy is dead.
    """

    def __init__(self) -> None:
        super().__init__('command_gate')
        self._period = 1.0 / declare(self, 'rate', 20.0, 'control rate [Hz]', low=1.0)
        self._lockstep = declare(self, 'lockstep', False, 'tick with ee_pose, not with the clock')
        preset = declare(self, 'preset', 'sim_osc', 'kind of arm', choices=PRESETS)
        base_frame = declare(self, 'base_frame', 'base', 'frame of poses and twists')
        self._gate = Gate(self._config(), self._queue(), Limiter(self._limits(), self._period),
                          self._watchdog())
        self._sink = make_sink(self, preset, base_frame, self._period)
        self._pending: float | None = None
        self._last: Command | None = None
        self._drops = 0
        self._told = ('', '')

        self._state = self.create_publisher(DiagnosticStatus, 'gate_state', wire.LATCHED)
        sensor = ros.qos_profile_sensor_data
        self.create_subscription(JointTrajectory, 'vla/action_chunk', self._on_chunk, wire.LATEST)
        self.create_subscription(DiagnosticStatus, 'vla/state', self._on_heartbeat, wire.LATCHED)
        self.create_subscription(JointState, 'joint_states', self._on_joints, sensor)
        self.create_subscription(PoseStamped, 'ee_pose', self._on_pose, sensor)
        self.create_subscription(Bool, 'estop', self._on_estop, wire.LATCHED)
        self.create_subscription(String, 'gate_command', self._on_command, wire.LATEST)
        for name in ('start', 'stop', 'clear_fault'):
            self.create_service(Trigger, name, self._service(name))
        steady = ros.Clock(clock_type=ros.ClockType.STEADY_TIME)
        self.create_timer(self._period, self._on_timer, clock=steady)
        self.create_timer(STATE_PERIOD, self._tell, clock=steady)
        self.create_timer(1.0, self._look_for_rivals, clock=steady)
        self._tell()

    def _config(self) -> GateConfig:
        return GateConfig(
            period=self._period,
            thinking_deadline=declare(
                self, 'thinking_deadline_s', 10.0, 'longest wait for a chunk before STOP', low=0),
            heartbeat_stop=declare(
                self, 'heartbeat_stop_s', 0.0,
                'age of the policy heartbeat at which HOLD becomes STOP', low=0),
            contract_breaks=declare(
                self, 'contract_breaks', 5, 'rows in a row beyond +-1 before FAULT', low=1),
            auto_start=declare(
                self, 'auto_start', False, 'move without the start service, after each new task'))

    def _queue(self) -> ChunkQueue:
        return ChunkQueue(
            max_latency=declare(
                self, 'max_latency_s', 0.5, 'a chunk older than its length and this is dropped',
                low=0),
            blend_steps=declare(
                self, 'blend_steps', 0, 'rows over which a new chunk is faded in', low=0))

    def _limits(self) -> Limits:
        profile = PROFILES[declare(
            self, 'profile', 'default', 'limits', choices=tuple(PROFILES))]
        chosen: dict[str, Any] = {}
        for field in dataclasses.fields(Limits):
            default = getattr(profile, field.name)
            value = declare(self, field.name, list(default) if isinstance(default, tuple)
                            else default, 'limit; see dtvla_ros.safety.limits.Limits')
            chosen[field.name] = tuple(value) if isinstance(default, tuple) else value
        return Limits(**chosen)

    def _watchdog(self) -> Watchdog:
        heartbeat = declare(self, 'heartbeat_timeout_s', 0.1, 'silence of vla/state', low=0.05)
        joints = declare(self, 'joints_timeout_s', 0.1, 'silence of joint_states; 0: never', low=0)
        pose = declare(self, 'pose_timeout_s', 0.1, 'silence of ee_pose; 0: never', low=0)
        # A simulator in lock-step is silent while the policy thinks.
        measured = {} if self._lockstep else {JOINTS: joints, POSE: pose}
        return Watchdog({HEARTBEAT: heartbeat, **measured}, own_period=self._period)

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def _on_chunk(self, message: JointTrajectory) -> None:
        now = self._now()
        if self._lockstep and self._pending is not None:
            now = max(now, self._pending)
        dropped = self._gate.on_chunk(wire.chunk_from(message, self._period), now)
        if dropped:
            self._drops += 1
            self.get_logger().info(f'chunk dropped: {dropped}', throttle_duration_sec=1.0)
        if self._lockstep:
            self._play_pending()
        self._tell_changes()

    def _on_heartbeat(self, message: DiagnosticStatus) -> None:
        values = wire.status_values(message)
        self._gate.on_heartbeat(time.monotonic(), message.message, values.get('reason', ''),
                                values.get('task', ''))

    def _on_joints(self, message: JointState) -> None:
        self._gate.on_joints(message.position, wire.seconds(message.header.stamp),
                             time.monotonic())

    def _on_pose(self, message: PoseStamped) -> None:
        stamp = wire.seconds(message.header.stamp)
        position, quaternion = wire.pose_arrays(message.pose)
        if not (np.isfinite(position).all() and np.isfinite(quaternion).all()):
            return
        self._gate.on_pose(position, stamp, time.monotonic())
        if isinstance(self._sink, PoseSink):
            self._sink.measure(position, quaternion)
        if self._lockstep:
            self._pending = stamp
            if self._last is not None and self._answered():
                self._send(self._last)  # asked again: the answer was lost
            self._play_pending()

    def _on_estop(self, message: Bool) -> None:
        self._gate.on_estop(message.data)
        if message.data and not self._lockstep:
            self._on_timer()
        self._tell_changes()

    def _on_command(self, message: String) -> None:
        if message.data not in ('start', 'stop', 'clear_fault'):
            self.get_logger().warning(f'gate_command "{message.data[:40]}" is not one of start, '
                                      'stop, clear_fault')
            return
        self._obey(message.data)

    def _service(self, name: str):  # noqa: ANN202
        def answer(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            refused = self._obey(name)
            response.success = refused is None
            response.message = refused or f'{self._gate.state.value}: {self._gate.reason}'
            return response
        return answer

    def _obey(self, name: str) -> str | None:
        refused = None
        if name == 'start':
            refused = self._gate.start()
        elif name == 'stop':
            self._gate.stop('asked to stop')
        else:
            refused = self._gate.clear_fault()
        self._tell_changes()
        return refused

    def _play_pending(self) -> None:
        """Answer the simulator's tick if there is a row for it; stay silent otherwise."""
        if self._pending is not None and not self._answered():
            command = self._gate.tick(self._pending, time.monotonic())
            if command.played:
                self._send(command)
        self._tell_changes()

    def _answered(self) -> bool:
        return (self._last is not None and self._last.played
                and self._last.stamp == self._pending)

    def _on_timer(self) -> None:
        if not self._lockstep:
            self._send(self._gate.tick(self._now(), time.monotonic()))
        elif self._pending is not None and not self._answered():
            command = self._gate.tick(self._pending, time.monotonic())
            # Stillness is paced by this timer: simulated time must not race while stopped.
            if not command.waiting:
                self._send(command)
        self._tell_changes()

    def _send(self, command: Command) -> None:
        self._last = command
        self._sink.send(command.action, command.stamp)

    def _look_for_rivals(self) -> None:
        if self.count_publishers(self._sink.topic) > 1:
            self._gate.fault(f'another node publishes {self._sink.topic}')
            self._tell_changes()

    def _tell_changes(self) -> None:
        # Thinking alternates with running at every chunk; it shows in the periodic report.
        state, reason = self._gate.state, self._gate.reason
        calm = state in (GateState.RUN, GateState.HOLD)
        now = (state.value if not calm else 'calm', reason.split(' is ')[0] if not calm else '')
        if now != self._told:
            self._told = now
            if not calm:
                self.get_logger().warning(f'{state.value}: {reason}')
            self._tell()

    def _tell(self) -> None:
        state = self._gate.state
        self._state.publish(wire.status_message(
            self.get_fully_qualified_name(), state.value,
            {'reason': self._gate.reason, 'remaining': self._gate.remaining(),
             'played': self._gate.played, 'dropped': self._drops},
            LEVELS[state]))


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return ros.run(CommandGate, args)


if __name__ == '__main__':
    raise SystemExit(main())
