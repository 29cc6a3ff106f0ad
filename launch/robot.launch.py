"""Drive an arm behind MoveIt Servo, a CRISP or an FZI Cartesian controller.

Cameras and controller run already; nothing moves before the gate's start service is called.
"""

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PythonExpression

from dtvla_ros.ros.bringup import COMMAND, COMMAND_TOPICS

SHARE = get_package_share_directory('dtvla_ros')


def generate_launch_description():
    preset = LaunchConfiguration('preset')
    return LaunchDescription([
        DeclareLaunchArgument(
            'preset', choices=list(COMMAND_TOPICS),
            description='The controller: MoveIt Servo takes twists; CRISP and FZI take poses.'),
        DeclareLaunchArgument(
            'params_file', default_value=[f'{SHARE}/config/robot_', preset, '.yaml'],
            description='Parameters of all nodes; set the workspace box to your cell first.'),
        DeclareLaunchArgument(
            'command_topic', default_value=PythonExpression([f"{COMMAND_TOPICS}['", preset, "']"]),
            description=COMMAND['command_topic'][1]),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(f'{SHARE}/launch/policy.launch.py'))])
