"""Start a simulated arm with cameras, the policy and the command gate."""

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


def generate_launch_description():
    share = Path(get_package_share_directory('dtvla_ros'))
    params = LaunchConfiguration('params_file')
    arguments = [
        DeclareLaunchArgument(
            'params_file', default_value=str(share / 'config' / 'sim.yaml'),
            description='Parameters of all nodes; sim_realtime.yaml for the wall clock.'),
        DeclareLaunchArgument('suite', default_value='tabletop', description='Scenes and tasks.'),
        DeclareLaunchArgument(
            'tasks', default_value="['']",
            description="Task names, e.g. ['a', 'b']; [''] means all."),
        DeclareLaunchArgument('episodes', default_value='1', description='Episodes per task.'),
        DeclareLaunchArgument(
            'seed', default_value='1000000',
            description='Seed of the first episode of each task.'),
        DeclareLaunchArgument(
            'policy', default_value=str(share / 'models' / 'nano'),
            description='Folder of the policy, its manifest inside.'),
    ]
    bridge = Node(
        package='dtvla_ros', executable='sim_bridge', name='sim_bridge', output='screen',
        parameters=[params, {
            'suite': LaunchConfiguration('suite'),
            'tasks': ParameterValue(LaunchConfiguration('tasks'), value_type=list[str]),
            'episodes': ParameterValue(LaunchConfiguration('episodes'), value_type=int),
            'seed': ParameterValue(LaunchConfiguration('seed'), value_type=int)}])
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share / 'launch' / 'policy.launch.py')),
        launch_arguments={
            'params_file': params, 'policy': LaunchConfiguration('policy')}.items())
    over = RegisterEventHandler(OnProcessExit(
        target_action=bridge, on_exit=[EmitEvent(event=Shutdown(reason='all episodes ran'))]))
    return LaunchDescription([*arguments, bridge, policy, over])
