"""Drive an arm behind a CRISP Cartesian controller.

Cameras and controller run already; nothing moves before the gate's start service is called.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration


def generate_launch_description():
    share = Path(get_package_share_directory('dtvla_ros'))
    settings = {
        'params_file': (
            str(share / 'config' / 'robot_crisp.yaml'),
            'Parameters of both nodes; set the workspace box first.'),
        'policy': (
            str(share / 'models' / 'nano'), 'Folder of the policy, its manifest inside.'),
        'command_topic': (
            '/target_pose', 'What the controller listens to.'),
    }
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=default, description=text)
          for name, (default, text) in settings.items()),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(share / 'launch' / 'robot.launch.py')),
            launch_arguments={
                'command': 'target_pose',
                **{name: LaunchConfiguration(name) for name in settings}}.items()),
    ])
