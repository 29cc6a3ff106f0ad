"""Start the policy and the command gate; cameras and arm are somebody else's."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARED = ('image_primary', 'image_wrist', 'joint_states', 'ee_pose', 'instruction', 'estop')


def generate_launch_description():
    share = Path(get_package_share_directory('dtvla_ros'))
    params = LaunchConfiguration('params_file')
    arguments = [
        DeclareLaunchArgument(
            'params_file', default_value=str(share / 'config' / 'sim.yaml'),
            description='Parameters of both nodes, ROS YAML.'),
        DeclareLaunchArgument(
            'policy', default_value=str(share / 'models' / 'nano'),
            description='Folder of the policy, its manifest inside.'),
        DeclareLaunchArgument(
            'namespace', default_value='vla', description='Namespace of the policy node.'),
        *(DeclareLaunchArgument(
            name, default_value=f'/{name}', description=f"Topic of the policy's {name}.")
          for name in SHARED),
    ]
    policy = Node(
        package='dtvla_ros', executable='vla_node', name='vla_node',
        namespace=LaunchConfiguration('namespace'), output='screen',
        parameters=[params, {'policy': LaunchConfiguration('policy')}],
        remappings=[(name, LaunchConfiguration(name)) for name in SHARED])
    gate = Node(
        package='dtvla_ros', executable='command_gate', name='command_gate', output='screen',
        parameters=[params],
        remappings=[
            *((name, LaunchConfiguration(name)) for name in ('joint_states', 'ee_pose', 'estop')),
            ('vla/action_chunk', ['/', LaunchConfiguration('namespace'), '/action_chunk']),
            ('vla/state', ['/', LaunchConfiguration('namespace'), '/state'])])
    return LaunchDescription([*arguments, policy, gate])
