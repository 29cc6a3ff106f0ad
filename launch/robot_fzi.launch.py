"""Drive an arm behind an FZI Cartesian controller.

Cameras and controller run already; nothing moves before the gate's start service is called.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import SetRemap


def generate_launch_description():
    share = Path(get_package_share_directory('dtvla_ros'))
    return LaunchDescription([
        DeclareLaunchArgument(
            'params_file', default_value=str(share / 'config' / 'robot_fzi.yaml'),
            description='Parameters of all nodes; set the workspace box to your cell first.'),
        DeclareLaunchArgument(
            'command_topic', default_value='/cartesian_compliance_controller/target_frame',
            description="The controller's target, geometry_msgs/PoseStamped."),
        GroupAction([
            SetRemap(src='target_pose', dst=LaunchConfiguration('command_topic')),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(share / 'launch' / 'policy.launch.py'))),
        ]),
    ])
