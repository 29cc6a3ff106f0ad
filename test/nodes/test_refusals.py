"""What nodes refuse at their start: bad parameters and files, and message packages not there."""

import sys
from importlib import import_module

import pytest

LEMON = 'put_the_lemon_in_the_blue_bin'


@pytest.fixture
def refusal(graph, capfd):
    """Return what runs a node here that must end with code 2; it returns its last line."""
    def refused(name, *arguments):
        assert import_module(f'dtvla_ros.nodes.{name}').main(['--ros-args', *arguments]) == 2
        printed = capfd.readouterr().err
        line = printed.splitlines()[-1]
        assert line.startswith('error: ') and 'Traceback' not in printed, printed
        return line
    return refused


@pytest.mark.parametrize(('name', 'parameters', 'words'), [
    ('vla_node', ['policy:=no/such/policy', 'autostart:=true'], ['no/such/policy', 'manifest']),
    ('vla_node', ['mode:=random'], ['mode', 'random', 'masked', 'dtvla eval --mode']),
    ('sim_bridge', ['tasks:=[fly_to_the_moon]'], ['fly_to_the_moon', LEMON]),
    ('sim_bridge', ['reset_task:=fly_to_the_moon'], ['reset_task', LEMON]),
    ('sim_bridge', ['suite:=kitchen'], ['kitchen', 'tabletop']),
    ('overlay', ['transport:=pigeon'], ['transport = "pigeon"; choose from raw, compressed']),
    ('operator', ['host:=0.0.0.0'], ['host = "0.0.0.0"', 'set token', 'secrets']),
    ('operator', ['token:=abc'], ['token: 3 characters', 'at least 16']),
    ('command_gate', ['preset:=forward_position', 'action_space:=JOINT_POSITION',
                      'joint_lower:=[-1.0]', 'joint_upper:=[1.0]'],
     ['controller_timeout_s = 0', 'preset = "joint_trajectory"']),
    ('command_gate', ['preset:=joint_trajectory'],
     ['preset = "joint_trajectory" takes no OSC_POSE', 'servo, crisp, fzi']),
    ('command_gate', ['preset:=servo', 'action_space:=JOINT_POSITION', 'joint_lower:=[-1.0]',
                      'joint_upper:=[1.0]'],
     ['preset = "servo" takes no JOINT_POSITION', 'joint_trajectory, forward_position']),
    ('command_gate', ['gripper_width:=0.08'], ['gripper_width = 0.08', 'finger_open_position']),
    ('command_gate', ['linear_speed:=-1.0'], ['linear_speed', '-1.0', 'range']),
    ('command_gate', ['action_space:=POSE'], ['action_space = "POSE"; choose from OSC_POSE']),
    ('command_gate', ['action_space:=OSC_POSE_ABSOLUTE', 'preset:=joint_trajectory'],
     ['preset = "joint_trajectory" takes no OSC_POSE_ABSOLUTE', 'sim_osc, servo, crisp, fzi']),
    ('command_gate', ['action_space:=OSC_POSE_ABSOLUTE', 'pose_timeout_s:=0.0'],
     ['pose_timeout_s = 0', 'OSC_POSE_ABSOLUTE']),
    ('command_gate', ['preset:=sim_joints'],
     ['preset = "sim_joints" takes no OSC_POSE', 'sim_osc, servo']),
    ('command_gate', ['action_space:=JOINT_POSITION', 'preset:=sim_joints'],
     ['joint_lower: no lower limit of panda_joint1']),
    ('command_gate', ['action_space:=JOINT_DELTA', 'joint_lower:=[-3.0]', 'joint_upper:=[3.0]'],
     ['preset = "sim_osc" takes no JOINT_DELTA', 'sim_joints']),
    ('vla_node', ['cameras:=[front]', 'autostart:=true'],
     ['models/nano wants the cameras primary, wrist', 'cameras is front']),
    ('vla_node', ['action_space:=JOINT_POSITION', 'autostart:=true'],
     ['models/nano', 'the action space is OSC_POSE', 'not JOINT_POSITION', 'arm_joints']),
    ('vla_node', ['action_space:=OSC_POSE_ABSOLUTE', 'autostart:=true'],
     ['models/nano', 'the action space is OSC_POSE', 'not OSC_POSE_ABSOLUTE']),
    ('vla_node', ['chunk_rate:=10.0', 'autostart:=true'],
     ['models/nano', 'the rate is 20 Hz, not 10 Hz', 'chunk_rate']),
    ('vla_node', ['gripper_opens_at:=0.0', 'autostart:=true'],
     ['OSC_POSE opens the gripper at -1 and closes it at 1, got 0 and 1'])])
