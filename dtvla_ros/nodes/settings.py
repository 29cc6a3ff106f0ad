"""The policy node's parameters, and how its policy is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.node import Node

from dtvla_ros.actions import osc
from dtvla_ros.conventions import ARM_JOINTS, CAMERAS, FINGER_JOINTS
from dtvla_ros.engine.engine import MODES, Decision
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.parameters import declare
from dtvla_ros.policy.manifest import PolicyManifest

DEVICES = ('cpu', 'cuda', 'tensorrt', 'auto')
OSC_CONTRACT = ('OSC_POSE', osc.METRES_PER_UNIT, osc.RADIANS_PER_UNIT, osc.GRIPPER_CLOSED)


@dataclass(frozen=True, slots=True)
class VlaSettings:
    """Values of the parameters of the same names; `declare_settings` says what they mean."""

    policy: str
    engine: str
    device: str
    threads: int
    mode: str
    max_thought_tokens: int
    deadline_s: float
    on_cut: str
    lockstep: bool
    replan_steps: int
    transport: str
    arm_joints: list[str]
    finger_joints: list[str]
    max_skew_s: float
    max_age_s: float
    input_timeout_s: float
    gate_timeout_s: float
    allowed_instructions: list[str]
    on_unlisted: str


SETTINGS = tuple(field.name for field in dataclasses.fields(VlaSettings))


def declare_settings(node: Node) -> None:
    """Declare every parameter of `VlaSettings`; they may change until the node is configured.

    Raises
    ------
    UserError
        If a value given at start is out of range.

    """
    declare(node, 'policy', 'models/nano', 'folder of the policy, its manifest inside',
            changeable=True)
    declare(node, 'engine', 'onnx', 'what runs the policy', choices=('onnx', 'torch'),
            changeable=True)
    declare(node, 'device', 'cpu', 'where the policy runs', choices=DEVICES, changeable=True)
    declare(node, 'threads', 1, 'threads of the engine on a CPU', low=1, changeable=True)
    declare(node, 'mode', 'full', 'where the thought comes from', choices=MODES, changeable=True)
    declare(node, 'max_thought_tokens', 0,
            'length at which a thought is cut; 0: as the policy says', low=0, changeable=True)
    declare(node, 'deadline_s', 5.0, 'longest decision before the task is stopped', low=0.01,
            changeable=True)
    declare(node, 'on_cut', 'stop', 'what to do when a thought hits its cap',
            choices=('stop', 'act'), changeable=True)
    declare(node, 'lockstep', False, 'simulated time waits for the policy; repeatable runs',
            changeable=True)
    declare(node, 'replan_steps', 0, 'control steps between looks; 0: as the policy says',
            low=0, changeable=True)
    declare(node, 'transport', 'raw', 'image topics', choices=('raw', 'compressed'),
            changeable=True)
    declare(node, 'arm_joints', list(ARM_JOINTS), 'joints of the arm',
            changeable=True)
    declare(node, 'finger_joints', list(FINGER_JOINTS),
            'joints whose absolute positions add up to the gripper opening', changeable=True)
    declare(node, 'max_skew_s', 0.03, 'largest stamp difference in one look', low=0.0,
            changeable=True)
    declare(node, 'max_age_s', 0.5, 'age of a look beyond which no decision is based on it',
            low=0.01, changeable=True)
    declare(node, 'input_timeout_s', 0.18, 'silence of an input before HOLDING', low=0.05,
            changeable=True)
    declare(node, 'gate_timeout_s', 0.15,
            'silence of gate_state, once it was heard, before STOPPED; 0: not watched', low=0.0,
            changeable=True)
    declare(node, 'allowed_instructions', [''], "instructions taken; ['']: all",
            changeable=True)
    declare(node, 'on_unlisted', 'reject', 'what to do with an instruction that is not allowed',
            choices=('reject', 'warn'), changeable=True)


def read_settings(node: Node) -> VlaSettings:
    """Return the present values."""
    return VlaSettings(**{name: node.get_parameter(name).value for name in SETTINGS})


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A loaded policy. ``period`` [s] and ``replan_steps``: between actions, between looks."""

    infer: Callable[..., Decision]
    check_instruction: Callable[[str], object]
    period: float
    replan_steps: int


def load(settings: VlaSettings, on_verified: Callable[[], None]) -> LoadedPolicy:
    """Load the policy; ``on_verified`` is called once all its files are found to be intact.

    Raises
    ------
    UserError
        If a file is missing or damaged, or the policy does not fit this node and its gate.

    """
    # Here, not above: the imports take seconds and belong to the worker.
    from dtvla_ros.engine.load import load_policy
    from dtvla_ros.share import find

    def verified(manifest: PolicyManifest) -> None:
        _check_contract(settings.policy, manifest)
        on_verified()

    policy, manifest = load_policy(
        find(settings.policy), engine=settings.engine, threads=settings.threads,
        device=settings.device, mode=settings.mode,
        max_thought_tokens=settings.max_thought_tokens or None,
        max_think_seconds=settings.deadline_s, on_verified=verified)
    return LoadedPolicy(
        policy.infer, policy.transform.check_instruction, 1.0 / manifest.action.rate_hz,
        settings.replan_steps or manifest.action.replan_steps)


def _check_contract(path: str, manifest: PolicyManifest) -> None:
    cameras = tuple(manifest.config.vision.cameras)
    if cameras != CAMERAS:
        raise UserError(f'{path} wants cameras {cameras}; this node has {CAMERAS}')
    contract = manifest.action
    if (contract.controller, contract.metres_per_unit, contract.radians_per_unit,
            contract.gripper_close) != OSC_CONTRACT:
        raise UserError(f'{path}: its actions are {contract.controller} with '
                        f'{contract.metres_per_unit} m and {contract.radians_per_unit} '
                        "rad per unit; the gate speaks LIBERO's OSC_POSE only")
