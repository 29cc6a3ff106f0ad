"""The tabletop in Gazebo (Jazzy): world, controllers, policy and command gate.

The world comes from ``python3 -m dtvla_sim.gazebo --out FOLDER``; the Cartesian controller is
cartesian_motion_controller of FZI's cartesian_controllers.
"""

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import (
    Command,
    LaunchConfiguration,
    PathJoinSubstitution,
    PythonExpression,
)
from launch_ros.actions import Node, SetRemap
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

SHARE = get_package_share_directory('dtvla_ros')
ARGUMENTS = {  # default, meaning, choices
    'world': (None, 'Folder made by "python3 -m dtvla_sim.gazebo --out FOLDER".'),
    'gui': ('true', "Open Gazebo's window; false: the server alone, drawing offscreen.",
            'true', 'false'),
    'params_file': (f'{SHARE}/config/gazebo.yaml', 'Parameters of all nodes.'),
    'use_sim_time': ('true', "Gazebo's clock is the only one here.", 'true'),
    'transport': ('raw', 'The bridge publishes sensor_msgs/Image.', 'raw'),
    'command_topic': ('/cartesian_motion_controller/target_frame', "The controller's input.")}
CONTROL_RATE = 100.0  # [Hz], config/gazebo_controllers.yaml's; a slower /tf makes old poses
CONTROLLERS = ('joint_state_broadcaster', 'cartesian_motion_controller', 'gripper_controller')
# rcl remaps an action's services and topics, not its name.
ACTION_PARTS = ('send_goal', 'cancel_goal', 'get_result', 'feedback', 'status')


def generate_launch_description():
    world = LaunchConfiguration('world')
    on_simulated_time = {'use_sim_time': True}
    headless = PythonExpression(
        ["'' if '", LaunchConfiguration('gui'), "' == 'true' else '-s --headless-rendering '"])
    description = ParameterValue(Command(['cat ', world, '/panda.urdf']), value_type=str)
    return LaunchDescription([
        *(DeclareLaunchArgument(
            name, default_value=default, description=meaning, choices=choices or None)
          for name, (default, meaning, *choices) in ARGUMENTS.items()),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(PathJoinSubstitution(
                [FindPackageShare('ros_gz_sim'), 'launch', 'gz_sim.launch.py'])),
            launch_arguments={'gz_args': ['-r ', headless, world, '/world.sdf'],
                              'on_exit_shutdown': 'true'}.items()),
        Node(package='robot_state_publisher', executable='robot_state_publisher', output='screen',
             parameters=[on_simulated_time, {'robot_description': description,
                                             'publish_frequency': CONTROL_RATE}]),
        Node(package='ros_gz_bridge', executable='parameter_bridge', output='screen',
             parameters=[on_simulated_time, {'config_file': f'{SHARE}/config/gz_bridge.yaml'}]),
        Node(package='controller_manager', executable='spawner', output='screen',
             arguments=[*CONTROLLERS, '--controller-manager-timeout', '60']),
        GroupAction([
            *(SetRemap(src=f'gripper_action/_action/{part}',
                       dst=f'/gripper_controller/gripper_cmd/_action/{part}')
              for part in ACTION_PARTS),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(f'{SHARE}/launch/policy.launch.py'))])])
