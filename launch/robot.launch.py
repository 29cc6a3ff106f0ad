"""Policy and gate for a real arm; robot_servo, robot_crisp and robot_fzi fill the arguments in."""

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
            'params_file', description='Parameters of both nodes; set the workspace box first.'),
        DeclareLaunchArgument(
            'policy', default_value=str(share / 'models' / 'nano'),
            description='Folder of the policy, its manifest inside.'),
        DeclareLaunchArgument('command', description="The gate's topic: twist_cmd, target_pose."),
        DeclareLaunchArgument('command_topic', description='What the controller listens to.'),
    ]
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share / 'launch' / 'policy.launch.py')),
        launch_arguments={
            'params_file': LaunchConfiguration('params_file'),
            'policy': LaunchConfiguration('policy')}.items())
    remap = SetRemap(
        src=LaunchConfiguration('command'), dst=LaunchConfiguration('command_topic'))
    return LaunchDescription([*arguments, GroupAction([remap, policy])])
