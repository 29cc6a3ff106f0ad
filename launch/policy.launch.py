"""Start the policy and the command gate; cameras and arm are somebody else's."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

IMAGES = {'image_primary': 'third-person camera', 'image_wrist': "wrist's camera"}
TOPICS = {
    'joint_states': 'joint states, sensor_msgs/JointState',
    'ee_pose': "gripper's pose in the base frame, geometry_msgs/PoseStamped",
    'instruction': 'task in words, std_msgs/String',
    'estop': 'emergency stop, std_msgs/Bool',
    'gate_state': "command gate's state, diagnostic_msgs/DiagnosticStatus",
}
OF_GATE = ('joint_states', 'ee_pose', 'estop', 'gate_state')
OF_OVERLAY = ('ee_pose', 'gate_state')


def equal(argument, value):
    return PythonExpression(["'", LaunchConfiguration(argument), f"' == '{value}'"])


def generate_launch_description():
    share = Path(get_package_share_directory('dtvla_ros'))
    params = LaunchConfiguration('params_file')
    namespace = LaunchConfiguration('namespace')
    clock = {'use_sim_time': ParameterValue(LaunchConfiguration('use_sim_time'), value_type=bool)}
    transport = {'transport': LaunchConfiguration('transport')}
    # image_transport's names: the compressed topic lies below the raw one.
    suffix = PythonExpression(
        ["'/compressed' if '", LaunchConfiguration('transport'), "' == 'compressed' else ''"])
    images = [(name, [LaunchConfiguration(name), suffix]) for name in IMAGES]
    of_policy = [(f'vla/{name}', ['/', namespace, f'/{name}'])
                 for name in ('action_chunk', 'state', 'reasoning')]
    arguments = [
        DeclareLaunchArgument(
            'params_file', default_value=str(share / 'config' / 'sim.yaml'),
            description='Parameters of all nodes, ROS YAML; policy, engine, device, mode, '
                        'transport and use_sim_time are set by the launch arguments of these '
                        'names.'),
        DeclareLaunchArgument(
            'policy', default_value=str(share / 'models' / 'nano'),
            description='Folder of the policy, its manifest inside.'),
        DeclareLaunchArgument(
            'engine', default_value='onnx', choices=['onnx', 'torch'],
            description='onnx needs exported graphs; torch runs a converted checkpoint as it '
                        'is.'),
        DeclareLaunchArgument(
            'device', default_value='cpu', choices=['cpu', 'cuda', 'tensorrt', 'auto'],
            description='Where the policy runs.'),
        DeclareLaunchArgument(
            'mode', default_value='full',
            choices=['full', 'masked'],
            description='The thought: full is written by the policy, masked is empty.'),
        DeclareLaunchArgument(
            'namespace', default_value='vla',
            description='Namespace of the policy node, without a leading slash.'),
        DeclareLaunchArgument(
            'use_sim_time', default_value='false', choices=['true', 'false'],
            description='All nodes follow /clock instead of the wall clock.'),
        DeclareLaunchArgument(
            'transport', default_value='raw', choices=['raw', 'compressed'],
            description='Image topics: sensor_msgs/Image, or CompressedImage on '
                        '<topic>/compressed.'),
        DeclareLaunchArgument(
            'overlay', default_value='false', choices=['true', 'false'],
            description='Publish overlay/compressed, the cameras with the thought beside them, '
                        'and planned_path.'),
        DeclareLaunchArgument(
            'viz', default_value='none', choices=['none', 'rviz', 'rerun'],
            description='Window to open: RViz, or Rerun by "dtvla view".'),
        DeclareLaunchArgument(
            'record', default_value='',
            description='Folder of a new bag (MCAP) of the whole run; empty: do not record.'),
        *(DeclareLaunchArgument(
            name, default_value=f'/{name}', description=f'Topic of the {what}.')
          for name, what in (IMAGES | TOPICS).items()),
    ]
    policy = Node(
        package='dtvla_ros', executable='vla_node', name='vla_node',
        namespace=namespace, output='screen',
        parameters=[params, transport, clock, {
            name: LaunchConfiguration(name) for name in ('policy', 'engine', 'device', 'mode')}],
        remappings=[*images, *((name, LaunchConfiguration(name)) for name in TOPICS)])
    gate = Node(
        package='dtvla_ros', executable='command_gate', name='command_gate', namespace='',
        output='screen', parameters=[params, clock],
        remappings=[*of_policy, *((name, LaunchConfiguration(name)) for name in OF_GATE)])
    overlay = Node(
        package='dtvla_ros', executable='overlay', name='overlay', namespace='',
        output='screen', parameters=[params, transport, clock],
        remappings=[*images, *of_policy,
                    *((name, LaunchConfiguration(name)) for name in OF_OVERLAY)],
        condition=IfCondition(LaunchConfiguration('overlay')))
    rviz = Node(
        package='rviz2', executable='rviz2', name='rviz', parameters=[clock],
        arguments=['-d', str(share / 'config' / 'rviz' / 'dtvla.rviz')],
        condition=IfCondition(equal('viz', 'rviz')))
    dtvla = ExecutableInPackage(package='dtvla_ros', executable='dtvla')
    rerun = ExecuteProcess(
        cmd=[dtvla, 'view'], output='screen', condition=IfCondition(equal('viz', 'rerun')))
    recorder = ExecuteProcess(
        cmd=[dtvla, 'record', '--out', LaunchConfiguration('record')], output='screen',
        condition=UnlessCondition(equal('record', '')))
    return LaunchDescription([*arguments, policy, gate, overlay, rviz, rerun, recorder])
