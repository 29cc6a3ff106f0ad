"""Parameters of the policy node and of the command gate: declared, described and checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from dtvla_ros.actions.queue import ChunkQueue
from dtvla_ros.conventions import ARM_JOINTS, CONTROL_RATE, FINGER_JOINTS, HEARTBEAT_TIMEOUT
from dtvla_ros.errors import UserError
from dtvla_ros.safety.gate import HEARTBEAT, JOINTS, POSE, Gate, GateConfig
from dtvla_ros.safety.gripper import GripperMonitor
from dtvla_ros.safety.limits import PROFILES, Limiter, Limits
from dtvla_ros.safety.watchdog import Watchdog

MODES = ('full', 'masked')  # of the thought; the other ablations are evaluation's
_LARGEST_INT = 2**63 - 1
_SMALLEST_LIMIT = 1e-6
LIMITS = tuple(limit.name for limit in dataclasses.fields(Limits))
_LIMITS_MEAN = {
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


def declare(
    node: Node, name: str, default: Any, description: str, *, choices: tuple[str, ...] = (),
    low: float | None = None, high: float | None = None, changeable: bool = False,
    hint: str = '',
) -> Any:
    """Declare a parameter and return its value.

    It is fixed at start unless ``changeable``. A set to something outside ``choices`` or
    ``low`` .. ``high`` is refused, the old value kept; ``hint`` ends the refusal of a choice.

    Raises
    ------
    UserError
        If the value given at start is outside of them.

    """
    def refuse(value: Any) -> str | None:
        return None if value in choices else (
            f'{name} = "{value}"; choose from {", ".join(choices)}{hint}')

    if choices:
        description += ': ' + ', '.join(choices)
    descriptor = ParameterDescriptor(description=description, read_only=not changeable)
    if low is not None or high is not None:
        _bound(descriptor, default, low, high)
    node.declare_parameter(name, default, descriptor)
    value: Any = node.get_parameter(name).value
    if choices and (refusal := refuse(value)):
        raise UserError(f'parameter {refusal}')
    if low is not None and not value >= low:
        raise UserError(f'parameter {name} = {value} must be at least {low:g}')
    if high is not None and not value <= high:
        raise UserError(f'parameter {name} = {value} must be at most {high:g}')
    if choices and changeable:
        refuse_changes(node, (name,), lambda p: refuse(p.value))
    return value


def refuse_changes(
    node: Node, names: Collection[str], why: Callable[[Parameter], str | None],
) -> None:
    """Ask ``why`` before any of the parameters ``names`` changes; a reason refuses the change."""
    def judge(parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            reason = why(parameter) if parameter.name in names else None
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)
    node.add_on_set_parameters_callback(judge)


def _bound(
    descriptor: ParameterDescriptor, default: float, low: float | None, high: float | None,
) -> None:
    if isinstance(default, int):
        descriptor.integer_range = [IntegerRange(
            from_value=-_LARGEST_INT if low is None else int(low),
            to_value=_LARGEST_INT if high is None else int(high), step=0)]
    else:
        descriptor.floating_point_range = [FloatingPointRange(
            from_value=-math.inf if low is None else float(low),
            to_value=math.inf if high is None else float(high), step=0.0)]


def _parameter(default: Any, description: str, **checks: Any) -> Any:
    return field(default=default, metadata={'description': description, **checks})


@dataclass(frozen=True, slots=True)
class VlaSettings:
    """Parameters of the policy node; `declare_settings` checks them as `declare` does."""

    policy: str = _parameter('models/nano', 'folder of the policy, its manifest inside')
    engine: str = _parameter('onnx', 'what runs the policy', choices=('onnx', 'torch'))
    device: str = _parameter(
        'cpu', 'where the policy runs', choices=('cpu', 'cuda', 'tensorrt', 'auto'))
    threads: int = _parameter(1, 'threads of the engine on a CPU', low=1)
    mode: str = _parameter(
        'full', 'the thought, written by the policy or empty', choices=MODES,
        hint='; other thoughts are for dtvla eval --mode')
    max_thought_tokens: int = _parameter(
        0, 'length at which a thought is truncated; 0: as the policy says', low=0)
    deadline_s: float = _parameter(
        5.0, 'longest decision before the task is stopped', low=0.01)
    on_cut: str = _parameter(
        'stop', 'what to do with a truncated thought', choices=('stop', 'act'))
    lockstep: bool = _parameter(False, 'simulated time waits for the policy; repeatable runs')
    replan_steps: int = _parameter(
        0, 'control steps between decisions; 0: as the policy says', low=0)
    transport: str = _parameter('raw', 'image topics', choices=('raw', 'compressed'))
    arm_joints: tuple[str, ...] = _parameter(ARM_JOINTS, 'joints of the arm')
    finger_joints: tuple[str, ...] = _parameter(
        FINGER_JOINTS, 'joints whose absolute positions add up to the gripper opening')
    max_skew_s: float = _parameter(
        0.03, 'largest stamp difference in one observation', low=0.0)
    max_age_s: float = _parameter(
        0.5, 'age of an observation beyond which no decision is based on it', low=0.01)
    input_timeout_s: float = _parameter(0.18, 'silence of an input before HOLDING', low=0.05)
    gate_timeout_s: float = _parameter(
        0.15, 'silence of gate_state, once it was heard, before STOPPED; 0: not watched',
        low=0.0)
    allowed_instructions: tuple[str, ...] = _parameter(('',), "instructions taken; ['']: all")
    on_unlisted: str = _parameter(
        'reject', 'what to do with an instruction that is not allowed',
        choices=('reject', 'warn'))


SETTINGS = tuple(setting.name for setting in dataclasses.fields(VlaSettings))


def declare_settings(node: Node) -> None:
    """Declare every parameter of `VlaSettings`; they may change until the node is configured.

    Raises
    ------
    UserError
        If a value given at start is out of range.

    """
    for setting in dataclasses.fields(VlaSettings):
        default: Any = setting.default
        declare(node, setting.name, list(default) if isinstance(default, tuple) else default,
                changeable=True, **setting.metadata)


def read_settings(node: Node) -> VlaSettings:
    """Return the present values."""
    values: dict[str, Any] = {}
    for name in SETTINGS:
        value = node.get_parameter(name).value
        values[name] = tuple(value) if isinstance(value, list) else value
    return VlaSettings(**values)


def build_gate(node: Node, period: float, lockstep: bool) -> Gate:
    """Return a gate that ticks every ``period`` seconds, set up by the node's parameters.

    Raises
    ------
    UserError
        If a parameter is out of range, or the control rate no multiple of the chunks'.

    """
    def seconds(name: str, default: float, description: str, low: float = 0.0) -> float:
        value: float = declare(node, name, default, description, low=low)
        return value

    chunk_rate = declare(
        node, 'chunk_rate', CONTROL_RATE, 'rows of a chunk per second [Hz]', low=1.0)
    ticks = round(1.0 / (period * chunk_rate))
    if ticks < 1 or abs(ticks * period * chunk_rate - 1.0) > 1e-3:
        raise UserError(f'parameter rate = {1.0 / period:g} Hz is no multiple of chunk_rate = '
                        f'{chunk_rate:g} Hz')
    timeouts = {HEARTBEAT: seconds(
        'heartbeat_timeout_s', HEARTBEAT_TIMEOUT, 'silence of vla/state', low=0.05)}
    measured = {
        JOINTS: seconds('joints_timeout_s', 0.1, 'silence of joint_states; 0: never'),
        POSE: seconds('pose_timeout_s', 0.1, "silence of the end effector's pose; 0: never")}
    stall = seconds('clock_stall_s', 0.15, 'standstill of the clock before HOLD; 0: never')
    domain = seconds('clock_domain_s', 1.0, "distance of a measurement's stamp from this clock "
                     'that shows another one; 0: never')
    if lockstep:  # a simulator is silent, and its clock stands, while the policy thinks
        measured, stall, domain = {}, 0.0, 0.0
    config = GateConfig(
        period=period,
        ticks_per_row=ticks,
        thinking_deadline=seconds(
            'thinking_deadline_s', 10.0, 'longest wait for a chunk before STOP'),
        heartbeat_stop=seconds(
            'heartbeat_stop_s', 0.0, 'age of the policy heartbeat at which HOLD becomes STOP'),
        contract_breaks=declare(
            node, 'contract_breaks', 5, 'rows in a row beyond +-1 before FAULT', low=1),
        clock_stall=stall,
        clock_domain=domain,
        auto_start=declare(
            node, 'auto_start', False, 'move without the start service, after each new task'))
    queue = ChunkQueue(
        max_latency=seconds(
            'max_latency_s', 0.5, 'a chunk older than its length and this is dropped'),
        blend_steps=declare(
            node, 'blend_steps', 0, 'rows over which a new chunk is faded in', low=0),
        ticks_per_row=ticks)
    gripper = GripperMonitor(seconds(
        'gripper_timeout_s', 1.6,
        'time without effect after which a gripper is stuck or absent; 0: not watched'))
    return Gate(config, queue, Limiter(_declare_limits(node), period),
                Watchdog({**timeouts, **measured}, own_period=period), gripper)


def _declare_limits(node: Node) -> Limits:
    """Declare the profile and the limits that override it; return them."""
    profile = PROFILES[declare(node, 'profile', 'default', 'limits', choices=tuple(PROFILES))]
    for name in LIMITS:
        default = getattr(profile, name)
        declare(node, name, list(default) if isinstance(default, tuple) else default,
                _LIMITS_MEAN[name], changeable=True,
                low=_SMALLEST_LIMIT if isinstance(default, float) else None)
    return read_limits(node)


def read_limits(node: Node, **changed: Any) -> Limits:
    """Return the limits the parameters say, some of them ``changed``.

    Raises
    ------
    UserError
        If a limit is not positive or the workspace is empty.

    """
    chosen: dict[str, Any] = {name: node.get_parameter(name).value for name in LIMITS} | changed
    for name in ('workspace_low', 'workspace_high'):
        chosen[name] = tuple(chosen[name])
    return Limits(**chosen)
