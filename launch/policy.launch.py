"""Start the policy and the command gate; cameras and arm are somebody else's."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

from dtvla_ros.ros import bringup
from dtvla_ros.ros.params_file import ParameterFile

SHARE = get_package_share_directory('dtvla_ros')
ARGUMENTS = {  # default, meaning, choices
    'params_file': (f'{SHARE}/config/sim.yaml',
                    'Parameters of all nodes, ROS YAML; policy, engine, device, mode, transport '
                    'and use_sim_time are set by the launch arguments of these names.'),
    **bringup.POLICY, **bringup.GRAPH, **bringup.VIEWERS,
    **bringup.IMAGES, **bringup.TOPICS, **bringup.COMMAND}
PARAMETER_TYPES = bringup.TYPES | {'tasks': list[str]}


def start(context):
    given = context.launch_configurations
    dtvla = ExecutableInPackage(package='dtvla_ros', executable='dtvla')
    file = ParameterFile.read(Path(given['params_file']))
    simulated = 'suite' in given or bool(file.named('sim_bridge') and 'robot' in given)
    nodes = bringup.node_processes(given, simulated)
    # A node refuses a file without a section for it; these need none.
    files = {name: [] if name in bringup.OPTIONAL and not file.of(node.full_name) else [
        str(file.path)] for name, node in nodes.items()}
    return [
        *(Node(package='dtvla_ros', executable=node.name, name=node.name, output='screen',
               namespace=node.namespace, remappings=node.remappings,
               parameters=[*files[node.name], {
                   name: ParameterValue(value, value_type=PARAMETER_TYPES.get(name, str))
                   for name, value in node.parameters.items()}])
          for node in nodes.values()),
        *(ExecuteProcess(cmd=[dtvla, *words], output='screen')
          for words in bringup.viewer_commands(given, nodes, given['params_file']).values())]


def generate_launch_description():
    asked_for = PythonExpression(["'", LaunchConfiguration('viz'), "' == 'rviz'"])
    return LaunchDescription([
        *(DeclareLaunchArgument(
            name, default_value=default, description=meaning, choices=choices or None)
          for name, (default, meaning, *choices) in ARGUMENTS.items()),
        OpaqueFunction(function=start),
        Node(package='rviz2', executable='rviz2', name='rviz', parameters=[{
            'use_sim_time': ParameterValue(LaunchConfiguration('use_sim_time'), value_type=bool)}],
            arguments=['-d', f'{SHARE}/config/rviz/dtvla.rviz'],
            condition=IfCondition(asked_for))])
