"""Drive an arm behind MoveIt Servo, a CRISP or an FZI Cartesian controller.

Cameras and controller run already; nothing moves before the gate's start service is called.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import SetRemap

COMMAND_TOPICS = {
    'servo': '/servo_node/delta_twist_cmds',
    'crisp': '/target_pose',
    'fzi': '/cartesian_compliance_controller/target_frame',
}


def generate_launch_description():
    share = Path(get_package_share_directory('dtvla_ros'))
    preset = LaunchConfiguration('preset')
    topic = PythonExpression([str(COMMAND_TOPICS), "['", preset, "']"])
    return LaunchDescription([
        DeclareLaunchArgument(
            'preset', choices=['servo', 'crisp', 'fzi'],
            description='The controller: MoveIt Servo takes twists; CRISP and FZI take poses.'),
        DeclareLaunchArgument(
            'params_file', default_value=[str(share / 'config'), '/robot_', preset, '.yaml'],
            description='Parameters of all nodes; set the workspace box to your cell first.'),
        DeclareLaunchArgument(
            'command_topic', default_value=topic,
            description="The controller's input, geometry_msgs/TwistStamped or PoseStamped."),
        GroupAction([
            *(SetRemap(src=name, dst=LaunchConfiguration('command_topic'))
              for name in ('twist_cmd', 'target_pose')),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(share / 'launch' / 'policy.launch.py'))),
        ]),
    ])