def test_a_bad_parameter_is_named(refusal, name, parameters, words):
    line = refusal(name, *(word for p in parameters for word in ('-p', p)))
    assert all(word in line for word in words), line


BOX = 'workspace_high: [0.7, 0.35, 0.5]'


@pytest.mark.parametrize(('name', 'section', 'values', 'words'), [
    ('command_gate', '/command_gate', 'workspace_high: [0.7, 0.35]',
     ['workspace_high = [0.7, 0.35]', '2 values, 3 expected']),
    ('command_gate', '/command_gate', 'workspace_low: [0.3, -0.3, 0.0, 0.1]', ['3 expected']),
    ('command_gate', '/command_gate', 'workspace_low: [0, 0, 0]',
     ['workspace_low', '[0, 0, 0]', 'DOUBLE_ARRAY', 'write 2.0 for 2']),
    ('command_gate', '/command_gate', 'workspace_low: [.nan, 0.0, 0.0]', ['workspace', 'nan']),
    ('command_gate', '/command_gate', 'linear_speed: .nan', ['linear_speed', 'nan', 'range']),
    ('command_gate', '/command_gate', 'arm_joints: [a, b, a]', ['arm_joints', 'twice']),
    ('vla_node', '/**', 'finger_joints: []', ['finger_joints is empty']),
    ('command_gate', '/command_gate', 'workspace_hihg: [0.7, 0.3, 0.5]',
     ['workspace_hihg', 'nearest is workspace_high']),
    ('command_gate', '/**', 'workspace_hihg: [0.7, 0.3, 0.5]', ['nearest is workspace_high']),
    ('command_gate', 'command_gate', 'limits: {linear_speed: 0.1}', ['limits.linear_speed']),
    ('vla_node', '/**/vla_node', 'polcy: models/nano', ['polcy', 'nearest is policy']),
    ('overlay', '/*', 'jpeg_qualtiy: 3', ['nearest is jpeg_quality']),
    ('command_gate', '/gate', BOX, ['/gate', 'not for /command_gate', '"/command_gate"']),
    ('command_gate', '/robot/command_gate', BOX, ['not for /command_gate']),
    ('command_gate', '/*/command_gate', BOX, ['not for /command_gate']),
    ('vla_node', 'vla_node', 'threads: 2', ['not for /vla/vla_node'])])
def test_a_parameter_file_that_would_be_left_out_is_refused(
        refusal, tmp_path, name, section, values, words):
    path = tmp_path / 'cell.yaml'
    path.write_text(f'{section}: {{ros__parameters: {{{values}}}}}')
    names = ['-r', '__ns:=/vla'] if name == 'vla_node' else []
    line = refusal(name, *names, '--params-file', str(path))
    assert all(word in line for word in (*words, str(path))), line


@pytest.mark.parametrize(('words', 'said'), [
    (['-p', 'workspace_hihg:=[0.7]'], 'nearest is workspace_high'),
    (['-p', 'moon:=3'], 'has no parameter moon; it has acceleration'),
    (['-p', 'gate:rate:=20.0'], 'the node is /command_gate')])
def test_a_parameter_on_the_command_line_that_would_be_left_out_is_refused(refusal, words, said):
    assert said in refusal('command_gate', *words)


@pytest.mark.parametrize(('name', 'parameters', 'package'), [
    *((name, ['pose_source:=tf'], 'tf2_msgs') for name in ('vla_node', 'command_gate')),
    ('command_gate', ['preset:=servo', 'gripper:=gripper_command'], 'control_msgs'),
    ('command_gate', ['preset:=crisp', 'gripper:=parallel_gripper_command'], 'control_msgs'),
    ('command_gate', ['arm_status:=servo'], 'moveit_msgs')])
def test_a_message_that_is_not_installed_is_named(refusal, monkeypatch, name, parameters, package):
    for module in [m for m in sys.modules if m.partition('.')[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    line = refusal(name, *(word for p in parameters for word in ('-p', p)))
    parameter, value = parameters[-1].split(':=')
    assert line.startswith(f'error: parameter {parameter} = "{value}": ') and package in line
