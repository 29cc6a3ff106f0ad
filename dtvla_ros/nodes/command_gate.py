"""The process that alone talks to the arm: chunks in, limited commands out, safe stops."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros import conventions as names
from dtvla_ros.conventions import relative
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.arm_status import ArmStatus
from dtvla_ros.nodes.command_adapters import make_adapter
from dtvla_ros.nodes.pose_source import PoseSource
from dtvla_ros.nodes.settings import (
    LIMITS,
    GateSettings,
    build_gate,
    declare_all,
    declare_limits,
    read_all,
    refuse_changes,
)
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.run import STEADY, run, wait_until_heard
from dtvla_ros.safety.gate import Command, GateState
from dtvla_ros.safety.limits import Limiter, Limits

STATE_PERIOD = 0.05  # the policy's own watchdog lives on gate_state
WATCH_PERIOD = 0.01  # a stop does not wait for the next tick
GRAPH_PERIOD = 0.25  # between two looks for competing publishers and gripper listeners [s]
SAME_TICK = 1e-3  # difference of two stamps of one lock-step tick [s]
STILL_TICKS = 4  # commands of stillness that make a stop
LEVELS = {
    GateState.RUN: DiagnosticStatus.OK,
    GateState.HOLD: DiagnosticStatus.OK,
    GateState.STOP: DiagnosticStatus.WARN,
    GateState.FAULT: DiagnosticStatus.ERROR,
}


class CommandGate(Node):
    """Plays chunks at the control rate.

    In lock-step the tick is the simulator's: each new pose asks for one command, and nothing is
    sent while the policy is alive and thinking, so that simulated time waits for it. A steady
    timer goes on beside it, to keep commanding stillness when the policy is dead.
    """

    def __init__(self) -> None:
        super().__init__('command_gate')
        settings = declare_all(self, GateSettings)
        self._period, self._lockstep = 1.0 / settings.rate, settings.lockstep
        self._fingers = settings.finger_joints
        self._gate = build_gate(settings, declare_limits(self, settings.profile))
        self._pose_source = PoseSource(self, self._on_pose)
        self._adapter = make_adapter(
            self, settings.preset, self.get_parameter('base_frame').value, self._period)
        self._pending: float | None = None  # stamp of the tick to be answered in lock-step
        self._early: JointTrajectory | None = None  # a chunk for a tick that has not come yet
        self._last: Command | None = None
        self._drops = 0
        self._reported = ('', '')
        self._silent = False
        self._new_limits = False
        refuse_changes(self, LIMITS, self._judge_limit)
        _take_priority(self, settings.priority)

        self._state = self.create_publisher(
            DiagnosticStatus, relative(names.GATE_STATE), qos.LATCHED)
        self.create_subscription(
            JointTrajectory, relative(names.ACTION_CHUNK), self._on_chunk, qos.LATEST)
        self.create_subscription(
            DiagnosticStatus, relative(names.VLA_STATE), self._on_heartbeat, qos.LATCHED)
        self.create_subscription(
            JointState, relative(names.JOINT_STATES), self._on_joints, qos_profile_sensor_data)
        self._pose_source.open()
        self._arm = ArmStatus(self, self._on_arm)
        qos.listen_to_anyone(self, Bool, relative(names.ESTOP), self._on_estop)
        orders = {'start': lambda _: self._gate.start(time.monotonic()),
                  'stop': lambda _: self._gate.stop('asked to stop'),
                  'clear_fault': lambda _: self._clear_fault(),
                  'pause': lambda request: self._gate.pause(request.data)}
        for name, order in orders.items():
            self.create_service(SetBool if name == 'pause' else Trigger, name,
                                functools.partial(self._on_order, order))
        self.create_timer(self._period, self._on_timer, clock=STEADY)
        if not self._lockstep:
            self.create_timer(WATCH_PERIOD, self._on_watch, clock=STEADY)
        self.create_timer(STATE_PERIOD, self._report, clock=STEADY)
        self.create_timer(GRAPH_PERIOD, self._watch_graph, clock=STEADY)
        self._report()

    def destroy_node(self) -> None:
        """Command stillness before leaving: a pose controller keeps its last target otherwise."""
        if not self._lockstep and self._last is not None:
            self._gate.stop('the gate is shut down')
            self._report()
            for _ in range(STILL_TICKS):
                self._send(self._gate.tick(self._now(), time.monotonic()))
                time.sleep(self._period)
            wait_until_heard(self._state)
        super().destroy_node()

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    def _on_chunk(self, message: JointTrajectory) -> None:
        now = self._now()
        if self._lockstep:
            stamp = conversions.seconds(message.header.stamp)
            if self._pending is None or stamp > self._pending + SAME_TICK:
                self._early = message  # topics are not ordered among each other
                return
            now = max(now, self._pending)
        dropped = self._gate.on_chunk(conversions.chunk_from(message, self._period), now)
        if dropped:
            self._drops += 1
            self.get_logger().info(f'chunk dropped: {dropped}', throttle_duration_sec=1.0)
        if self._lockstep:
            self._play_pending()
        self._stop_now()

    def _on_heartbeat(self, message: DiagnosticStatus) -> None:
        values = conversions.status_values(message)
        self._gate.on_heartbeat(time.monotonic(), message.message, values.get('reason', ''),
                                values.get('task', ''))
        self._on_watch()

    def _on_joints(self, message: JointState) -> None:
        self._gate.on_joints(message.position, conversions.seconds(message.header.stamp),
                             time.monotonic())
        positions = dict(zip(message.name, message.position))
        fingers = [abs(positions.get(name, np.nan)) for name in self._fingers]
        if fingers and np.isfinite(fingers).all():
            self._gate.on_gripper(sum(fingers))

    def _on_pose(self, position: NDArray[np.float64], quaternion: NDArray[np.float64],
                 stamp: float) -> None:
        if not (np.isfinite(position).all() and np.isfinite(quaternion).all()):
            return
        self._gate.on_pose(position, stamp, time.monotonic())
        self._adapter.measure(position, quaternion)
        if self._lockstep:
            self._pending = stamp
            if self._last is not None and self._answered():
                self._send(self._last)  # asked again: the answer was lost
            self._play_pending()
            early, self._early = self._early, None
            if early is not None:
                self._on_chunk(early)

    def _on_arm(self, unable: str) -> None:
        self._gate.on_arm(unable)
        self._on_watch()

    def _on_estop(self, message: Bool) -> None:
        self._gate.on_estop(message.data)
        self._stop_now()

    def _on_order(self, order: Callable[[Any], str | None], request: Any, response: Any) -> Any:
        refused = order(request)
        self._stop_now()
        response.success = refused is None
        response.message = refused or f'{self._gate.state.value}: {self._gate.reason}'
        return response

    def _clear_fault(self) -> str | None:
        if self._has_competition():
            return f'another node still publishes {self._adapter.topic}'
        refused = self._gate.clear_fault()
        self._silent = self._silent and refused is not None
        return refused

    def _play_pending(self) -> None:
        """Answer the simulator's tick if there is a row for it; stay silent otherwise."""
        if self._pending is not None and not self._answered():
            command = self._gate.tick(self._pending, time.monotonic())
            if command.played:
                self._send(command)
        self._report_changes()

    def _answered(self) -> bool:
        return (self._last is not None and self._last.played
                and self._last.stamp == self._pending)

    def _on_timer(self) -> None:
        if self._new_limits:
            self._new_limits = False
            self._gate.limiter = Limiter(read_all(self, Limits), self._period)
        if not self._lockstep:
            self._send(self._gate.tick(self._now(), time.monotonic()))
        elif self._pending is not None and not self._answered():
            command = self._gate.tick(self._pending, time.monotonic())
            # Stillness is paced by this timer: simulated time must not race while stopped.
            if not command.waiting:
                self._send(command)
        self._report_changes()

    def _stop_now(self) -> None:
        """Command stillness at once if the last event ended the task."""
        ended = self._gate.state in (GateState.STOP, GateState.FAULT)
        if ended and not self._lockstep and self._last is not None and self._last.played:
            self._on_timer()
        self._report_changes()

    def _on_watch(self) -> None:
        if not self._lockstep and self._gate.has_stop_condition(time.monotonic()):
            self._on_timer()

    def _send(self, command: Command) -> None:
        self._last = command
        if not self._silent:
            self._adapter.send(command.action, command.stamp, command.first_tick)

    def _has_competition(self) -> bool:
        return self.count_publishers(self._adapter.topic) > 1

    def _watch_graph(self) -> None:
        listeners = self._adapter.gripper_listeners()
        if listeners is not None:
            self._gate.on_gripper_listeners(listeners, time.monotonic())
        if self._has_competition():
            self._silent = True  # two masters: the arm must not get a mixture
            self._gate.fault(f'another node publishes {self._adapter.topic}')
            self._report_changes()

    def _judge_limit(self, parameter: Parameter) -> str | None:
        if self._gate.state in (GateState.RUN, GateState.HOLD):
            return f'{parameter.name} limits a running arm: stop the gate first'
        try:
            read_all(self, Limits, **{parameter.name: parameter.value})
        except (UserError, TypeError, ValueError) as error:
            return str(error)
        self._new_limits = True
        return None

    def _report_changes(self) -> None:
        # Thinking alternates with running at every chunk; it shows in the periodic report.
        state, reason = self._gate.state, self._gate.reason
        calm = state in (GateState.RUN, GateState.HOLD)
        now = (state.value if not calm else 'calm', reason.split(' is ')[0] if not calm else '')
        if now != self._reported:
            self._reported = now
            if not calm:
                self.get_logger().warning(f'{state.value}: {reason}')
            self._report()

    def _report(self) -> None:
        gate = self._gate
        self._state.publish(conversions.status_message(
            self.get_fully_qualified_name(), gate.state.value,
            {'reason': gate.reason, 'remaining': gate.remaining(), 'played': gate.played,
             'dropped': self._drops, **gate.continuity.summary()},
            LEVELS[gate.state]))


def _take_priority(node: Node, priority: int) -> None:
    if not priority:
        return
    try:
        # DDS's receiving threads too: a gate that is not told anything stops the arm.
        for thread in os.listdir('/proc/self/task'):
            os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError) as error:
        node.get_logger().warning(f'parameter priority = {priority}: {error}; the gate runs '
                                  'without; allow it with an rtprio limit for this user')


def main(args: list[str] | None = None) -> int:
    """Run the node."""
    return run(CommandGate, args)


if __name__ == '__main__':
    raise SystemExit(main())
