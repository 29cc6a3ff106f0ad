"""Drive an arm behind an FZI Cartesian controller. Cameras and controller run already; call the gate's start service to move."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import SetRemap


def generate_launch_description():
    share = Path(get_package_share_directory('dtvla_ros'))
    arguments = [
        DeclareLaunchArgument(
            'params_file', default_value=str(share / 'config' / 'robot_fzi.yaml'),
            description='Parameters of both nodes; set the workspace box first.'),
        DeclareLaunchArgument(
            'policy', default_value=str(share / 'models' / 'nano'),
            description='Folder of the policy, its manifest inside.'),
        DeclareLaunchArgument(
            'command_topic', default_value='/cartesian_compliance_controller/target_frame',
            description='The controller\'s pose input.'),
    ]
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share / 'launch' / 'policy.launch.py')),
        launch_arguments={
            'params_file': LaunchConfiguration('params_file'),
            'policy': LaunchConfiguration('policy')}.items())
    remapped = GroupAction(
        [SetRemap(src='target_pose', dst=LaunchConfiguration('command_topic')), policy])
    return LaunchDescription([*arguments, remapped])
