"""Which processes make a running graph: names, namespaces, parameters, remappings.

The launch files, ``dtvla run``, the demo and the evaluation over ROS start what is described here.
Imports no ROS.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from dtvla_ros.conventions import RECORDED
from dtvla_ros.errors import UserError
from dtvla_ros.ros.params_file import ParameterFile

Table = Mapping[str, tuple[str, ...]]
"""Arguments of a start by name: default, meaning, choices."""

POLICY: Table = {  # parameters of vla_node
    'policy': ('models/nano', 'Folder of the policy, its manifest inside.'),
    'engine': ('onnx', 'onnx needs exported graphs; torch runs a converted checkpoint as it is.',
               'onnx', 'torch'),
    'device': ('cpu', 'Where the policy runs; onnx on cuda or tensorrt is untested.',
               'cpu', 'cuda', 'tensorrt', 'auto'),
    'mode': ('full', 'The thought: full is written by the policy, masked is empty.',
             'full', 'masked')}
GRAPH: Table = {
    'namespace': ('vla', 'Namespace of the policy node, without a leading slash.'),
    'use_sim_time': ('false', 'All nodes follow /clock, not the wall clock.', 'true', 'false'),
    'transport': ('raw', 'Image topics: sensor_msgs/Image, or CompressedImage on '
                  'TOPIC/compressed.', 'raw', 'compressed')}
VIEWERS: Table = {
    'viz': ('none', 'Window to open: RViz, or Rerun by "dtvla view".', 'none', 'rviz', 'rerun'),
    'overlay': ('false', 'Publish overlay/compressed, the cameras with the thought beside them, '
                'and planned_path.', 'true', 'false'),
    'operator': ('false', 'Serve a page for a browser on this machine: watch, tell, stop.',
                 'true', 'false'),
    'task_server': ('false', 'Offer the action run_task; needs dtvla_interfaces.',
                    'true', 'false'),
    'record_server': ('false', 'Record when the page or the action record_episode asks for it.',
                      'true', 'false'),
    'record': ('', 'Folder of a new bag (MCAP) of the whole run; empty: do not record.')}
IMAGES: Table = {
    'image_primary': ('/image_primary', 'Topic of the third-person camera.'),
    'image_wrist': ('/image_wrist', "Topic of the wrist's camera.")}
TOPICS: Table = {
    'joint_states': ('/joint_states', 'Topic of the joint states, sensor_msgs/JointState.'),
    'ee_pose': ('/ee_pose', "Topic of the gripper's pose in the base frame, "
                'geometry_msgs/PoseStamped.'),
    'instruction': ('/instruction', 'Topic of the task in words, std_msgs/String.'),
    'estop': ('/estop', 'Topic of the emergency stop, std_msgs/Bool.'),
    'gate_state': ('/gate_state', "Topic of the command gate's state, "
                   'diagnostic_msgs/DiagnosticStatus.')}
COMMAND: Table = {
    'command_topic': ('', "The controller's input, of the type that the gate's preset has; "
                      "empty: the gate's own name for it."),
    'gripper_topic': ('', "The gripper's input: a topic, or an action by its name; empty: the "
                      "gate's own name for it.")}
SIMULATION: Table = {  # parameters of sim_bridge
    'suite': ('tabletop', 'Scenes and tasks.'),
    'tasks': ("['']", "Task names, such as a,b or ['a', 'b']; ['']: all of the suite."),
    'episodes': ('1', 'Episodes per task.'),
    'seed': ('1000000', 'Seed of the first episode of each task; from 1000000 on nothing was '
             'trained on.'),
    'result_file': ('', 'JSON file for successes, seeds and versions; empty: none.')}
TYPES = {'use_sim_time': bool, 'overlay': bool, 'operator': bool, 'task_server': bool,
         'record_server': bool, 'tasks': list, 'episodes': int, 'seed': int}
"""Of the arguments that are no text."""
_KINDS = {bool: 'true or false', int: 'a whole number', list: 'names'}

COMMAND_TOPICS = {
    'servo': '/servo_node/delta_twist_cmds', 'crisp': '/target_pose',
    'fzi': '/cartesian_compliance_controller/target_frame',
    'joint_trajectory': '/joint_trajectory_controller/joint_trajectory',
    'forward_position': '/forward_position_controller/commands'}
"""Input of each preset's controller under its usual name."""
SIMULATED = ('sim_osc', 'sim_joints')
"""Presets of the gate for `sim_bridge`, whose gripper is a channel of the action."""
OPTIONAL = ('overlay', 'operator', 'task_server', 'record_server')
"""Nodes that are started where asked for; a parameter file need have no section for them."""
_OF_POLICY = ('action_chunk', 'state', 'reasoning')
_OF_OPERATOR = (*_OF_POLICY, 'reasoning_stream', 'tasks', 'thought_override', 'question',
                'reset_episode')
