"""Start a simulated arm with cameras, the policy and the command gate; end after the episodes."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def number(argument):
    return ParameterValue(LaunchConfiguration(argument), value_type=int)


def generate_launch_description():
    share = Path(get_package_share_directory('dtvla_ros'))
    arguments = [
        DeclareLaunchArgument(
            'params_file', default_value=str(share / 'config' / 'sim.yaml'),
            description='Parameters of all nodes. sim.yaml: lock-step, time waits for the '
                        'policy; sim_realtime.yaml: wall clock, thinking takes time.'),
        DeclareLaunchArgument(
            'suite', default_value='tabletop', description='Scenes and tasks.'),
        DeclareLaunchArgument(
            'tasks', default_value="['']",
            description="Task names, e.g. ['a', 'b']; ['']: all of the suite."),
        DeclareLaunchArgument('episodes', default_value='1', description='Episodes per task.'),
        DeclareLaunchArgument(
            'seed', default_value='1000000',
            description='Seed of the first episode of each task; from 1000000 on nothing was '
                        'trained on.'),
        DeclareLaunchArgument(
            'result_file', default_value='',
            description='JSON file for successes, seeds and versions; empty: none.'),
        DeclareLaunchArgument(
            'use_sim_time', default_value='true', choices=['true'],
            description="The simulator's clock is the only one here."),
        DeclareLaunchArgument(
            'transport', default_value='raw', choices=['raw'],
            description='The simulator publishes sensor_msgs/Image.'),
    ]
    bridge = Node(
        package='dtvla_ros', executable='sim_bridge', name='sim_bridge', namespace='',
        output='screen',
        parameters=[LaunchConfiguration('params_file'), {
            'suite': LaunchConfiguration('suite'),
            'tasks': ParameterValue(LaunchConfiguration('tasks'), value_type=list[str]),
            'episodes': number('episodes'), 'seed': number('seed'),
            'result_file': ParameterValue(LaunchConfiguration('result_file'), value_type=str)}])
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share / 'launch' / 'policy.launch.py')))
    over = RegisterEventHandler(OnProcessExit(
        target_action=bridge, on_exit=[EmitEvent(event=Shutdown(reason='all episodes ran'))]))
    return LaunchDescription([*arguments, bridge, policy, over])
