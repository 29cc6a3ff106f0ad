"""Names and rates that several packages share: cameras, joints, channels, engines, topics."""

from __future__ import annotations

from dataclasses import field
from typing import Any

CAMERAS = ('primary', 'wrist')
"""Third-person camera and the wrist's, in the order in which policies take them."""
ARM_JOINTS = tuple(f'panda_joint{i}' for i in range(1, 8))
FINGER_JOINTS = ('panda_finger_joint1', 'panda_finger_joint2')
WIDEST_GRIPPER = 0.15
"""Opening beyond which joints of a gripper are in no metres; 0.08 m is what policies saw [m]."""
CHANNELS = ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper')
"""Channels of an action, LIBERO's OSC_POSE; its units are in `dtvla_ros.actions.osc`."""
POSE_CHANNELS = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper')
"""Channels of an action that is a pose: a place and a rotation vector."""

MODES = ('full', 'masked')
"""Thoughts of a policy and its node: its own, or an empty one."""
ENGINES = ('onnx', 'torch')
DEVICES = ('cpu', 'cuda', 'tensorrt', 'auto')
"""Where an engine runs; 'auto': on CUDA where it is there."""

CONTROL_RATE = 20.0
"""Actions per second [Hz], unless a parameter says otherwise."""
HEARTBEAT_PERIOD = 0.025
"""Seconds between two messages on `VLA_STATE`."""
HEARTBEAT_TIMEOUT = 0.1
"""Silence on `VLA_STATE` after which the gate stops the arm [s], unless a parameter differs."""
CLOCK_DOMAIN = 1.0
"""Distance of a stamp from a clock that shows another one [s], unless a parameter differs."""
POLICY, PERSON = 'policy', 'person'
"""Who drives the arm: `driver` of `GATE_STATE` and `VLA_STATE`."""
NOT_STARTED = 'not started'
"""Reason of a gate in STOP that was never told to start."""
LATENCY = 'latency_'
"""Begins the keys of `VLA_STATE` that hold the seconds of each phase of a decision."""

# Topics, absolute. Nodes use them relative to their namespace, so that it can be remapped.
def image_topic(camera: str) -> str:
    """Return the topic of a camera's images."""
    return f'/image_{camera}'


def image_input(camera: str) -> str:
    """Return what nodes call the topic of a camera that they look through.

    The usual ones' is relative, and launch files remap it; any other's is absolute.
    """
    return f'image_{camera}' if camera in CAMERAS else image_topic(camera)


def camera_info_topic(camera: str) -> str:
    """Return the topic that says how a camera projects."""
    return f'/camera_{camera}/camera_info'


IMAGES = {camera: image_topic(camera) for camera in CAMERAS}
JOINT_STATES = '/joint_states'
EE_POSE = '/ee_pose'
INSTRUCTION = '/instruction'
ESTOP = '/estop'
REASONING = '/vla/reasoning'
REASONING_STREAM = '/vla/reasoning_stream'
THOUGHT_OVERRIDE = '/vla/thought_override'
QUESTION = '/vla/question'
ACTION_CHUNK = '/vla/action_chunk'
VLA_STATE = '/vla/state'
VLA_TASKS = '/vla/tasks'
GATE_STATE = '/gate_state'
ACTION = '/action'
TWIST = '/twist_cmd'
TARGET_POSE = '/target_pose'
JOINT_TRAJECTORY = '/joint_trajectory'
JOINT_COMMANDS = '/joint_commands'
GRIPPER = '/gripper_cmd'
HUMAN_TWIST = '/human_twist'
HUMAN_GRIPPER = '/human_gripper'
EPISODE = '/sim/episode'
EPISODE_MARK = '/episode_mark'
RECORD_STATE = '/record_state'
SIM_STATE = '/sim/state'
SIM_TASKS = '/sim/tasks'
CAMERA_INFO = {camera: camera_info_topic(camera) for camera in CAMERAS}
PLANNED_PATH = '/planned_path'
OVERLAY = '/overlay/compressed'

COMMANDS = (ACTION, TWIST, TARGET_POSE)
"""Command topics of arms that are commanded at their end effector."""
JOINT_TARGETS = (JOINT_TRAJECTORY, JOINT_COMMANDS)
"""Command topics of arms that are commanded by their joints. A graph has one of all of these."""
MARKS = {'success': True, 'failure': False}
"""What a person says of an episode on `EPISODE_MARK`, and whether it succeeded."""
RECORDING = 'RECORDING'
"""State on `RECORD_STATE` while a bag is written."""
PAGE_PORT = 8088
"""Of the operator's page, unless it is told otherwise."""
RECORDED = (
    *IMAGES.values(), JOINT_STATES, EE_POSE, INSTRUCTION, ESTOP, REASONING, THOUGHT_OVERRIDE,
    QUESTION, ACTION_CHUNK, VLA_STATE, VLA_TASKS, GATE_STATE, *COMMANDS, *JOINT_TARGETS,
    GRIPPER, HUMAN_TWIST, HUMAN_GRIPPER, EPISODE_MARK, EPISODE, SIM_STATE,
    SIM_TASKS, *CAMERA_INFO.values(), PLANNED_PATH, '/diagnostics', '/clock', '/tf', '/tf_static')
"""Topics of a bag."""


def relative(topic: str, namespace: str = '') -> str:
    """Return a topic's name for a node in a namespace: '/vla/state' is 'state' in '/vla'."""
    return topic.removeprefix(f'{namespace}/')


def understood_as(task: str, said: str | None) -> str:
    """Return, for people, the task that was understood; '' for none, and where it was said so."""
    return f'understood as: {task}' if task not in ('', said) else ''


def parameter(default: Any, description: str, **checks: Any) -> Any:
    """Return a dataclass field that is a node's parameter; checks as `nodes.settings.declare`."""
    return field(default=default, metadata={'description': description, **checks})
