"""Count successes over topics, in lock-step; write a JSON result and end."""

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

SHARE = get_package_share_directory('dtvla_ros')


def end_without(event, context):
    """End when one of the loop is gone: in lock-step the others would wait for it for ever."""
    name = event.process_name.rpartition('-')[0]
    needed = name in ('vla_node', 'command_gate')
    return [EmitEvent(event=Shutdown(reason=f'{name} ended'))] if needed else []


def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument('episodes', default_value='50', description='Episodes per task.'),
        DeclareLaunchArgument(
            'result_file', default_value='evaluation.json',
            description='JSON file for successes, seeds and versions.'),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(f'{SHARE}/launch/sim.launch.py')),
        RegisterEventHandler(OnProcessExit(on_exit=end_without))])
