"""Start a simulated arm with cameras, the policy and the command gate; end after the episodes."""

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

SHARE = get_package_share_directory('dtvla_ros')
ARGUMENTS = {  # default, meaning, choices
    'params_file': (f'{SHARE}/config/sim.yaml',
                    'Parameters of all nodes. sim.yaml: lock-step, time waits for the policy; '
                    'sim_realtime.yaml: wall clock, thinking takes time.'),
    'suite': ('tabletop', 'Scenes and tasks.'),
    'tasks': ("['']", "Task names, e.g. ['a', 'b']; ['']: all of the suite."),
    'episodes': ('1', 'Episodes per task.'),
    'seed': ('1000000', 'Seed of the first episode of each task; from 1000000 on nothing was '
             'trained on.'),
    'result_file': ('', 'JSON file for successes, seeds and versions; empty: none.'),
    'use_sim_time': ('true', "The simulator's clock is the only one here.", 'true'),
    'transport': ('raw', 'The simulator publishes sensor_msgs/Image.', 'raw')}
TYPES = {'suite': str, 'tasks': list[str], 'episodes': int, 'seed': int, 'result_file': str}


def generate_launch_description():
    bridge = Node(
        package='dtvla_ros', executable='sim_bridge', name='sim_bridge', namespace='',
        output='screen', parameters=[LaunchConfiguration('params_file'), {
            name: ParameterValue(LaunchConfiguration(name), value_type=kind)
            for name, kind in TYPES.items()}])
    return LaunchDescription([
        *(DeclareLaunchArgument(
            name, default_value=default, description=meaning, choices=choices or None)
          for name, (default, meaning, *choices) in ARGUMENTS.items()),
        bridge,
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(f'{SHARE}/launch/policy.launch.py')),
        RegisterEventHandler(OnProcessExit(target_action=bridge, on_exit=[
            EmitEvent(event=Shutdown(reason='all episodes ran'))]))])
