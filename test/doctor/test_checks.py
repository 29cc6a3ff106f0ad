"""Each fault of a graph is one row, on plain data and against real nodes behind a proxy."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String
from support.beside import fresh_domain
from support.policies import trained_on

from dtvla_ros.conventions import ARM_JOINTS, FINGER_JOINTS
from dtvla_ros.doctor import look, nodes
from dtvla_ros.doctor.checks import judge
from dtvla_ros.doctor.row import Row
from dtvla_ros.doctor.seen import End, NodeView, Seen, Stream
from dtvla_ros.ros import conversions, images, qos
from dtvla_ros.ros.bringup import node_processes
from dtvla_ros.ros.frames import FrameTree
from test.faults.rig import Rig, only_joints

GRIPPER_ACTION = 'control_msgs/action/GripperCommand'
NOW = 1_700_000_000.0
ROBOT = '/robot'
IMAGE, JOINTS, POSE = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/JointState',
                       'geometry_msgs/msg/PoseStamped')


def stream(name: str, kind: str, period: float, last: Any = None) -> Stream:
    """Return what came in five seconds, 10 ms after it was stamped."""
    times = [NOW + k * period for k in range(int(5 / period))]
    return Stream(name, [End(ROBOT, kind)], [], times, times, [0.01] * len(times), last)


def picture(encoding: str = 'rgb8', light: int = 1) -> bytes:
    made = np.full((48, 64, 3), 9 * light, np.uint8)
    return images.serialize_image(made if encoding == 'rgb8' else made[..., 0].astype(np.float32),
                                  Time(sec=int(NOW)), '', encoding)


@pytest.fixture
def healthy() -> Seen:
    """Return a graph of a robot in order, its nodes running."""
    views = {}
    for kind, process in node_processes({'command_topic': '/arm'}).items():
        rules = dict(process.remappings)
        views[kind] = NodeView(f'/{kind}', True, look._DEFAULTS[kind], {
            **rules, 'state': rules.get('gate_state', '/vla/state')
            if kind == 'command_gate' else '/vla/state', 'command': '/arm', 'gripper': '/grip'})
    views['command_gate'].parameters = {**views['command_gate'].parameters, 'preset': 'crisp'}
    pose = conversions.pose_message(conversions.header(NOW, 'base'), [0.5, 0, 0.2], [1, 0, 0, 0])
    seen = Seen('the running nodes', 'ROS_DOMAIN_ID=0', views['vla_node'], views['command_gate'],
                5.0, [ROBOT, '/vla_node', '/command_gate'],
                {'vla_node': ['/vla_node'], 'command_gate': ['/command_gate']},
                {'/vla_node': False, '/command_gate': False},
                status={'policy': ('IDLE', {}), 'gate': ('STOP', {'reason': 'not started'})},
                joints=dict.fromkeys((*ARM_JOINTS, *FINGER_JOINTS), 0.04))
    for made in (stream('/image_primary', IMAGE, 0.04, picture()),
                 stream('/image_wrist', IMAGE, 0.04, picture()),
                 stream('/joint_states', JOINTS, 0.02), stream('/ee_pose', POSE, 0.02, pose)):
        seen.streams[made.name] = made
    latched, gate, policy = qos.LATCHED, '/command_gate', '/vla_node'
    for topic, source, target in (
            ('/arm', gate, ROBOT), ('/grip', gate, ROBOT), ('/gate_state', gate, policy),
            ('/vla/state', policy, gate), ('/vla/action_chunk', policy, gate)):
        seen.streams[topic] = Stream(topic, [End(source, 'x', latched)],
                                     [End(target, 'x', latched)])
    return seen


def missing(seen: Seen) -> list[Row]:
    rows = judge(seen)
    assert len({row.requirement for row in rows}) == len(rows), 'each requirement is one row'
    assert all(row.found for row in rows)
    return [row for row in rows if row.ok is False]


def test_a_graph_in_order_lacks_nothing(healthy: Seen) -> None:
    assert not missing(healthy) and len(judge(healthy)) > 30


def test_the_task_is_told_with_what_it_was_understood_as(healthy: Seen) -> None:
    healthy.status['policy'] = ('ACTING', {'instruction': 'do it, please', 'understood': 'do it'})
    assert [row.found for row in judge(healthy) if row.requirement == 'task'] == [
        'do it, please, understood as: do it']


@pytest.mark.parametrize('offered, running, installed, ok, words', [
    (['/run_task'], True, True, True, '/run_task'),
    ([], True, False, False, 'offers none'),
    ([], False, True, None, 'dtvla run --task-server'),
    ([], False, False, None, 'make interfaces')])
def test_actions_are_told_and_how_to_get_them(
        healthy: Seen, monkeypatch: pytest.MonkeyPatch, offered: list[str], running: bool,
        installed: bool, ok: bool | None, words: str) -> None:
    monkeypatch.setattr(nodes, 'action_type', lambda _: object() if installed else None)
    healthy.actions = offered
    healthy.ours['task_server'] = ['/task_server'] * running
    [row] = [row for row in judge(healthy) if row.requirement == 'actions']
    assert row.ok is ok and words in row.found and bool(row.remedy) == (ok is False)


def change(view: NodeView, **values: Any) -> None:
    view.parameters = {**view.parameters, **values}


def of(name: str, **values: Any) -> Callable[[Seen], None]:
    """Return what changes a stream."""
    def spoil(seen: Seen) -> None:
        for key, value in values.items():
            setattr(seen.streams[name], key, value)
    return spoil


def silent(name: str) -> Callable[[Seen], None]:
    return of(name, publishers=[], arrivals=[], stamps=[], latencies=[], last=None)


def renamed(seen: Seen) -> None:
    seen.joints = {f'fr3_joint{k}': 0.0 for k in range(1, 8)} | dict.fromkeys(FINGER_JOINTS, 0.01)


def framed(frame: str = 'base', far: float = 0.5, turn: float = 1.0) -> Callable[[Seen], None]:
    return of('/ee_pose', last=conversions.pose_message(
        conversions.header(NOW, frame), [far, 0, 0.2], [turn, 0, 0, 0]))


def on_sim_time(seen: Seen, *publishers: str, moves: bool = True) -> None:
    seen.sim_time = dict.fromkeys(seen.sim_time, True)
    seen.streams['/clock'] = Stream('/clock', [End(name, 'x') for name in publishers])
    seen.clocks = [(k, float(k * moves)) for k in range(5)] if publishers else []


def by_transform(seen: Seen) -> None:
    for view in (seen.policy, seen.gate):
        change(view, pose_source='tf')
    seen.frames = FrameTree()


def mismatch(seen: Seen) -> None:
    seen.streams['/vla/action_chunk'].publishers = [
        End('/proxy', 'x', qos.profile(1, reliable=False, latched=False))]
    seen.streams['/vla/action_chunk'].subscribers = [End('/command_gate', 'x', qos.LATEST)]


FAULTS: dict[str, tuple[Callable[[Seen], object], str, str]] = {
    # what is spoiled, the row's beginning, a part of what was found or of the remedy
    'a camera is missing': (silent('/image_primary'), '/image_primary', 'nobody'),
    'a camera has another name': (
        lambda seen: (silent('/image_wrist')(seen), seen.nearby.update(
            {'/image_wrist': ['/hand/image_raw']})), '/image_wrist', '--image-wrist /hand/image'),
    'a camera sends something else': (
        of('/image_wrist', publishers=[End(ROBOT, 'sensor_msgs/msg/CompressedImage')],
           arrivals=[], last=None), '/image_wrist', 'transport: compressed'),
    'a camera is still': (of('/image_wrist', arrivals=[], last=None), '/image_wrist',
                          'nothing came'),
    'a camera is slow': (lambda seen: seen.streams.update(
        {'/image_primary': stream('/image_primary', IMAGE, 0.36, picture())}),
        '/image_primary: rate', '2.8 Hz'),
    'an encoding': (of('/image_wrist', last=picture('32FC1')), '/image_wrist: image', 'rgb8'),
    'cut off': (of('/image_wrist', last=picture()[:99]), '/image_wrist: image', 'cut off'),
    'black': (of('/image_wrist', last=picture(light=0)), '/image_wrist: image', 'all black'),
    'no stamps': (of('/image_primary', stamps=[0.0] * 125, latencies=[NOW] * 125),
                  '/image_primary: stamps', 'all 0'),
    'frozen stamps': (of('/joint_states', stamps=[NOW] * 250), '/joint_states: stamps', 'one'),
    'stamps of another clock': (of('/ee_pose', latencies=[1e9] * 250), '/ee_pose: stamps',
                                'use_sim_time'),
    'old images': (of('/image_wrist', latencies=[0.7] * 125), '/image_wrist: latency', '700 ms'),
    'from the future': (of('/joint_states', latencies=[-0.3] * 250), '/joint_states: latency',
                        'chrony'),
    'cameras apart': (of('/image_wrist', stamps=[NOW + 0.2 * k for k in range(25)]),
                      '/image_wrist: skew', 'ms from /image_primary'),
    'other joints': (renamed, 'joints', 'arm_joints'),
    'a joint too few': (lambda seen: seen.joints.pop(ARM_JOINTS[3]), 'joints', ARM_JOINTS[3]),
    'NaN': (lambda seen: seen.joints.update({ARM_JOINTS[2]: np.nan}), 'joints', 'not finite'),
    'never together': (lambda seen: setattr(seen, 'joints_lack', 'it lacks x'), 'joints', 'lacks'),
    'millimetres of the gripper': (
        lambda seen: seen.joints.update(dict.fromkeys(FINGER_JOINTS, 40.0)), 'gripper', 'metres'),
    "the gate's joints": (lambda seen: change(seen.gate, arm_joints=('a',)), "gate's joints", 'a'),
    'a frame': (framed('world'), '/ee_pose: frame', 'base_frame: world'),
    'two base frames': (lambda seen: change(seen.gate, base_frame='link0'), 'base_frame', 'link0'),
    'millimetres': (framed(far=500.0), '/ee_pose: pose', 'are these millimetres'),
    'no rotation': (framed(turn=0.0), '/ee_pose: pose', 'unit length'),
    'no transform': (by_transform, '/tf', 'no way from gripper to base'),
    'two clocks': (lambda seen: seen.sim_time.update({'/vla_node': True}), 'use_sim_time',
                   '/command_gate: false'),
    'no clock': (on_sim_time, '/clock', 'nobody'),
    'a clock that stands': (
        lambda seen: on_sim_time(seen, ROBOT, moves=False), '/clock', '1 times'),
    'two clocks publish': (
        lambda seen: on_sim_time(seen, ROBOT, '/bag'), '/clock', '2 publishers'),
    'a second publisher': (lambda seen: seen.streams['/arm'].publishers.append(End('/joy', 'x')),
                           '/arm: publishers', '/joy'),
    'nobody listens': (of('/arm', subscribers=[]), '/arm: listeners', '--command-topic'),
    'no gripper': (of('/grip', subscribers=[]), '/grip: listeners', 'gripper_timeout_s'),
    "no gripper's action": (lambda seen: (
        change(seen.gate, gripper='gripper_command'), seen.gate.topics.update(
            gripper_action='/hand/grip'), seen.grippers.update({'/claw': GRIPPER_ACTION})),
        '/hand/grip: action', f'there is /claw ({GRIPPER_ACTION})'),
    'a knuckle told in radians': (lambda seen: (
        change(seen.policy, finger_joints=('knuckle',)), seen.joints.update(knuckle=0.8)),
        'gripper', 'gripper_width'),
    'a controller': (lambda seen: setattr(seen, 'controllers', {'arm': 'inactive'}), 'controllers',
                     'arm: inactive'),
    'no controller': (lambda seen: setattr(seen, 'controllers', {'other': 'inactive'}),
                      'controllers', 'none'),
    'quality of service': (mismatch, '/vla/action_chunk: QoS', '/proxy to /command_gate'),
    'a status nobody hears': (lambda seen: seen.streams.update({'/arm_status': Stream(
        '/arm_status', [End(ROBOT, 'x', qos.NEWEST)],
        [End('/command_gate', 'x', qos.LATEST), End('/bag', 'x', qos.NEWEST)])}),
        '/arm_status: QoS', '/robot to /command_gate'),
    'another namespace': (of('/vla/action_chunk', publishers=[]),
                          '/command_gate hears /vla/action_chunk', 'namespace'),
    'two gates': (lambda seen: seen.ours.update(command_gate=['/command_gate', '/a/command_gate']),
                  'command_gate', '/a/command_gate'),
    'no policy node': (lambda seen: seen.ours.update(vla_node=[]), 'vla_node', 'dtvla run'),
    'alone': (lambda seen: (setattr(seen, 'nodes', []), seen.ours.clear(),
                            of('/arm', publishers=[])(seen)), 'discovery', 'SUBNET'),
    'inactive': (lambda seen: seen.status.update(policy=('INACTIVE', {'reason': 'not activated'})),
                 "policy's state", 'not activated'),
    'a fault': (lambda seen: seen.status.update(gate=('FAULT', {'reason': 'e-stop'})),
                "gate's state", 'dtvla stop --clear'),
    'hung': (lambda seen: seen.status.pop('gate'), "gate's state", 'nothing on /gate_state'),
    'no such policy': (lambda seen: (change(seen.policy, policy='no/such'),
                                     setattr(seen.policy, 'running', False)), 'policy', 'no/such'),
    'another rate': (
        lambda seen: change(seen.gate, chunk_rate=10.0), 'policy: rate', '20 actions'),
    "another rate of the policy's node": (
        lambda seen: change(seen.policy, chunk_rate=10.0), 'policy: rate', '20 actions'),
    'a refused task': (lambda seen: (setattr(seen, 'told', 'fly'), seen.status.update(
        policy=('IDLE', {'rejected': 'unknown: fly', 'rejected_instruction': 'fly'}))), 'task',
        'unknown: fly')}


@pytest.mark.parametrize('size, fits', [((640, 480), True), ((1280, 720), False)])
def test_a_camera_has_the_shape_that_the_policy_was_trained_on(
        healthy: Seen, tmp_path: Path, size: tuple[int, int], fits: bool) -> None:
    change(healthy.policy, policy=str(trained_on(tmp_path / 'policy', wrist=size)))
    assert missing(healthy) == ([] if fits else [Row(
        '/image_wrist: image', False, '64x48 rgb8', 'the shape of 1280x720, on which the policy '
        'was trained', 'set the camera to that shape, or train on images of this one')])


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_is_one_row_with_what_was_found_and_what_helps(healthy: Seen, fault: str) -> None:
    seen, (spoil, row, words) = healthy, FAULTS[fault]
    spoil(seen)
    found = missing(seen)
    assert [each.requirement for each in found] == [row]
    assert words in f'{found[0].found} | {found[0].remedy}'
    assert found[0].wanted and found[0].remedy


def in_lockstep(seen: Seen) -> None:
    """Nothing comes while nobody decides."""
    change(seen.policy, lockstep=True)
    for name in ('/image_primary', '/image_wrist', '/joint_states', '/ee_pose'):
        of(name, arrivals=[], stamps=[], latencies=[], last=None)(seen)


@pytest.mark.parametrize('harmless', [
    lambda seen: on_sim_time(seen, ROBOT), lambda seen: seen.joints.update(wheel=np.nan),
    framed(''), framed('/base'), in_lockstep,
    lambda seen: setattr(seen, 'controllers', {'arm': 'active', 'other': 'inactive'}),
    lambda seen: setattr(seen, 'controllers', 'not asked'),
    lambda seen: (change(seen.gate, gripper='gripper_command'), seen.gate.topics.update(
        gripper_action='/hand/grip'), seen.grippers.update({'/hand/grip': GRIPPER_ACTION})),
    lambda seen: (change(seen.policy, finger_joints=('knuckle',), gripper_width=0.085,
                         finger_closed_position=0.8), seen.joints.update(knuckle=0.2)),
    lambda seen: seen.streams.update({'/instruction': Stream(  # as who takes it from anybody
        '/instruction', [End('/web', 'x', qos.LATEST)], [
            End('/vla_node', 'x', profile) for profile in (qos.LATCHED, qos.LATEST)])})])
def test_what_is_no_fault(healthy: Seen, harmless: Callable[[Seen], object]) -> None:
    harmless(healthy)
    assert not missing(healthy)


# Against real nodes.


def test_nothing_to_judge_by_is_one_line(graph: Any, dtvla: Any) -> None:
    code, _, err = dtvla('doctor')
    assert code == 2
    assert err.splitlines()[-1].startswith('error: neither vla_node nor command_gate runs here')
    assert 'dtvla doctor --robot fr3_servo' in err


@pytest.fixture
def rig(tmp_path: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv('ROS_DOMAIN_ID', fresh_domain())
    made = Rig(tmp_path, policy, strict=False)
    yield made
    made.close()


def asked(rig: Rig, *words: str) -> tuple[int, dict[str, Row]]:
    """Run ``dtvla doctor`` beside the rig; return its exit code and the rows that lack."""
    report = rig.folder / 'doctor.json'
    report.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, '-m', 'dtvla_ros.cli', 'doctor', *words,
                                '--seconds', '4', '--json', str(report)],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    rig.spin(lambda: process.poll() is not None, 90, 'dtvla doctor')
    said = process.communicate()[0]
    assert report.exists() and 'missing' in said, said
    rows = [Row(**row) for row in json.loads(report.read_text())['rows']]
    return process.returncode, {row.requirement: row for row in rows if row.ok is False}


def stamped(message: Any, stamp: float = 0.0) -> Any:
    message.header.stamp = conversions.time_message(stamp)
    return message


def depth(message: Image) -> bytes:
    return images.serialize_image(
        np.ones((48, 64), np.float32), message.header.stamp, '', '32FC1')


def in_world(message: PoseStamped) -> PoseStamped:
    message.header.frame_id = 'world'
    return message


@pytest.mark.slow
def test_real_nodes_in_order_and_each_fault_by_itself(rig: Rig) -> None:
    rig.begin('vla_node')
    rig.begin('command_gate')
    rig.ready()
    assert asked(rig) == (0, {})

    def once(row: str, words: str) -> None:
        code, lacking = asked(rig)
        lacking = {name: each for name, each in lacking.items() if 'state' not in name}
        assert code == 1 and list(lacking) == [row], lacking
        assert words in f'{lacking[row].found} | {lacking[row].remedy}'
        rig.faults.clear()
    for route, fault, row, words in (
            ('image_primary', partial(stamped), '/image_primary: stamps', 'all 0'),
            ('image_wrist', depth, '/image_wrist: image', '32FC1'),
            ('joint_states', only_joints(slice(2, None)), 'joints', ARM_JOINTS[0]),
            ('ee_pose', in_world, '/ee_pose: frame', 'base_frame: world'),
            ('image_wrist', lambda _: None, '/image_wrist', 'nothing came')):
        rig.inject(**{route: fault})
        once(row, words)
    stranger = rig.join(partial(Node, 'stranger'))
    kind = dict(rig.node.get_topic_names_and_types())['/twist_cmd'][0]
    rival = stranger.create_publisher(conversions.message_type(kind), '/twist_cmd', 1)
    once('/twist_cmd: publishers', '/stranger')
    stranger.destroy_publisher(rival)
    chunks = stranger.create_subscription(
        conversions.message_type('trajectory_msgs/msg/JointTrajectory'), '/proxied/action_chunk',
        lambda _: None, qos.profile(1, reliable=True, latched=True))
    once('/proxied/action_chunk: QoS', '/proxy to /stranger')
    stranger.destroy_subscription(chunks)
    rig.interrupt('command_gate')
    code, lacking = asked(rig)
    assert code == 1 and 'not running' in lacking['command_gate'].found


@pytest.mark.slow
def test_a_robot_is_judged_by_a_file_before_the_nodes_run(graph: Any, tmp_path: Any) -> None:
    node = graph.listen()
    graph.launch('arm', '-m', 'benchmarks.arm')
    graph.spin(lambda: node.count_publishers('/image_wrist'), 60, 'the arm')
    graph.folder, graph.faults = tmp_path, {}
    names = [word for name in ('image_primary', 'image_wrist', 'ee_pose')
             for word in (f'--{name.replace("_", "-")}', f'/{name}')]
    code, lacking = asked(graph, '--robot', 'fr3_crisp', *names)
    assert code == 1 and set(lacking) == {'joints', '/fr3_gripper/gripper_action: action'}
    assert 'fr3_joint1' in lacking['joints'].found and 'arm_joints' in lacking['joints'].remedy
    node.create_publisher(Clock, '/clock', 1)
    node.create_publisher(Image, '/front/image_raw', qos_profile_sensor_data)
    node.create_publisher(String, '/unused', 1)
    cell = tmp_path / 'cell.yaml'
    cell.write_text('/**: {ros__parameters: {use_sim_time: true}}\n'
                    '/vla/vla_node: {ros__parameters: {policy: models/nano}}\n'
                    '/command_gate: {ros__parameters: {preset: crisp}}\n')
    code, lacking = asked(graph, str(cell), '--image-primary', '/front/image')
    assert code == 1 and '/front/image' in lacking and '/clock' in lacking
    assert '/front/image_raw' in lacking['/front/image'].remedy


def test_rows_are_plain_data() -> None:
    assert set(dataclasses.asdict(Row('a', None, 'b'))) == {
        'requirement', 'ok', 'found', 'wanted', 'remedy'}