_OF_TASK_SERVER = ('state', 'reasoning', 'tasks')
_OF_GATE = ('joint_states', 'ee_pose', 'estop', 'gate_state')
COMMAND_NAMES = ('twist_cmd', 'target_pose', 'joint_trajectory', 'joint_commands')
"""The gate's own names for its command topic, by preset."""
ACTION_PARTS = ('send_goal', 'cancel_goal', 'get_result', 'feedback', 'status')
"""Services and topics of an action: rcl remaps these, not its name."""
SECTION = '/bringup'
"""Of a parameter file: arguments of a start that belong to the robot, as its topics' names."""
_OF_ROBOT: Table = {**GRAPH, **IMAGES, **TOPICS, **COMMAND}


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """One node as a process: executable, module and node have the same ``name``."""

    name: str
    namespace: str = ''
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()

    @property
    def full_name(self) -> str:
        """The node's name with its namespace."""
        return f'/{self.namespace}/{self.name}' if self.namespace else f'/{self.name}'

    def given(self, parameters: Mapping[str, Any]) -> NodeProcess:
        """Return the same process with more parameters."""
        return replace(self, parameters={**self.parameters, **parameters})

    def ros_arguments(self, params_file: str = '') -> list[str]:
        """Return the words that follow the program's name."""
        rules = [('__ns', f'/{self.namespace}')] if self.namespace else []
        return ['--ros-args', *(word for source, target in (*rules, *self.remappings)
                                for word in ('-r', f'{source}:={target}')),
                *(['--params-file', params_file] if params_file else []),
                *(word for name, value in self.parameters.items()
                  for word in ('-p', f'{name}:={_yaml(value)}'))]


def told_by(file: ParameterFile) -> dict[str, str]:
    """Return the arguments that a file gives in its section `SECTION`, as text.

    Raises UserError for one that there is not.
    """
    found: dict[str, str] = {}
    for pattern, values in file.sections:
        for name, value in values.items() if pattern == SECTION else ():
            if name not in _OF_ROBOT:
                near = difflib.get_close_matches(name, _OF_ROBOT, 1)
                raise UserError(f'{file.path}: {SECTION} has no argument {name}; ' + (
                    f'did you mean {near[0]}?' if near else
                    f'choose from {", ".join(_OF_ROBOT)}'))
            found[name] = value if isinstance(value, str) else json.dumps(value)
    return found


