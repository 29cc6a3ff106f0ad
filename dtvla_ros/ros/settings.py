"""Parameters of the policy node and of where the end effector is, as tables to be declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dtvla_ros.actions import osc
from dtvla_ros.actions.contract import (
    GRIPPER,
    OSC_POSE,
    OSC_POSE_ABSOLUTE,
    SPACES,
    ActionContract,
)
from dtvla_ros.conventions import (
    ARM_JOINTS,
    CAMERAS,
    CLOCK_DOMAIN,
    CONTROL_RATE,
    DEVICES,
    ENGINES,
    FINGER_JOINTS,
    MODES,
    WIDEST_GRIPPER,
    parameter,
)
from dtvla_ros.errors import UserError

GRIPPER_TOPICS = {
    'topic': 'std_msgs/msg/Float64', 'float64': 'std_msgs/msg/Float64',
    'float64_multi_array': 'std_msgs/msg/Float64MultiArray',
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory'}
"""Message of each kind of gripper that has a topic, ``gripper_cmd``."""
GRIPPER_ACTIONS = {'gripper_command': 'control_msgs/action/GripperCommand',
                   'parallel_gripper_command': 'control_msgs/action/ParallelGripperCommand'}
"""Type of each kind of gripper that has an action, ``gripper_action``."""
FINGERS = 'joints whose absolute positions add up to the opening of the gripper, or tell it'


@dataclass(frozen=True, slots=True)
class PoseSettings:
    """Parameters of whoever asks where the end effector is."""

    pose_source: str = parameter('topic', 'of the end effector', choices=('topic', 'tf'))
    base_frame: str = parameter('base', 'frame of poses and commands')
    ee_frame: str = parameter('gripper', 'frame of the gripper site, with pose_source tf')


@dataclass(frozen=True)  # without slots: `VlaSettings` has another base that has them
class OpeningSettings:
    """How the positions of the finger joints tell the opening of the gripper.

    In metres, or where ``gripper_width`` is set in any unit that goes with the opening, as a
    knuckle's angle: linear from ``finger_closed_position`` to ``finger_open_position``. Raises
    UserError where only a part of these is set.
    """

    gripper_width: float = parameter(
        0.0, 'opening of the open gripper, where finger_joints are in no metres; 0: they are [m]',
        low=0.0, high=WIDEST_GRIPPER)
    finger_open_position: float = parameter(
        0.0, 'sum of the positions of finger_joints when open, with gripper_width')
    finger_closed_position: float = parameter(
        0.0, 'sum of the positions of finger_joints when closed, with gripper_width')

    def __post_init__(self) -> None:
        differ = self.finger_open_position != self.finger_closed_position
        if self.gripper_width and not differ:
            raise UserError(f'parameter gripper_width = {self.gripper_width:g}: set '
                            'finger_open_position and finger_closed_position, too: what '
                            'finger_joints add up to when open and when closed')
        if differ and not self.gripper_width:
            raise UserError(f'parameter finger_open_position = {self.finger_open_position:g}: set '
                            'gripper_width, too: the opening in metres of the open gripper')

    def metres(self, positions: Sequence[float]) -> float:
        """Return the opening [m] for the positions of all finger joints."""
        if not self.gripper_width:
            return sum(abs(position) for position in positions)
        closed = self.finger_closed_position
        share = (sum(positions) - closed) / (self.finger_open_position - closed)
        return self.gripper_width * max(share, 0.0)


@dataclass(frozen=True, slots=True)
class ActionSettings:
    """Parameters of whoever must know what the arm is commanded by: policy node and gate."""

    action_space: str = parameter(
        OSC_POSE, 'what the arm is commanded by, as in the manifest', choices=SPACES)
    gripper_channel: str = parameter(
        GRIPPER, 'channel of the gripper behind arm_joints in joint spaces; empty: none')
    gripper_opens_at: float = parameter(
        osc.GRIPPER_OPEN, 'value of that channel that opens the gripper')
    gripper_closes_at: float = parameter(
        osc.GRIPPER_CLOSED, 'value of that channel that closes the gripper')

    def contract(self, joints: Sequence[str], rate_hz: float) -> ActionContract:
        """Return the contract of an arm of these joints whose rows last 1 / ``rate_hz``."""
        given: dict[str, Any] = {
            'rate_hz': rate_hz, 'gripper_open': self.gripper_opens_at,
            'gripper_close': self.gripper_closes_at}
        if self.action_space == OSC_POSE:
            return ActionContract(**given)
        if self.action_space == OSC_POSE_ABSOLUTE:
            return ActionContract.of_pose(**given)
        return ActionContract.of_joints(
            joints, self.action_space, self.gripper_channel, **given)


@dataclass(frozen=True, slots=True)
class VlaSettings(ActionSettings, OpeningSettings):
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
    chunk_rate: float = parameter(
        CONTROL_RATE, 'rows of a chunk per second, as the gate has it [Hz]', low=1.0)
    replan_steps: int = parameter(
        0, 'control steps between decisions; 0: as the policy says', low=0)
    cameras: tuple[str, ...] = parameter(
        CAMERAS, 'cameras of the policy, each on image_NAME', distinct=True)
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
