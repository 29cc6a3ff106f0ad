"""Parameters of the nodes: one table per node, declared, described and checked."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from dtvla_ros.actions.queue import ChunkQueue
from dtvla_ros.conventions import (
    ARM_JOINTS,
    CONTROL_RATE,
    DEVICES,
    ENGINES,
    FINGER_JOINTS,
    HEARTBEAT_TIMEOUT,
    MODES,
)
from dtvla_ros.errors import UserError
from dtvla_ros.safety.gate import HEARTBEAT, JOINTS, POSE, Gate, GateConfig
from dtvla_ros.safety.gripper import GripperMonitor
from dtvla_ros.safety.limits import PROFILES, Limiter, Limits
from dtvla_ros.safety.watchdog import Watchdog

_LARGEST_INT = 2**63 - 1
_SMALLEST_LIMIT = 1e-6
_FINGERS_MEAN = 'joints whose absolute positions add up to the gripper opening'
LIMITS = {
    'linear_speed': 'largest speed of the end effector [m/s]',
    'angular_speed': 'largest angular speed of the end effector [rad/s]',
    'acceleration': 'largest acceleration [m/s^2]',
    'jerk': 'largest jerk while speeding up [m/s^3]',
    'step_linear': 'largest offset of one step [m]',
    'step_angular': 'largest turn of one step [rad]',
    'workspace_low': 'lower corner of the box that goals must lie in, base frame [m]',
    'workspace_high': 'upper corner of the box that goals must lie in, base frame [m]',
    'per_axis': 'bound each axis instead of the length of the vector',
}
Table = TypeVar('Table')


def declare(
    node: Node, name: str, default: Any, description: str, *, choices: Collection[str] = (),
    low: float | None = None, high: float | None = None, changeable: bool = False,
    hint: str = '',
) -> Any:
    """Declare a parameter and return its value.

    It is fixed at start unless ``changeable``. A set to something outside ``choices`` or
    ``low`` .. ``high`` is refused, the old value kept; ``hint`` ends the refusal of a choice.

    Raises
    ------
    UserError, InvalidParameterValueException
        If the value given at start is outside of them.

    """
    def refuse(value: Any) -> str | None:
        return None if value in choices else (
            f'{name} = "{value}"; choose from {", ".join(choices)}{hint}')

    if choices:
        description += ': ' + ', '.join(choices)
    descriptor = ParameterDescriptor(description=description, read_only=not changeable)
    if (low, high) != (None, None):
        whole = isinstance(default, int)
        lowest, highest = (-_LARGEST_INT, _LARGEST_INT) if whole else (-math.inf, math.inf)
        ends = {'from_value': lowest if low is None else type(lowest)(low),
                'to_value': highest if high is None else type(highest)(high)}
        if whole:
            descriptor.integer_range = [IntegerRange(**ends)]
        else:
            descriptor.floating_point_range = [FloatingPointRange(**ends)]
    default = list(default) if isinstance(default, tuple) else default
    value: Any = node.declare_parameter(name, default, descriptor).value
    if choices and (refusal := refuse(value)):
        raise UserError(f'parameter {refusal}')
    if choices and changeable:
        refuse_changes(node, (name,), lambda p: refuse(p.value))
    return value


def refuse_changes(
    node: Node, names: Collection[str], why: Callable[[Parameter], str | None],
) -> None:
    """Ask ``why`` before any of the parameters ``names`` changes; a reason refuses the change."""
    def judge(parameters: list[Parameter]) -> SetParametersResult:
        reasons = [why(p) for p in parameters if p.name in names]
        reason = next(filter(None, reasons), '')
        return SetParametersResult(successful=not reason, reason=reason)
    node.add_on_set_parameters_callback(judge)


def parameter(default: Any, description: str, **checks: Any) -> Any:
    """Return an entry of a table: a dataclass field with the arguments of `declare`."""
    return field(default=default, metadata={'description': description, **checks})


def declare_all(node: Node, table: type[Table], changeable: bool = False) -> Table:
    """Declare every parameter of a table and return the values.

    Raises
    ------
    UserError, InvalidParameterValueException
        If a value given at start is out of range.

    """
    for entry in dataclasses.fields(table):  # type: ignore[arg-type]
        declare(node, entry.name, entry.default, **{'changeable': changeable, **entry.metadata})
    return read_all(node, table)


def read_all(node: Node, table: type[Table], **changed: Any) -> Table:
    """Return the present values of a table, some of them ``changed``; lists become tuples."""
    values = {entry.name: node.get_parameter(entry.name).value
              for entry in dataclasses.fields(table)} | changed  # type: ignore[arg-type]
    return table(**{name: tuple(value) if isinstance(value, (list, array)) else value
                    for name, value in values.items()})


@dataclass(frozen=True, slots=True)
class VlaSettings:
    """Parameters of the policy node."""

    policy: str = parameter('models/nano', 'folder of the policy, its manifest inside')
    engine: str = parameter('onnx', 'what runs the policy', choices=ENGINES)
    device: str = parameter('cpu', 'where the policy runs', choices=DEVICES)
    threads: int = parameter(1, 'threads of the engine on a CPU', low=1)
    mode: str = parameter(
        'full', 'the thought, written by the policy or empty', choices=MODES,
        hint='; other thoughts are for dtvla eval --mode')
    max_thought_tokens: int = parameter(
        0, 'length at which a thought is truncated; 0: as the policy says', low=0)
    deadline_s: float = parameter(
        5.0, 'longest decision before the task is stopped', low=0.01)
    on_cut: str = parameter(
        'stop', 'what to do with a truncated thought', choices=('stop', 'act'))
    lockstep: bool = parameter(False, 'simulated time waits for the policy; repeatable runs')
    replan_steps: int = parameter(
        0, 'control steps between decisions; 0: as the policy says', low=0)
    transport: str = parameter('raw', 'image topics', choices=('raw', 'compressed'))
    arm_joints: tuple[str, ...] = parameter(ARM_JOINTS, 'joints of the arm')
    finger_joints: tuple[str, ...] = parameter(FINGER_JOINTS, _FINGERS_MEAN)
    max_skew_s: float = parameter(
        0.03, 'largest stamp difference in one observation', low=0.0)
    max_age_s: float = parameter(
        0.5, 'age of an observation beyond which no decision is based on it', low=0.01)
    input_timeout_s: float = parameter(0.18, 'silence of an input before HOLDING', low=0.05)
    gate_timeout_s: float = parameter(
        0.15, 'silence of gate_state, once it was heard, before STOPPED; 0: not watched',
        low=0.0)
    allowed_instructions: tuple[str, ...] = parameter(('',), "instructions taken; ['']: all")
    on_unlisted: str = parameter(
        'reject', 'what to do with an instruction that is not allowed',
        choices=('reject', 'warn'))


SETTINGS = tuple(setting.name for setting in dataclasses.fields(VlaSettings))
WITHOUT_EFFECT = ('seed', 'keep_thought')  # of thoughts that only `dtvla eval --mode` replaces


def declare_without_effect(node: Node) -> None:
    """Declare the policy node's former parameters, read-only; warn once if some are given."""
    descriptor = ParameterDescriptor(
        description='without effect', read_only=True, dynamic_typing=True)
    given = [name for name in WITHOUT_EFFECT
             if node.declare_parameter(name, None, descriptor).value is not None]
    if given:
        node.get_logger().warning(
            f'parameter {" and ".join(given)}: without effect in this node; remove it, and use '
            'dtvla eval --mode for random, swapped and frozen thoughts')


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Parameters of the command gate; its limits are those of `Limits`."""

    rate: float = parameter(CONTROL_RATE, 'control rate [Hz]', low=1.0, high=200.0)
    chunk_rate: float = parameter(CONTROL_RATE, 'rows of a chunk per second [Hz]', low=1.0)
    lockstep: bool = parameter(False, 'tick with the pose, not the clock')
    preset: str = parameter(
        'sim_osc', 'kind of arm', choices=('sim_osc', 'servo', 'crisp', 'fzi'))
    finger_joints: tuple[str, ...] = parameter(FINGER_JOINTS, _FINGERS_MEAN)
    priority: int = parameter(
        0, 'real-time priority (SCHED_FIFO) of the gate; 0: none', low=0, high=90)
    heartbeat_timeout_s: float = parameter(HEARTBEAT_TIMEOUT, 'silence of vla/state', low=0.05)
    joints_timeout_s: float = parameter(0.1, 'silence of joint_states; 0: never', low=0)
    pose_timeout_s: float = parameter(
        0.1, "silence of the end effector's pose; 0: never", low=0)
    clock_stall_s: float = parameter(
        0.15, 'standstill of the clock before HOLD; 0: never', low=0)
    clock_domain_s: float = parameter(
        1.0, "distance of a measurement's stamp from this clock that shows another one; "
        '0: never', low=0)
    thinking_deadline_s: float = parameter(10.0, 'longest wait for a chunk before STOP', low=0)
    heartbeat_stop_s: float = parameter(
        0.0, 'age of the policy heartbeat at which HOLD becomes STOP', low=0)
    contract_breaks: int = parameter(5, 'rows in a row beyond +-1 before FAULT', low=1)
    auto_start: bool = parameter(
        False, 'move without the start service, after each new task')
    max_latency_s: float = parameter(
        0.5, 'a chunk older than its length and this is dropped', low=0)
    blend_steps: int = parameter(0, 'rows over which a new chunk is faded in', low=0)
    gripper_timeout_s: float = parameter(
        1.6, 'time without effect after which a gripper is stuck or absent; 0: not watched',
        low=0)
    profile: str = parameter('default', 'limits', choices=tuple(PROFILES))


def declare_limits(node: Node, profile: str) -> Limits:
    """Declare the limits that override those of a profile; return the ones in force.

    Raises
    ------
    UserError, InvalidParameterValueException
        If a limit is not positive or the workspace is empty.

    """
    for name, meaning in LIMITS.items():
        default = getattr(PROFILES[profile], name)
        declare(node, name, default, meaning, changeable=True,
                low=_SMALLEST_LIMIT if isinstance(default, float) else None)
    return read_all(node, Limits)


def build_gate(given: GateSettings, limits: Limits) -> Gate:
    """Return a gate as the parameters say.

    Raises
    ------
    UserError
        If the control rate is no multiple of the chunks'.

    """
    period = 1.0 / given.rate
    ticks = round(given.rate / given.chunk_rate)
    if ticks < 1 or abs(ticks * given.chunk_rate / given.rate - 1.0) > 1e-3:
        raise UserError(f'parameter rate = {given.rate:g} Hz is no multiple of chunk_rate = '
                        f'{given.chunk_rate:g} Hz')
    timeouts = {HEARTBEAT: given.heartbeat_timeout_s}
    stall = domain = 0.0
    if not given.lockstep:  # else silent, and its clock stands, while the policy thinks
        timeouts |= {JOINTS: given.joints_timeout_s, POSE: given.pose_timeout_s}
        stall, domain = given.clock_stall_s, given.clock_domain_s
    return Gate(
        GateConfig(
            period, ticks, given.thinking_deadline_s, given.heartbeat_stop_s,
            contract_breaks=given.contract_breaks, clock_stall=stall, clock_domain=domain,
            auto_start=given.auto_start),
        ChunkQueue(max_latency=given.max_latency_s, blend_steps=given.blend_steps,
                   ticks_per_row=ticks),
        Limiter(limits, period), Watchdog(timeouts, own_period=period),
        GripperMonitor(given.gripper_timeout_s))