def node_processes(given: Mapping[str, str] | None = None,
                   simulated: bool = False) -> dict[str, NodeProcess]:
    """Return the nodes of a graph by name, from the arguments that were given, as text.

    Topics and namespace have their defaults; a parameter that is not given is left to the nodes'
    parameter file. Raises UserError for a text that is no value of its argument.
    """
    given = given or {}

    def values(*names: str) -> dict[str, Any]:
        return {name: _value(name, given[name]) for name in names if name in given}

    def name_of(topic: str) -> str:
        return given.get(topic) or (IMAGES | TOPICS)[topic][0]  # type: ignore[operator]

    def remapped(*topics: str) -> tuple[tuple[str, str], ...]:
        return tuple((topic, name_of(topic)) for topic in topics)

    namespace = given.get('namespace') or GRAPH['namespace'][0]
    # image_transport's names: the compressed topic lies below the raw one.
    suffix = '/compressed' if given.get('transport') == 'compressed' else ''
    images = tuple((topic, f'{name_of(topic)}{suffix}') for topic in IMAGES)

    def of_policy(topics: tuple[str, ...] = _OF_POLICY) -> tuple[tuple[str, str], ...]:
        return tuple((f'vla/{topic}', f'/{namespace}/{topic}') for topic in topics)

    commands = tuple((name, given['command_topic']) for name in COMMAND_NAMES
                     if given.get('command_topic'))
    gripper = given.get('gripper_topic')
    grippers = () if not gripper else (('gripper_cmd', gripper), *(
        (f'gripper_action/_action/{part}', f'{gripper}/_action/{part}') for part in ACTION_PARTS))
    found = [
        NodeProcess('vla_node', namespace, values(*POLICY, 'use_sim_time', 'transport'),
                    (*images, *remapped(*TOPICS))),
        NodeProcess('command_gate', '', values('use_sim_time'),
                    (*of_policy(), *remapped(*_OF_GATE), *commands, *grippers))]
    if simulated:
        found.append(NodeProcess('sim_bridge', '', values(*SIMULATION, 'use_sim_time'), (
            *remapped(*IMAGES, 'joint_states', 'ee_pose', 'instruction', 'gate_state'),
            *of_policy())))
    if values('overlay').get('overlay'):
        found.append(NodeProcess('overlay', '', values('use_sim_time', 'transport'), (
            *images, *of_policy(), *remapped('ee_pose', 'gate_state'))))
    if values('operator').get('operator'):
        found.append(NodeProcess('operator', '', values('use_sim_time', 'transport'), (
            *images, *of_policy(_OF_OPERATOR), *commands,
            *remapped('ee_pose', 'instruction', 'estop', 'gate_state'))))
    if values('task_server').get('task_server'):
        found.append(NodeProcess('task_server', '', values('use_sim_time'), (
            *of_policy(_OF_TASK_SERVER), *remapped('instruction', 'gate_state'))))
    if values('record_server').get('record_server'):
        found.append(NodeProcess('record_server', '', values('params_file'), tuple(
            _renamed(found).items())))
    return {process.name: process for process in found}


def viewer_commands(given: Mapping[str, str], nodes: Mapping[str, NodeProcess],
                    params_file: str) -> dict[str, list[str]]:
    """Return the ``dtvla`` commands that run beside the nodes, by name.

    They are told where the topics of the ``nodes`` have other names; a recording also keeps what
    their parameter file says of frames and joints.
    """
    topics = [word for name, topic in _renamed(nodes.values()).items()
              for word in ('--topic', f'{name}={topic}')]
    record = ['record', '--out', given.get('record', ''), *topics, '--params-file', params_file]
    return {**({'view': ['view', '--spawn', *topics]} if given.get('viz') == 'rerun' else {}),
            **({'record': record} if given.get('record') else {})}


def _renamed(nodes: Iterable[NodeProcess]) -> dict[str, str]:
    """Return the topics of a bag that have other names, by name."""
    return {name: topic for process in nodes for name, topic in process.remappings
            if topic != f'/{name}' and f'/{name}' in RECORDED}


def _value(name: str, text: str) -> Any:
    """Return an argument's value from its text."""
    if (kind := TYPES.get(name)) is None:
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if kind is list and isinstance(value, str):
        value = [part.strip() for part in value.split(',')]
    if type(value) is not kind:
        raise UserError(f'{name} {text}: {_KINDS[kind]} expected')
    return value


def _yaml(value: Any) -> str:
    """Return a parameter's value so that rcl reads it with its type."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str,
                      ensure_ascii=False)
