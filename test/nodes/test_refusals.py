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
    ('command_gate', ['linear_speed:=-1.0'], ['linear_speed', '-1.0', 'range'])])
def test_a_bad_parameter_is_named(refusal, name, parameters, words):
    line = refusal(name, *(word for p in parameters for word in ('-p', p)))
    assert all(word in line for word in words), line


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
