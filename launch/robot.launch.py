"""Drive an arm that starts as shipped, or one of your own by its parameter file.

Cameras and controllers run already; nothing moves before the gate's start service is called.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource

from dtvla_ros.errors import UserError
from dtvla_ros.ros import bringup
from dtvla_ros.ros.params_file import FORMER, ParameterFile

SHARE = get_package_share_directory('dtvla_ros')
ROBOTS = sorted(path.stem for path in Path(SHARE, 'config/robots').glob('*.yaml'))


def choose(context):
    """Let the robot's file give what the command line does not: names of topics, the clock."""
    given = context.launch_configurations
    if former := given.get('preset'):
        raise UserError(f'preset:={former} is robot:={FORMER.get(former, ROBOTS[0])} now')
    if not given.get('params_file'):
        if not given.get('robot'):
            raise UserError(f'robot:= is missing; choose from {", ".join(ROBOTS)}, or name a '
                            'file of your own by params_file:=')
        given['params_file'] = f'{SHARE}/config/robots/{given["robot"]}.yaml'
    file = ParameterFile.read(Path(given['params_file']))
    usual = bringup.COMMAND_TOPICS.get(str(file.of('/command_gate').get('preset')))
    of_file = ({'command_topic': usual} if usual else {}) | bringup.told_by(file)
    for name, value in of_file.items():
        given.setdefault(name, value)
    return []


def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument(
            'robot', default_value='', choices=['', *ROBOTS],
            description='Arm and controller, a file of config/robots.'),
        DeclareLaunchArgument(
            'params_file', default_value='',
            description='Parameters of all nodes, a copy of such a file, with the workspace box '
            "of your cell; empty: the robot's."),
        DeclareLaunchArgument(
            'preset', default_value='', description='Former name of robot, refused.'),
        OpaqueFunction(function=choose),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(f'{SHARE}/launch/policy.launch.py'))])
