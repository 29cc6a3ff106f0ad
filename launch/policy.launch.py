"""Start the policy and the command gate; cameras and arm are somebody else's."""

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

SHARE = get_package_share_directory('dtvla_ros')
ARGUMENTS = {  # default, meaning, choices
    'params_file': (f'{SHARE}/config/sim.yaml',
                    'Parameters of all nodes, ROS YAML; policy, engine, device, mode, transport '
                    'and use_sim_time are set by the launch arguments of these names.'),
    'policy': (f'{SHARE}/models/nano', 'Folder of the policy, its manifest inside.'),
    'engine': ('onnx', 'onnx needs exported graphs; torch runs a converted checkpoint as it is.',
               'onnx', 'torch'),
    'device': ('cpu', 'Where the policy runs.', 'cpu', 'cuda', 'tensorrt', 'auto'),
    'mode': ('full', 'The thought: full is written by the policy, masked is empty.',
             'full', 'masked'),
    'namespace': ('vla', 'Namespace of the policy node, without a leading slash.'),
    'use_sim_time': ('false', 'All nodes follow /clock, not the wall clock.', 'true', 'false'),
    'transport': ('raw', 'Image topics: sensor_msgs/Image, or CompressedImage on '
                  '<topic>/compressed.', 'raw', 'compressed'),
    'overlay': ('false', 'Publish overlay/compressed, the cameras with the thought beside them, '
                'and planned_path.', 'true', 'false'),
    'viz': ('none', 'Window to open: RViz, or Rerun by "dtvla view".', 'none', 'rviz', 'rerun'),
    'record': ('', 'Folder of a new bag (MCAP) of the whole run; empty: do not record.')}
IMAGES = {'image_primary': 'third-person camera', 'image_wrist': "wrist's camera"}
TOPICS = {
    'joint_states': 'joint states, sensor_msgs/JointState',
    'ee_pose': "gripper's pose in the base frame, geometry_msgs/PoseStamped",
    'instruction': 'task in words, std_msgs/String',
    'estop': 'emergency stop, std_msgs/Bool',
    'gate_state': "command gate's state, diagnostic_msgs/DiagnosticStatus"}
OF_POLICY = ('action_chunk', 'state', 'reasoning')


def generate_launch_description():
    given = {name: LaunchConfiguration(name) for name in (*ARGUMENTS, *IMAGES, *TOPICS)}
    arguments = ARGUMENTS | {
        name: (f'/{name}', f'Topic of the {what}.') for name, what in (IMAGES | TOPICS).items()}
    clock = {'use_sim_time': ParameterValue(given['use_sim_time'], value_type=bool)}
    transport = {'transport': given['transport']}
    # image_transport's names: the compressed topic lies below the raw one.
    suffix = PythonExpression(
        ["'/compressed' if '", given['transport'], "' == 'compressed' else ''"])
    images = [(name, [given[name], suffix]) for name in IMAGES]
    of_policy = [(f'vla/{name}', ['/', given['namespace'], f'/{name}']) for name in OF_POLICY]

    def equal(argument, value):
        return PythonExpression(["'", given[argument], f"' == '{value}'"])

    def node(name, parameters, remappings, topics, **more):
        return Node(
            package='dtvla_ros', executable=name, name=name, output='screen',
            parameters=[given['params_file'], clock, *parameters],
            remappings=[*remappings, *((topic, given[topic]) for topic in topics)], **more)

    dtvla = ExecutableInPackage(package='dtvla_ros', executable='dtvla')
    return LaunchDescription([
        *(DeclareLaunchArgument(
            name, default_value=default, description=meaning, choices=choices or None)
          for name, (default, meaning, *choices) in arguments.items()),
        node('vla_node', [transport, {
            name: given[name] for name in ('policy', 'engine', 'device', 'mode')}],
            images, TOPICS, namespace=given['namespace']),
        node('command_gate', [], of_policy, ('joint_states', 'ee_pose', 'estop', 'gate_state'),
             namespace=''),
        node('overlay', [transport], [*images, *of_policy], ('ee_pose', 'gate_state'),
             namespace='', condition=IfCondition(given['overlay'])),
        Node(package='rviz2', executable='rviz2', name='rviz', parameters=[clock],
             arguments=['-d', f'{SHARE}/config/rviz/dtvla.rviz'],
             condition=IfCondition(equal('viz', 'rviz'))),
        ExecuteProcess(cmd=[dtvla, 'view'], output='screen',
                       condition=IfCondition(equal('viz', 'rerun'))),
        ExecuteProcess(cmd=[dtvla, 'record', '--out', given['record']], output='screen',
                       condition=UnlessCondition(equal('record', '')))])
