"""Parameters of the policy node and of where the end effector is, as tables to be declared."""

from __future__ import annotations

from dataclasses import dataclass

from dtvla_ros.conventions import (
    ARM_JOINTS,
    CLOCK_DOMAIN,
    DEVICES,
    ENGINES,
    FINGER_JOINTS,
    MODES,
    parameter,
)

FINGERS = 'joints whose absolute positions add up to the gripper opening'


@dataclass(frozen=True, slots=True)
class PoseSettings:
    """Parameters of whoever asks where the end effector is."""

    pose_source: str = parameter('topic', 'of the end effector', choices=('topic', 'tf'))
    base_frame: str = parameter('base', 'frame of poses and commands')
    ee_frame: str = parameter('gripper', 'frame of the gripper site, with pose_source tf')


@dataclass(frozen=True, slots=True)
class VlaSettings:
    """Parameters of the policy node."""

    policy: str = parameter('models/nano', 'folder of the policy, its manifest inside')
    engine: str = parameter('onnx', 'what runs the policy', choices=ENGINES)
    device: str = parameter(
        'cpu', 'where the policy runs; onnx on cuda or tensorrt is untested', choices=DEVICES)
    threads: int = parameter(1, 'threads of the engine on a CPU', low=1)
    mode: str = parameter('full', 'the thought, written by the policy or empty', choices=MODES,
                          hint='; other thoughts are for dtvla eval --mode')
    max_thought_tokens: int = parameter(
        0, 'length at which a thought is truncated; 0: as the policy says', low=0)
    deadline_s: float = parameter(5.0, 'longest decision before the task is stopped', low=0.01)
    on_cut: str = parameter('stop', 'what to do with a truncated thought', choices=('stop', 'act'))
    lockstep: bool = parameter(False, 'simulated time waits for the policy; repeatable runs')
    replan_steps: int = parameter(
        0, 'control steps between decisions; 0: as the policy says', low=0)
    transport: str = parameter('raw', 'image topics', choices=('raw', 'compressed'))
    arm_joints: tuple[str, ...] = parameter(ARM_JOINTS, 'joints of the arm', distinct=True)
    finger_joints: tuple[str, ...] = parameter(FINGER_JOINTS, FINGERS, distinct=True)
    max_skew_s: float = parameter(0.03, 'largest stamp difference in one observation', low=0.0)
    max_age_s: float = parameter(
        0.5, 'age of an observation beyond which no decision is based on it', low=0.01)
    input_timeout_s: float = parameter(0.18, 'silence of an input before HOLDING', low=0.05)
    clock_domain_s: float = parameter(
        CLOCK_DOMAIN, "distance of an input's stamp from this clock that shows another one; "
        '0: never', low=0)
    gate_timeout_s: float = parameter(
        0.15, 'silence of gate_state, once it was heard, before STOPPED; 0: not watched', low=0.0)
    allowed_instructions: tuple[str, ...] = parameter(
        ('',), "instructions taken; ['']: the policy's own tasks")
    on_unlisted: str = parameter(
        'reject', 'what to do with another instruction: reject, or warn and try it',
        choices=('reject', 'warn'))
    override_decisions: int = parameter(
        0, 'decisions for which thought_override counts; 0: until it is cleared', low=0)
    min_confidence: float = parameter(
        0.0, 'mean confidence of five decisions below which the arm holds and a person is asked; '
        '0: never', low=0.0, high=1.0)
    autostart: bool = parameter(
        False, 'configure and activate without a manager', changeable=False)
