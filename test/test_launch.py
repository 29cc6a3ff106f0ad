"""Launch files: what they name exists; under genuine launch also what they would start."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock, patch

import pytest
import yaml

from dtvla_ros.conventions import MODES
from dtvla_ros.errors import UserError
from dtvla_ros.ros.bringup import OPTIONAL
from dtvla_ros.ros.params_file import ParameterFile, find_robot, robots
from dtvla_ros.ros.runner import plan

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
COMMANDS = re.findall(r"'(\w+) = dtvla_ros", (ROOT / 'setup.py').read_text())
PARAMETERS = {'use_sim_time', *(
    ''.join(found) for file in ROOT.glob('dtvla_ros/[nrs]*/*.py') for found in re.findall(
        r"declare\(\s*\w+, '(\w+)'|^    (\w+): [^\n]+ = parameter\(", file.read_text(),
        re.MULTILINE))}


FOREIGN = {'robot_state_publisher': 'robot_state_publisher', 'ros_gz_bridge': 'parameter_bridge',
           'controller_manager': 'spawner', 'ros_gz_sim': 'create'}


def asked_of_launch(path):
    """Run a launch file with a stand-in for launch; return that, with the calls it got."""
    ros = MagicMock()
    ros.get_package_share_directory.return_value = str(ROOT)
    modules = re.findall(r'^from ((?:ament|launch)\S*) import', path.read_text(), re.MULTILINE)
    with patch.dict(sys.modules, dict.fromkeys(modules, ros)):
        runpy.run_path(str(path))['generate_launch_description']()
        given = {name: made.kwargs.get('default_value') or next(
                     filter(None, made.kwargs.get('choices') or ()), '')
                 for made in ros.DeclareLaunchArgument.call_args_list for name in made.args}
        for made in ros.OpaqueFunction.call_args_list:
            made.kwargs['function'](MagicMock(launch_configurations={
                **given, **dict.fromkeys(OPTIONAL, 'true')}))
    return ros


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_what_a_launch_file_names_exists_and_every_argument_explains_itself(path):
    ros = asked_of_launch(path)
    for call in (*ros.Node.call_args_list, *ros.ExecutableInPackage.call_args_list):
        if call.kwargs['package'] == 'dtvla_ros':
            assert call.kwargs['executable'] in COMMANDS
            tables = [p for p in call.kwargs.get('parameters', ()) if isinstance(p, dict)]
            assert set().union(*tables) <= PARAMETERS
    places = [Path(place) for place in re.findall(rf'{ROOT}[\w/.]*', str(ros.mock_calls))]
    assert places and all(any(p.parent.glob(f'{p.name}*')) for p in places)
    assert ros.DeclareLaunchArgument.call_args_list
    for (name,), given in ros.DeclareLaunchArgument.call_args_list:
        assert len(given['description']) > 10 and given['description'].endswith('.'), name
        choices, default = given.get('choices'), given.get('default_value')
        assert (default is None or default in choices) if choices else (
            default not in ('true', 'false')), name
        assert name != 'mode' or choices == list(MODES)


# From here on with genuine launch only.


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    """Install the source tree the way colcon does, with scripts that stand for the nodes."""
    pytest.importorskip('launch_ros', reason='no launch_ros: it comes with a sourced ROS or pixi')
    for package in ('dtvla_ros', *FOREIGN):  # the foreign ones: not where this test has ever run
        for folder in ('share/ament_index/resource_index/packages', f'lib/{package}',
                       f'share/{package}'):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / 'share/ament_index/resource_index/packages' / package).write_text('')
        for name in COMMANDS if package == 'dtvla_ros' else [FOREIGN[package]]:
            program = tmp_path / 'lib' / package / name
            program.write_text('#!/bin/sh\n')
            program.chmod(0o755)
    share = tmp_path / 'share/dtvla_ros'
    shutil.copytree(ROOT / 'launch', share / 'launch')  # ros2 launch follows no linked folder
    for folder in ('config', 'models'):
        (share / folder).symlink_to(ROOT / folder)
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path), os.pathsep)
    return tmp_path


def started(name, **arguments):
    """Return the words of every process that a launch file would start, by program."""
    from launch import LaunchContext
    from launch.actions import ExecuteProcess
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    from launch.utilities import perform_substitutions
    from launch_ros.actions import Node

    context = LaunchContext()
    context.launch_configurations.update(arguments)
    found = {}

    def visit(entity):
        if isinstance(entity, ExecuteProcess):
            if entity.condition is not None and not entity.condition.evaluate(context):
                return
            if isinstance(entity, Node):
                entity._perform_substitutions(context)
                context.extend_locals({'ros_specific_arguments': {
                    'name': f'__node:={entity.node_name.rpartition("/")[2]}',
                    'ns': f'__ns:={entity.node_name.rpartition("/")[0] or "/"}'}})
            words = [perform_substitutions(context, w) for w in entity.cmd]
            found[Path(words[0]).name] = words
            return
        for below in entity.visit(context) or []:
            visit(below)

    visit(get_launch_description_from_python_launch_file(
        str(ROOT / 'launch' / f'{name}.launch.py')))
    return found


def given_to(words):
    """Return (parameters as the node ends up with, remappings) of a command line."""
    import rclpy

    remaps = dict(w.split(':=') for flag, w in zip(words, words[1:]) if flag == '-r')
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=1 + os.getpid() % 100)
    try:  # what a node would be given is asked of a node
        node = rclpy.create_node(
            'unnamed', context=context, cli_args=words[words.index('--ros-args'):],
            automatically_declare_parameters_from_overrides=True, enable_rosout=False,
            start_parameter_services=False)
        values = {name: parameter.value for name, parameter in node._parameters.items()}
        assert node.get_name() == remaps.pop('__node')
        assert node.get_namespace() == (remaps.pop('__ns', '') or '/')
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    return values, remaps


@pytest.mark.parametrize('path', [p for p in FILES if 'gazebo' not in p.stem],
                         ids=lambda p: p.stem)
def test_ros_itself_shows_every_argument(prefix, path):
    program = 'import sys; from ros2cli.cli import main; sys.exit(main())'
    done = subprocess.run([sys.executable, '-c', program, 'launch', 'dtvla_ros',
                           path.name, '--show-args'], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {'params_file', 'policy', 'use_sim_time', 'transport', 'overlay', 'viz', 'record',
            'namespace'} <= set(re.findall(r"'(\w+)':", done.stdout))
    assert 'No description given' not in done.stdout


def test_arguments_win_over_the_parameter_file_and_an_evaluation_leaves_its_result(prefix):
    asked = {'mode': 'masked', 'policy': '/a/released', 'engine': 'torch', 'device': 'cuda'}
    nodes = started('sim', episodes='7', seed='1000050', tasks="['a', 'b']", **asked)
    assert set(nodes) == {'sim_bridge', 'vla_node', 'command_gate'}
    given = {name: given_to(words)[0] for name, words in nodes.items()}
    assert given['sim_bridge'].items() >= {
        'episodes': 7, 'seed': 1_000_050, 'tasks': ['a', 'b'], 'lockstep': True}.items()
    assert given['vla_node'].items() >= (asked | {'autostart': True}).items()
    assert all(values['use_sim_time'] is True for values in given.values())
    assert given_to(started('evaluate')['sim_bridge'])[0].items() >= {
        'episodes': 50, 'result_file': 'evaluation.json', 'lockstep': True}.items()


@pytest.mark.parametrize('robot', robots())
def test_a_robots_launch_file_starts_what_dtvla_run_starts(prefix, robot):
    planned = plan(ParameterFile.read(find_robot(robot)), {})
    nodes = started('robot', robot=robot)
    assert nodes.keys() == planned.keys()
    for name, words in nodes.items():
        values, remaps = given_to(words)
        assert dict(planned[name].remappings).items() <= remaps.items(), name
        assert values['use_sim_time'] is (robot == 'panda_sim')
    values, _ = given_to(nodes['command_gate'])
    assert values['auto_start'] is False
    if robot != 'panda_sim':
        nodes = started('robot', robot=robot, command_topic='/mine', image_wrist='/hand')
        assert given_to(nodes['command_gate'])[1]['twist_cmd'] == '/mine'
        assert given_to(nodes['vla_node'])[1]['image_wrist'] == '/hand'


def test_a_file_of_your_own_takes_a_robots_place_and_former_names_say_what_to_use(prefix):
    own = prefix / 'cell.yaml'
    own.write_text('/bringup: {ros__parameters: {image_wrist: /hand}}\n'
                   '/vla/vla_node: {ros__parameters: {threads: 2}}\n'
                   '/command_gate: {ros__parameters: {preset: servo}}\n')
    nodes = started('robot', params_file=str(own))
    assert given_to(nodes['vla_node'])[1]['image_wrist'] == '/hand'
    assert given_to(nodes['command_gate'])[1]['twist_cmd'] == '/servo_node/delta_twist_cmds'
    with pytest.raises(UserError, match='robot:=fr3_crisp'):
        started('robot', preset='crisp')
    with pytest.raises(UserError, match='robot:= is missing; choose from .*fr3_servo'):
        started('robot')


def test_gate_and_policy_meet_in_any_namespace_and_viewers_start_when_asked_for(prefix):
    nodes = started('policy', namespace='mind', transport='compressed', overlay='true')
    assert nodes['vla_node'][nodes['vla_node'].index('-r') + 1].startswith('__n')
    _, policy = given_to(nodes['vla_node'])
    assert policy['image_primary'] == '/image_primary/compressed'
    for name in ('command_gate', 'overlay'):
        values, remaps = given_to(nodes[name])
        assert remaps['vla/action_chunk'] == '/mind/action_chunk'
    assert values['transport'] == 'compressed'
    assert remaps['image_wrist'] == '/image_wrist/compressed'
    own = prefix / 'cell.yaml'
    own.write_text('/vla/vla_node: {ros__parameters: {threads: 2}}\n'
                   '/command_gate: {ros__parameters: {preset: crisp}}\n')
    nodes = started('policy', params_file=str(own), overlay='true')
    assert str(own) in nodes['command_gate'] and str(own) not in nodes['overlay']
    words = started('policy', viz='rerun', record='out/bag of today')['dtvla']
    assert words[1:5] == ['record', '--out', 'out/bag of today', '--params-file']
    assert started('policy', viz='rerun')['dtvla'][1:] == ['view', '--spawn']
    assert set(started('policy')) == {'vla_node', 'command_gate'}
    nodes = started('sim', namespace='mind', image_wrist='/hand')
    assert given_to(nodes['sim_bridge'])[1].items() >= {
        'vla/state': '/mind/state', 'image_wrist': '/hand'}.items()


GZ_SIM = """
from launch import LaunchDescription, actions, substitutions
def generate_launch_description():
    return LaunchDescription([
        *map(actions.DeclareLaunchArgument, ('gz_args', 'on_exit_shutdown')),
        actions.ExecuteProcess(cmd=['gz_sim', substitutions.LaunchConfiguration('gz_args')])])
