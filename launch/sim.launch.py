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

from dtvla_ros.ros import bringup

SHARE = get_package_share_directory('dtvla_ros')
ARGUMENTS = {  # default, meaning, choices
    'params_file': (f'{SHARE}/config/sim.yaml',
                    'Parameters of all nodes. sim.yaml: lock-step, time waits for the policy; '
                    'sim_realtime.yaml: wall clock, thinking takes time.'),
    **bringup.SIMULATION,  # by which policy.launch.py starts sim_bridge, too
    'use_sim_time': ('true', "The simulator's clock is the only one here.", 'true'),
    'transport': ('raw', 'The simulator publishes sensor_msgs/Image.', 'raw')}


def end_with_bridge(event, context):
    over = event.process_name.rpartition('-')[0] == 'sim_bridge'
    return [EmitEvent(event=Shutdown(reason='all episodes ran'))] if over else []


def generate_launch_description():
    return LaunchDescription([
        *(DeclareLaunchArgument(
            name, default_value=default, description=meaning, choices=choices or None)
          for name, (default, meaning, *choices) in ARGUMENTS.items()),
        RegisterEventHandler(OnProcessExit(on_exit=end_with_bridge)),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(f'{SHARE}/launch/policy.launch.py'))])
