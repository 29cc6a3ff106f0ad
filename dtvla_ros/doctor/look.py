"""Joins a graph for some seconds and notes what `seen` holds; changes nothing there."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.srv import GetParameters
from rclpy.action import get_action_client_names_and_types_by_node
from rclpy.parameter import parameter_value_to_python
from rclpy.utilities import get_rmw_implementation_identifier
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from dtvla_ros.conventions import ACTION, ARM_JOINTS, CAMERAS, FINGER_JOINTS, GRIPPER
from dtvla_ros.doctor.inputs import camera_topics
from dtvla_ros.doctor.seen import End, NodeView, Seen, Stream
from dtvla_ros.errors import UserError
from dtvla_ros.ros import bringup, conversions, environment, images, qos
from dtvla_ros.ros.frames import FrameTree
from dtvla_ros.ros.guest import Guest, visit
from dtvla_ros.ros.interfaces import PACKAGE, SEND_GOAL
from dtvla_ros.ros.params_file import ParameterFile
from dtvla_ros.ros.runner import plan
from dtvla_ros.ros.settings import (
    GRIPPER_ACTIONS,
    GRIPPER_TOPICS,
    ActionSettings,
    PoseSettings,
    VlaSettings,
)
from dtvla_ros.ros.waiting import by_likeness, full_name, type_name
from dtvla_ros.safety.gate import GateConfig

KINDS = ('vla_node', 'command_gate', 'sim_bridge', *bringup.OPTIONAL)
DISCOVERY = 3.0  # longest look for nodes of ours [s]
SETTLE = 1.0  # ... and what is waited for others after them [s]
ANSWER = 3.0  # longest wait for a service [s]
PAIR = tuple(f'image_{camera}' for camera in CAMERAS)
OF_ROS = ('/rosout', '/parameter_events')
SENSORS = qos.profile(20, reliable=False, latched=False)
_COMMANDS = {'geometry_msgs/msg/TwistStamped', 'geometry_msgs/msg/PoseStamped',
             'trajectory_msgs/msg/JointTrajectory', 'std_msgs/msg/Float64MultiArray'}
_INPUTS = {'sensor_msgs/msg/JointState': 'joint_states',
           'geometry_msgs/msg/PoseStamped': 'ee_pose'}
_SUBSCRIBED = {  # types of which a node subscribes to one topic
    'vla_node': {**_INPUTS, 'diagnostic_msgs/msg/DiagnosticStatus': 'gate_state',
                 'std_msgs/msg/String': 'instruction'},
    'command_gate': {**_INPUTS, 'diagnostic_msgs/msg/DiagnosticStatus': 'vla/state',
                     'trajectory_msgs/msg/JointTrajectory': 'vla/action_chunk'}}
_LIST_CONTROLLERS = 'controller_manager_msgs/srv/ListControllers'
_DEFAULTS: dict[str, dict[str, Any]] = {
    'vla_node': {**dataclasses.asdict(VlaSettings()), **dataclasses.asdict(PoseSettings()),
                 'use_sim_time': False},
    'command_gate': {**dataclasses.asdict(GateConfig()), **dataclasses.asdict(PoseSettings()),
                     **dataclasses.asdict(ActionSettings()),
                     'arm_joints': ARM_JOINTS, 'finger_joints': FINGER_JOINTS,
                     'preset': 'sim_osc', 'gripper': 'topic', 'use_sim_time': False}}
"""Parameters that are judged, as the nodes have them unless they are given."""


def look(file: ParameterFile | None, given: Mapping[str, str], seconds: float,
         progress: Callable[[float], object]) -> Seen:
    """Return what is seen in ``seconds`` of listening; ``progress`` hears how many went by.

    Running nodes count; where there is none, what ``file`` and ``given`` (`runner.plan`) would
    start. Raises UserError where neither is there.
    """
    with visit() as guest:
        return _Look(guest, file, given).run(seconds, progress)


class _Look:
    def __init__(self, guest: Guest, file: ParameterFile | None, given: Mapping[str, str]) -> None:
        self._guest, self._node = guest, guest.node
        guest.until(self._ours, DISCOVERY)
        guest.until(lambda: False, SETTLE)
        ours = self._ours()
        if file is None and not ours:
            raise UserError('neither vla_node nor command_gate runs here '
                            f'({environment.scope()}): start them, or name what they would be '
                            'started with, dtvla doctor --robot fr3_servo; dtvla run lists '
                            'configurations')
        planned = plan(file, given) if file is not None else bringup.node_processes(given)
        source = 'the running nodes' if ours else str(file.path if file else '')
        views = {kind: self._view(kind, ours, planned[kind], file)
                 for kind in ('vla_node', 'command_gate')}
        self._seen = Seen(
            source, f'{environment.scope()}, {get_rmw_implementation_identifier()}',
            views['vla_node'], views['command_gate'],
            ours={kind: ours.get(kind, []) for kind in KINDS})
        wanted = views['vla_node'].parameters
        self._reader = conversions.JointReader(wanted['arm_joints'], wanted['finger_joints'])

    def run(self, seconds: float, progress: Callable[[float], object]) -> Seen:
        """Listen, ask, and return all of it."""
        seen, began = self._seen, time.monotonic()
        self._ask_for_clocks()
        self._ask_controllers()
        self._listen()
        while (passed := time.monotonic() - began) < seconds:
            progress(passed)
            self._guest.until(lambda: False, 0.1)
        seen.seconds = passed
        seen.nodes = sorted(
            f'{space.rstrip("/")}/{name}'
            for name, space in self._node.get_node_names_and_namespaces()
            if not name.startswith('_'))
        for topic in (*seen.policy.topics.values(), *seen.gate.topics.values(),
                      *self._topics_of(itertools.chain(*seen.ours.values()))):
            seen.streams.setdefault(topic, Stream(topic))
        for stream in seen.streams.values():
            stream.publishers = self._ends(stream.name, self._node.get_publishers_info_by_topic)
            stream.subscribers = self._ends(
                stream.name, self._node.get_subscriptions_info_by_topic)
        servers = {name.removesuffix(SEND_GOAL): kinds[0]
                   for name, kinds in self._node.get_service_names_and_types()
                   if name.endswith(SEND_GOAL)}
        seen.actions = sorted(n for n, kind in servers.items() if kind.startswith(f'{PACKAGE}/'))
        seen.grippers = {name: kind.removesuffix('_SendGoal') for name, kind in servers.items()
                         if kind.removesuffix('_SendGoal') in GRIPPER_ACTIONS.values()}
        seen.nearby = dict(self._nearby())
        seen.joints_lack = self._reader.why
        return seen

    def _ours(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, space in self._node.get_node_names_and_namespaces():
            if name in KINDS:
                found.setdefault(name, []).append(f'{space.rstrip("/")}/{name}')
        return found

    def _topics_of(self, nodes: Iterable[str]) -> Iterator[str]:
        """Yield what running nodes publish and subscribe to."""
        for node in nodes:
            space, _, leaf = node.rpartition('/')
            for ask in (self._node.get_subscriber_names_and_types_by_node,
                        self._node.get_publisher_names_and_types_by_node):
                yield from (topic for topic, _ in ask(leaf, space or '/') if topic not in OF_ROS)

    def _view(self, kind: str, ours: Mapping[str, list[str]], planned: bringup.NodeProcess,
              file: ParameterFile | None) -> NodeView:
        """Return a node as it runs, else as it would be started."""
        space = f'/{planned.namespace}' if planned.namespace else ''
        rules = dict(planned.remappings)
        topics = {**rules, 'state': f'{space}/state'} if kind == 'vla_node' else {
            **rules, 'state': rules['gate_state'], 'gripper': rules.get('gripper_cmd', GRIPPER),
            'gripper_action': rules.get(
                f'gripper_action{SEND_GOAL}', '/gripper_action').removesuffix(SEND_GOAL),
            'command': rules.get('twist_cmd', ACTION)}
        if kind not in ours:
            name = f'{space}/{kind}'
            view = NodeView(name, False, {
                **_DEFAULTS[kind], **(file.of(name) if file else {}), **planned.parameters},
                topics)
            for topic in camera_topics(view) if kind == 'vla_node' else ():
                view.topics.setdefault(topic, f'/{topic}')
            return view
        name = ours[kind][0]
        view = NodeView(name, True, {**_DEFAULTS[kind], **self._parameters(
            name, list(_DEFAULTS[kind]))}, topics)
        self._find_topics(kind, view)
        return view

    def _find_topics(self, kind: str, view: NodeView) -> None:
        """Put the names that a running node really uses, told by their types, in its view."""
        space, _, leaf = view.name.rpartition('/')
        subscribed = self._node.get_subscriber_names_and_types_by_node(leaf, space or '/')
        published = self._node.get_publisher_names_and_types_by_node(leaf, space or '/')
        by_type = {types[0]: topic for topic, types in subscribed}
        for message, topic in _SUBSCRIBED[kind].items():
            if message in by_type:
                view.topics[topic] = by_type[message]
        for topic, types in published:
            if types[0] == 'diagnostic_msgs/msg/DiagnosticStatus':
                view.topics['state'] = topic
        if kind == 'command_gate':
            self._find_commands(view, {topic: types[0] for topic, types in published})
            for name, _ in get_action_client_names_and_types_by_node(
                    self._node, leaf, space or '/'):
                view.topics['gripper_action'] = name
        cameras = sorted(topic for topic, types in subscribed
                         if types[0] in ('sensor_msgs/msg/Image',
                                         'sensor_msgs/msg/CompressedImage'))
        if kind != 'vla_node':
            return
        wanted = camera_topics(view)
        if wanted != PAIR:
            for name in wanted:
                view.topics[name] = next((topic for topic in cameras if topic.endswith(name)),
                                         cameras[0] if len(cameras) == len(wanted) == 1 else
                                         f'/{name}')
        elif len(cameras) == len(PAIR):
            # Which is which only names can tell.
            first, second = cameras
            if 'wrist' in first or 'primary' in second or 'hand' in first:
                first, second = second, first
            view.topics.update(zip(PAIR, (first, second)))

    def _find_commands(self, view: NodeView, published: Mapping[str, str]) -> None:
        """Tell a running gate's commands to arm and gripper apart, of which types may be one."""
        commands = [topic for topic, kind in published.items() if kind in _COMMANDS]
        of_gripper = GRIPPER_TOPICS.get(str(view.parameters['gripper']))
        grippers = [topic for topic, kind in published.items() if kind == of_gripper]
        if set(commands) <= set(grippers):  # only names can tell
            grippers = [topic for topic in grippers if 'grip' in topic]
        for topic in grippers:
            view.topics['gripper'] = topic
        for topic in commands:
            if topic not in grippers:
                view.topics['command'] = topic

    def _parameters(self, node: str, names: list[str]) -> dict[str, Any]:
        """Return parameters of a running node; none where it does not answer."""
        client = self._node.create_client(GetParameters, f'{node}/get_parameters')
        found: dict[str, Any] = {}
        if self._guest.until(client.service_is_ready, ANSWER):
            future = client.call_async(GetParameters.Request(names=names))
            if self._guest.until(future.done, ANSWER):
                found = {name: value for name, value in zip(names, map(
                    parameter_value_to_python, future.result().values)) if value is not None}
        self._node.destroy_client(client)
        return found

    def _ask_for_clocks(self) -> None:
        seen = self._seen
        for node in itertools.chain(*seen.ours.values()):
            told = self._parameters(node, ['use_sim_time'])
            if told:
                seen.sim_time[node] = bool(told['use_sim_time'])
        for view in (seen.policy, seen.gate):
            seen.sim_time.setdefault(view.name, bool(view.parameters['use_sim_time']))

    def _ask_controllers(self) -> None:
        services = self._node.get_service_names_and_types()
        name = next((name for name, kinds in services if _LIST_CONTROLLERS in kinds), None)
        if name is None:
            return
        try:
            kind = conversions.message_type(_LIST_CONTROLLERS)
        except KeyError:
            self._seen.controllers = (f'{name} is there, but not asked: install '
                                      'ros-$ROS_DISTRO-controller-manager-msgs')
            return
        client = self._node.create_client(kind, name)
        future = client.call_async(kind.Request())
        self._seen.controllers = {
            each.name: each.state for each in future.result().controller
        } if self._guest.until(future.done, ANSWER) else f'{name} did not answer'

    def _now(self) -> float | None:
        """Return the time on the clock that stamps are of [s]; None before it was heard."""
        if not any(self._seen.sim_time.values()):
            return time.time()
        return self._seen.clocks[-1][1] if self._seen.clocks else None

    def _listen(self) -> None:
        seen = self._seen
        kind, parse, _ = images.TRANSPORTS[str(seen.policy.parameters['transport'])]
        for topic in camera_topics(seen.policy):
            stream = seen.stream(seen.policy, topic)
            self._subscribe(kind, stream.name, functools.partial(self._on_image, parse, stream),
                            raw=True)
        for topic, message, receive in (('joint_states', JointState, self._on_joints),
                                        ('ee_pose', PoseStamped, self._on_stamped)):
            for name in {node.topics[topic] for node in (seen.policy, seen.gate)}:
                self._subscribe(message, name, functools.partial(
                    receive, seen.streams.setdefault(name, Stream(name))))
        seen.streams.setdefault('/clock', Stream('/clock'))
        self._subscribe(Clock, '/clock', self._on_clock)
        for who, node in (('policy', seen.policy), ('gate', seen.gate)):
            self._subscribe(DiagnosticStatus, node.topics['state'], functools.partial(
                self._on_status, who), qos.LATEST)
        qos.listen_to_anyone(self._node, String, seen.policy.topics['instruction'],
                             lambda message: setattr(seen, 'told', message.data))
        if seen.gate.parameters['pose_source'] == 'tf':
            self._listen_to_frames()

    def _listen_to_frames(self) -> None:
        try:
            kind = conversions.message_type('tf2_msgs/msg/TFMessage')
        except KeyError:
            return
        tree = self._seen.frames = FrameTree()
        for topic, static in (('/tf', False), ('/tf_static', True)):
            self._seen.streams.setdefault(topic, Stream(topic))
            self._subscribe(kind, topic, functools.partial(_take, tree, static),
                            qos.profile(100, reliable=True, latched=static))

    def _subscribe(self, kind: Any, topic: str, receive: Callable[[Any], None],
                   profile: Any = SENSORS, raw: bool = False) -> None:
        """Subscribe, unless a topic of this name has another type, which rows tell."""
        types = dict(self._node.get_topic_names_and_types()).get(topic, [])
        if not types or type_name(kind) in types:
            self._node.create_subscription(kind, topic, receive, profile, raw=raw)

    def _note(self, stream: Stream, stamp: float, message: Any) -> None:
        stream.arrivals.append(time.monotonic())
        stream.stamps.append(stamp)
        if (now := self._now()) is not None:
            stream.latencies.append(now - stamp)
        stream.last = message

    def _on_image(self, parse: Callable[[bytes], Any], stream: Stream, data: bytes) -> None:
        try:
            stamp = parse(data).stamp
        except images.ImageError:
            stamp = 0.0
        self._note(stream, stamp, data)

    def _on_stamped(self, stream: Stream, message: Any) -> None:
        self._note(stream, conversions.seconds(message.header.stamp), message)

    def _on_joints(self, stream: Stream, message: JointState) -> None:
        self._on_stamped(stream, message)
        if stream.name == self._seen.policy.topics['joint_states']:
            self._seen.joints.update(zip(message.name, message.position))
            self._reader.take(message.name, message.position, stream.stamps[-1])

    def _on_clock(self, message: Clock) -> None:
        self._seen.clocks.append((time.monotonic(), conversions.seconds(message.clock)))

    def _on_status(self, who: str, message: DiagnosticStatus) -> None:
        self._seen.status[who] = message.message, conversions.status_values(message)

    def _ends(self, topic: str, ask: Callable[[str], Any]) -> list[End]:
        return [End(full_name(end), end.topic_type, end.qos_profile) for end in ask(topic)
                if not end.node_name.startswith('_')]

    def _nearby(self) -> Iterator[tuple[str, list[str]]]:
        """Yield, for silent topics, published ones of their type; for the command, heard ones."""
        there = self._node.get_topic_names_and_types()
        seen = self._seen
        mine = {topic for node in (seen.policy, seen.gate) for topic in node.topics.values()}
        wanted = {**{seen.policy.topics[topic]: 'sensor_msgs/msg/'
                     for topic in camera_topics(seen.policy)},
                  seen.policy.topics['joint_states']: 'sensor_msgs/msg/JointState',
                  seen.policy.topics['ee_pose']: 'geometry_msgs/msg/PoseStamped'}
        for topic, kind in wanted.items():
            if not seen.streams[topic].publishers:
                yield topic, by_likeness(topic, [
                    name for name, kinds in there if name not in mine and any(
                        k.startswith(kind) and (kind[-1] != '/' or k.endswith('Image'))
                        for k in kinds) and self._node.count_publishers(name)])
        command = seen.gate.topics['command']
        if not seen.streams[command].subscribers:
            yield command, by_likeness(command, [
                name for name, kinds in there if name not in mine and _COMMANDS & set(kinds)
                and self._node.count_subscribers(name)])


def _take(tree: FrameTree, static: bool, message: Any) -> None:
    tree.take(message, static)
