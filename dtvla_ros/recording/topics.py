"""The topics that the package defines, as the launch files name them."""

from __future__ import annotations

CAMERAS = {'primary': '/image_primary', 'wrist': '/image_wrist'}
JOINTS = '/joint_states'
POSE = '/ee_pose'
INSTRUCTION = '/instruction'
ESTOP = '/estop'
REASONING = '/vla/reasoning'
CHUNK = '/vla/action_chunk'
STATE = '/vla/state'
GATE_STATE = '/gate_state'
ACTION = '/action'
TWIST = '/twist_cmd'
TARGET = '/target_pose'
GRIPPER = '/gripper_cmd'
EPISODE = '/sim/episode'
SIMULATOR = ('/sim/state', '/sim/tasks', '/camera_primary/camera_info',
             '/camera_wrist/camera_info')
PLANNED_PATH = '/planned_path'

COMMANDS = (ACTION, TWIST, TARGET)  # one of them, by the gate's preset
RECORDED = (
    *CAMERAS.values(), JOINTS, POSE, INSTRUCTION, ESTOP, REASONING, CHUNK, STATE, GATE_STATE,
    *COMMANDS, GRIPPER, EPISODE, *SIMULATOR, PLANNED_PATH, '/diagnostics',
    '/clock', '/tf', '/tf_static')

UNFINISHED = '…'  # ends a thought that is still being written