"""


def test_gazebo_gets_the_world_and_the_gate_its_controllers(prefix, tmp_path):
    (prefix / 'share/ros_gz_sim/launch').mkdir()
    (prefix / 'share/ros_gz_sim/launch/gz_sim.launch.py').write_text(GZ_SIM)
    world = tmp_path / 'world'
    world.mkdir()
    (world / 'panda.urdf').write_text('<robot name="panda"/>')
    processes = started('gazebo', world=str(world), gui='false')
    assert processes['gz_sim'][1] == f'-r -s --headless-rendering {world}/world.sdf'
    settings = yaml.safe_load((ROOT / 'config/gazebo_controllers.yaml').read_text())
    kinds = settings['controller_manager']['ros__parameters'].keys() - {'update_rate'}
    assert kinds <= set(processes['spawner'])
    values, remaps = given_to(processes['command_gate'])
    assert values['preset'] == 'fzi' and values['use_sim_time'] is True
    assert remaps['target_pose'] == '/cartesian_motion_controller/target_frame'
    assert remaps['gripper_action/_action/send_goal'] == (
        '/gripper_controller/gripper_cmd/_action/send_goal')
    described, _ = given_to([*processes['robot_state_publisher'], '-r', '__node:=rsp'])
    assert described['robot_description'] == '<robot name="panda"/>'
    assert described['publish_frequency'] == settings[
        'controller_manager']['ros__parameters']['update_rate']
