"""The command gate's parameters, and what is built from them."""

from __future__ import annotations

import dataclasses
from typing import Any

from rclpy.node import Node

from dtvla_ros.actions.queue import ChunkQueue
from dtvla_ros.conventions import CONTROL_RATE, HEARTBEAT_TIMEOUT
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.parameters import declare
from dtvla_ros.safety.gate import HEARTBEAT, JOINTS, POSE, Gate, GateConfig
from dtvla_ros.safety.gripper import GripperMonitor
from dtvla_ros.safety.limits import PROFILES, Limiter, Limits
from dtvla_ros.safety.watchdog import Watchdog

SMALLEST = 1e-6  # of a limit; zero would not be one
LIMITS = tuple(field.name for field in dataclasses.fields(Limits))
DESCRIPTIONS = {
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


def build_gate(node: Node, period: float, lockstep: bool) -> Gate:
    """Return a gate that ticks every ``period`` seconds, set up by the node's parameters.

    Raises
    ------
    UserError
        If a parameter is out of range, or the control rate no multiple of the chunks'.

    """
    chunk_rate = declare(
        node, 'chunk_rate', CONTROL_RATE, 'rows of a chunk per second [Hz]', low=1.0)
    ticks = round(1.0 / (period * chunk_rate))
    if ticks < 1 or abs(ticks * period * chunk_rate - 1.0) > 1e-3:
        raise UserError(f'parameter rate = {1.0 / period:g} Hz is no multiple of chunk_rate = '
                        f'{chunk_rate:g} Hz')
    watchdog = _watchdog(node, period, lockstep)
    config = GateConfig(
        period=period,
        ticks_per_row=ticks,
        thinking_deadline=declare(
            node, 'thinking_deadline_s', 10.0, 'longest wait for a chunk before STOP', low=0.0),
        heartbeat_stop=declare(
            node, 'heartbeat_stop_s', 0.0,
            'age of the policy heartbeat at which HOLD becomes STOP', low=0.0),
        contract_breaks=declare(
            node, 'contract_breaks', 5, 'rows in a row beyond +-1 before FAULT', low=1),
        clock_stall=0.0 if lockstep else declare(
            node, 'clock_stall_s', 0.15, 'standstill of the clock before HOLD; 0: never',
            low=0.0),
        clock_domain=0.0 if lockstep else declare(
            node, 'clock_domain_s', 1.0, "distance of a measurement's stamp from this clock that "
            'shows another one; 0: never', low=0.0),
        auto_start=declare(
            node, 'auto_start', False, 'move without the start service, after each new task'))
    queue = ChunkQueue(
        max_latency=declare(
            node, 'max_latency_s', 0.5, 'a chunk older than its length and this is dropped',
            low=0.0),
        blend_steps=declare(
            node, 'blend_steps', 0, 'rows over which a new chunk is faded in', low=0),
        ticks_per_row=ticks)
    gripper = GripperMonitor(declare(
        node, 'gripper_timeout_s', 1.6,
        'time without effect after which a gripper is stuck or absent; 0: not watched', low=0.0))
    return Gate(config, queue, Limiter(declare_limits(node), period), watchdog, gripper)


def declare_limits(node: Node) -> Limits:
    """Declare the profile and the limits that override it; return them."""
    profile = PROFILES[declare(node, 'profile', 'default', 'limits', choices=tuple(PROFILES))]
    for name in LIMITS:
        default = getattr(profile, name)
        declare(node, name, list(default) if isinstance(default, tuple) else default,
                DESCRIPTIONS[name], low=SMALLEST if isinstance(default, float) else None,
                changeable=True)
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


def _watchdog(node: Node, period: float, lockstep: bool) -> Watchdog:
    heartbeat = declare(
        node, 'heartbeat_timeout_s', HEARTBEAT_TIMEOUT, 'silence of vla/state', low=0.05)
    joints = declare(node, 'joints_timeout_s', 0.1, 'silence of joint_states; 0: never', low=0.0)
    pose = declare(
        node, 'pose_timeout_s', 0.1, "silence of the end effector's pose; 0: never", low=0.0)
    # A simulator in lock-step is silent while the policy thinks.
    measured = {} if lockstep else {JOINTS: joints, POSE: pose}
    return Watchdog({HEARTBEAT: heartbeat, **measured}, own_period=period)
