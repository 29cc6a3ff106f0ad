"""The process that alone talks to the arm: chunks in, limited commands out, safe stops."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros import conventions as names
from dtvla_ros.conventions import PERSON, relative
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.command_adapters import PRESETS, CommandAdapter, make_adapter
from dtvla_ros.nodes.joint_adapters import JointAdapter
from dtvla_ros.nodes.pose_source import PoseSource
from dtvla_ros.nodes.settings import declare, declare_all, guard, installed, read_all
from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.run import STEADY, run, wait_until_heard
from dtvla_ros.ros.settings import FINGERS, ActionSettings, OpeningSettings
from dtvla_ros.ros.waiting import tell_what_lacks, why_silent
from dtvla_ros.safety.gate import (
    HEARTBEAT,
    HUMAN,
    JOINTS,
    PERSON_DRIVES,
    POSE,
    Command,
    Gate,
    GateConfig,
    GateState,
)
from dtvla_ros.safety.joint_gate import JointGate
from dtvla_ros.safety.joint_limits import PROFILES as JOINT_PROFILES
from dtvla_ros.safety.joint_limits import JointLimits, bounds_of
from dtvla_ros.safety.limits import PROFILES, Limiter, Limits

STATE_PERIOD = 0.05  # the policy's own watchdog lives on gate_state
WATCH_PERIOD = 0.01  # a stop does not wait for the next tick
GRAPH_PERIOD = 0.25  # between two looks for competing publishers and gripper listeners [s]
SAME_TICK = 1e-3  # difference of two stamps of one lock-step tick [s]
WITH_TASK = ('THINKING', 'ACTING')  # states of the policy
STILL_TICKS = 4  # commands of stillness that make a stop
SWITCHES = ('pause', 'takeover')  # orders that are on or off
LEVELS = {GateState.STOP: DiagnosticStatus.WARN, GateState.FAULT: DiagnosticStatus.ERROR}
ARM_STATUS = {'none': '', 'bool': 'std_msgs/msg/Bool', 'int8': 'std_msgs/msg/Int8',
              'servo': 'moveit_msgs/msg/ServoStatus'}


class CommandGate(Node):
    """Plays chunks at the control rate, or a person's twists while one drives.

    In lock-step the tick is the simulator's: each new pose asks for one command, and nothing is
    sent while the policy is alive and thinking, so that simulated time waits for it. A steady
    timer goes on beside it, to keep commanding stillness when the policy is dead, and at which
    a person's commands are sent.
    """

    def __init__(self) -> None:
        super().__init__('command_gate')
        config = declare_all(self, GateConfig())
        self._period, self._lockstep = 1.0 / config.rate, config.lockstep
        self._starts_by_itself = config.auto_start
        preset = declare(self, 'preset', 'sim_osc', 'kind of arm', choices=PRESETS)
        arm = declare(self, 'arm_joints', names.ARM_JOINTS, 'joints of the arm', distinct=True)
        fingers = declare(self, 'finger_joints', names.FINGER_JOINTS, FINGERS, distinct=True)
        # Apart, because an arm must not stand still where its gripper falls silent.
        self._arm, self._joint_names = conversions.JointReader(arm), tuple(arm)
        self._fingers = conversions.JointReader(
            (), fingers, opening=declare_all(self, OpeningSettings()).metres)
        profile = declare(self, 'profile', 'default', 'limits', choices=PROFILES)
        contract = declare_all(self, ActionSettings()).contract(arm, config.chunk_rate)
        self._limits: type[Limits] | type[JointLimits] = Limits
        if contract.is_joints:
            self._limits = JointLimits
            limits = declare_all(self, JOINT_PROFILES[profile], changeable=True)
            self._gate: Gate = JointGate(config, bounds_of(arm, limits), contract)
        else:
            self._gate = Gate(
                config, declare_all(self, PROFILES[profile], changeable=True), contract)
        if contract.is_joints != issubclass(PRESETS[preset], JointAdapter):
            fits = ', '.join(name for name, kind in PRESETS.items()
                             if contract.is_joints == issubclass(kind, JointAdapter))
            raise UserError(f'parameter preset = "{preset}" takes no {contract.controller}, which '
                            f'action_space is; choose one of {fits}, or another action_space')
        self._pose_source = PoseSource(
            self, self._on_pose, functools.partial(self._refuse, POSE))
        self._base: str = self.get_parameter('base_frame').value
        self._adapter = make_adapter(self, preset, self._base)
        self._pending: float | None = None  # stamp of the tick to be answered in lock-step
        self._early: JointTrajectory | None = None  # a chunk for a tick that has not come yet
        self._last: Command | None = None
        self._drops = 0
        self._reported = ''
        self._silent = self._new_limits = False
        guard(self, [limit.name for limit in dataclasses.fields(self._limits)], self._judge_limit)
        self._priority = declare(
            self, 'priority', 0, "real-time priority (SCHED_FIFO) of the gate's process; 0: none",
            low=0, high=90)

        self._state = self.create_publisher(
            DiagnosticStatus, relative(names.GATE_STATE), qos.LATCHED)
        self.create_subscription(
            JointTrajectory, relative(names.ACTION_CHUNK), self._on_chunk, qos.LATEST)
        self._subscribed = {
            HEARTBEAT: self.create_subscription(
                DiagnosticStatus, relative(names.VLA_STATE), self._on_heartbeat, qos.LATCHED),
            JOINTS: self.create_subscription(JointState, relative(
                names.JOINT_STATES), self._on_joints, qos_profile_sensor_data)}
        self._policy = ''  # its state and reason
        self._pose_source.open()
        self._follow_arm()
        # Best effort: what got lost is old by the time it would be sent again.
        self._human = self.create_subscription(
            TwistStamped, relative(names.HUMAN_TWIST), self._on_human, qos.NEWEST)
        self.create_subscription(
            Float64, relative(names.HUMAN_GRIPPER), self._on_human_gripper, qos.LATEST)
        qos.listen_to_anyone(self, Bool, relative(names.ESTOP), self._on_estop)
        orders = {'start': lambda _: self._gate.start(time.monotonic()),
                  'stop': lambda _: self._gate.stop('asked to stop'),
                  'clear_fault': lambda _: self._clear_fault(),
                  'pause': lambda request: self._gate.pause(request.data),
                  'takeover': lambda request: (
                      self._take_over() if request.data else self._gate.hand_back())}
        for name, order in orders.items():
            self.create_service(SetBool if name in SWITCHES else Trigger, name,
                                functools.partial(self._on_order, order))
        self.create_timer(self._period, self._on_timer, clock=STEADY)
        if not self._lockstep:
            self.create_timer(WATCH_PERIOD, self._on_watch, clock=STEADY)
        self.create_timer(STATE_PERIOD, self._report, clock=STEADY)
        self.create_timer(GRAPH_PERIOD, self._watch_graph, clock=STEADY)
        tell_what_lacks(self, self._lacking)
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
        if dropped and dropped != PERSON_DRIVES:
            self._drops += 1
            self.get_logger().info(f'chunk dropped: {dropped}', throttle_duration_sec=1.0)
        if self._lockstep:
            self._play_pending()
        self._stop_now()

    def _on_heartbeat(self, message: DiagnosticStatus) -> None:
        values = conversions.status_values(message)
        reason = values.get('reason', '')
        self._policy = f'{message.message} {reason}'
        self._gate.on_heartbeat(
            time.monotonic(), message.message, reason, values.get('task', ''),
            values.get('action_space', ''))
        self._on_watch()

    def _on_joints(self, message: JointState) -> None:
        sample = message.name, message.position, conversions.seconds(message.header.stamp)
        if arm := self._arm.take(*sample):
            self._gate.on_joints([arm.positions[name] for name in self._joint_names], arm.stamp,
                                 time.monotonic())
        elif self._arm.why:
            self._refuse(JOINTS, self._arm.why)
        if fingers := self._fingers.take(*sample):
            if refused := conversions.refuse_opening(fingers.opening):
                self.get_logger().warning(refused, throttle_duration_sec=5.0)
            else:
                self._gate.gripper.measure(fingers.opening)

    def _on_human(self, message: TwistStamped) -> None:
        refused = (conversions.refuse_frame(message.header.frame_id, self._base)
                   if self._gate.driver == PERSON else None) or self._gate.on_human(
            conversions.twist_array(message.twist), conversions.seconds(message.header.stamp),
            time.monotonic())
        if refused:
            self._refuse(HUMAN, refused)
        self._stop_now()

    def _on_human_gripper(self, message: Float64) -> None:
        self._gate.on_human_gripper(message.data)

    def _take_over(self) -> str | None:
        """Let a person drive if exactly one publishes what they want; return why not, or None."""
        drivers = self.count_publishers(self._human.topic_name)
        if drivers != 1:
            return self._two_drivers(drivers) if drivers else (
                f'{why_silent(self, self._human)}; start what drives the arm first')
        return self._gate.take_over(time.monotonic())

    def _two_drivers(self, count: int) -> str:
        return f'{count} nodes publish {self._human.topic_name}: leave one of them'

    def _refuse(self, name: str, why: str) -> None:
        self._gate.on_refused(name, why)
        self.get_logger().warning(f'{name} refused: {why}', throttle_duration_sec=5.0)

    def _on_pose(self, position: NDArray[np.float64], quaternion: NDArray[np.float64],
                 stamp: float) -> None:
        self._gate.on_pose(position, quaternion, stamp, time.monotonic())
        if isinstance(self._adapter, CommandAdapter):
            self._adapter.measured = position, quaternion
        if self._lockstep:
            self._pending = stamp
            if self._last is not None and self._answered():
                self._send(self._last)  # asked again: the answer was lost
            self._play_pending()
            early, self._early = self._early, None
            if early is not None:
                self._on_chunk(early)

    def _follow_arm(self) -> None:
        """Follow ``arm_status``: a Bool is true while the controller follows commands.

        Int8 (MoveIt Servo on Humble) and ServoStatus (since Jazzy) carry a code;
        ``arm_unable_codes`` are those of a halt.
        """
        kind = declare(self, 'arm_status', 'none', 'type of the topic arm_status',
                       choices=ARM_STATUS)
        halted = declare(self, 'arm_unable_codes', [-1, 2, 4, 5],
                         "codes of MoveIt Servo's status in which the arm is halted")

        def receive(message: Any) -> None:
            if isinstance(message, Bool):
                unable = '' if message.data else 'the controller does not follow commands'
            else:
                code = message.code if hasattr(message, 'code') else message.data
                unable = '' if code not in halted else (
                    f'the controller is halted: status {code} {getattr(message, "message", "")}')
            self._gate.arm_unable = unable.rstrip()
            self._on_watch()
        if kind != 'none':
            self.create_subscription(
                installed(ARM_STATUS[kind], f'arm_status = "{kind}"', '"bool" or "int8"'),
                'arm_status', receive, 1)

    def _on_estop(self, message: Bool) -> None:
        self._gate.on_estop(message.data)
        self._stop_now()

    def _on_order(self, order: Callable[[Any], str | None], request: Any, response: Any) -> Any:
        refused = order(request)
        self._stop_now()
        self._report()
        response.success = refused is None
        response.message = refused or f'{self._gate.state.name}: {self._gate.reason}'
        return response

    def _clear_fault(self) -> str | None:
        if self._has_competition():
            return f'another node still publishes {self._adapter.topic}'
        refused = self._gate.clear_fault()
        self._silent = self._silent and refused is not None
        return refused

    def _play_pending(self, paced: bool = False) -> None:
        """Answer the simulator's tick if there is a row for it, or still the arm if ``paced``.

        Stillness waits for the timer, as a person's commands do: simulated time must not race.
        """
        if self._pending is not None and not self._answered() and (
                paced or self._gate.driver != PERSON):
            command = self._gate.tick(self._pending, time.monotonic())
            if command.played or (paced and not command.waiting):
                self._send(command)
        self._report_changes()

    def _answered(self) -> bool:
        return self._last is not None and self._last.played and self._last.stamp == self._pending

    def _on_timer(self) -> None:
        if self._new_limits:
            self._new_limits = False
            if isinstance(self._gate, JointGate):
                self._gate.use(bounds_of(self._joint_names, read_all(self, JointLimits)))
            else:
                self._gate.limiter = Limiter(read_all(self, Limits), self._period)
        if self._lockstep:
            self._play_pending(paced=True)
        else:
            self._send(self._gate.tick(self._now(), time.monotonic()))
            self._report_changes()

    def _stop_now(self) -> None:
        """Command stillness at once if the last event ended the task."""
        if self._gate.ended and not self._lockstep and self._last and self._last.played:
            self._on_timer()
        self._report_changes()

    def _on_watch(self) -> None:
        if not self._lockstep and self._gate.has_stop_condition(self._now(), time.monotonic()):
            self._on_timer()

    def _send(self, command: Command) -> None:
        self._last = command
        if self._silent:
            return
        if isinstance(self._adapter, CommandAdapter):
            self._adapter.send(command.action, command.stamp, command.first_tick)
        elif command.joints is not None:
            self._adapter.send_joints(command.joints)

    def _lacking(self) -> Iterator[str]:
        """Yield what the gate waits for before it can move the arm; a task is not among it."""
        ready = self._gate.heard(HEARTBEAT)
        if not ready:
            yield (f'the policy: {self._policy}' if self._policy else
                   why_silent(self, self._subscribed[HEARTBEAT]))
        if ready or not self._lockstep:  # else the simulator waits for the policy, too
            if not self._gate.heard(JOINTS):
                yield why_silent(self, self._subscribed[JOINTS])
            if not (self._gate.heard(POSE) or isinstance(self._gate, JointGate)):
                yield self._pose_source.lacking()
        if self._gate.driver == PERSON and not self._gate.heard(HUMAN):
            yield why_silent(self, self._human)
        if (self._gate.state is GateState.STOP and not self._starts_by_itself
                and self._policy.startswith(WITH_TASK)):
            start = self.resolve_service_name('start')
            yield f'its start, the policy has a task: dtvla topic call {start}'

    def _has_competition(self) -> bool:
        return self.count_publishers(self._adapter.topic) > 1

    def _watch_graph(self) -> None:
        self._adapter.look_around()
        if (gripper := self._adapter.gripper) is not None:
            self._gate.gripper.listeners(gripper.listeners(), time.monotonic())
        if self._has_competition():
            self._silent = True  # two masters: the arm must not get a mixture
            self._gate.fault(f'another node publishes {self._adapter.topic}')
            self._report_changes()
        if self._gate.driver == PERSON and (
                drivers := self.count_publishers(self._human.topic_name)) != 1:
            if drivers:
                self._gate.fault(self._two_drivers(drivers))
            else:
                self._gate.stop(f'the person who drove is gone: nobody publishes '
                                f'{self._human.topic_name}')
            self._stop_now()

    def _judge_limit(self, parameter: Parameter) -> str | None:
        if not self._gate.ended:
            return f'{parameter.name} limits a running arm: stop the gate first'
        try:
            limits = read_all(self, self._limits, **{parameter.name: parameter.value})
            if isinstance(limits, JointLimits):
                bounds_of(self._joint_names, limits)
        except (UserError, TypeError, ValueError) as error:
            return str(error)
        self._new_limits = True
        return None

    def _report_changes(self) -> None:
        # Thinking alternates with running at every chunk; it shows in the periodic report.
        state, reason = self._gate.state.name, self._gate.reason
        now = f'{state}: {reason.split(" is ")[0]}' if self._gate.ended else ''
        if now != self._reported:
            self._reported = now
            if now:
                self.get_logger().warning(f'{state}: {reason}')
            self._report()

    def _report(self) -> None:
        state = self._gate.state
        self._state.publish(conversions.status_message(
            self.get_fully_qualified_name(), state.name,
            {**self._gate.account(), 'dropped': self._drops,
             'on_silence': self._adapter.on_silence}, LEVELS.get(state)))

    def take_priority(self) -> CommandGate:
        """Give the whole process the gate's priority; return the gate."""
        try:
            # DDS's receiving threads too: a gate that is not told anything stops the arm.
            for thread in os.listdir('/proc/self/task') if self._priority else ():
                os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(self._priority))
        except (OSError, AttributeError) as error:
            self.get_logger().warning(f'parameter priority = {self._priority}: {error}; the gate '
                                      'runs without; allow it with an rtprio limit for this user')
        return self


main = functools.partial(run, lambda: CommandGate().take_priority())

if __name__ == '__main__':
    raise SystemExit(main())
