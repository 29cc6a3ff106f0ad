"""Bags of other robots: their own names, frames, joints and conventions; and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Message
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from scipy.spatial.transform import Rotation
from support.bags import Robot
from typer.testing import CliRunner

from dtvla_ros.cli import app
from dtvla_ros.conventions import FINGER_JOINTS
from dtvla_ros.data import layout
from dtvla_ros.data.bag import Told, decode, message_types
from dtvla_ros.data.from_bag import ConvertOptions, Report, convert
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.robot_names import RobotNames, names_in_params, parse_topics
from dtvla_ros.data.validate import validate
from dtvla_ros.errors import UserError
from dtvla_ros.ros.params_file import ParameterFile

BASE, HAND = 'base', 'fr3_hand_tcp'
Entry = tuple[str, str, int, Any]  # topic, type, received [ns], message (or bytes of an image)


def edited(source: Path, out: Path, edit: Any, **custom: str) -> Path:
    """Copy a bag; ``edit`` gets each entry and returns what is written in its place."""
    types, topics = message_types(), dict[str, Any]()
    with Reader(source) as reader, Writer(
            out, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        for key, value in custom.items():
            writer.set_custom_data(key, value)
        for connection, received, data in reader.messages():
            whole = decode(connection, data)
            for topic, kind, at, message in edit(connection.topic, connection.msgtype, received,
                                                 whole):
                if topic not in topics:
                    topics[topic] = writer.add_connection(topic, kind, typestore=types)
                writer.write(topics[topic], at, types.serialize_cdr(message, kind))
    return out


def same(*entry: Any) -> list[Entry]:
    return [entry]


def renamed(**names: str) -> Any:
    """Return an edit that gives topics other names."""
    return lambda topic, *rest: [(names.get(topic[1:].replace('/', '_'), topic), *rest)]


def converted(out: Path, *bags: Path, told: Told = Told(), **options: Any,
              ) -> tuple[Report, DatasetReader]:
    report = convert(bags, out, ConvertOptions(told=told, **options))
    return report, DatasetReader(out)


def columns(reader: DatasetReader) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(reader.column(name))
            for name in (layout.ACTION, layout.STATE, layout.JOINTS)}


def refused(tmp_path: Path, bag: Path, *words: str, told: Told = Told(), **options: Any) -> str:
    """Return the one line with which a bag is refused; it names every word, and leaves nothing."""
    with pytest.raises(UserError) as caught:
        convert([bag], tmp_path / 'none', ConvertOptions(told=told, **options))
    text = str(caught.value)
    assert not (tmp_path / 'none').exists() and '\n' not in text and len(text) < 700
    for word in (str(bag), *words):
        assert word in text, text
    return text


def command(*words: object) -> Any:
    return CliRunner().invoke(app, ['data', 'from-bag', *map(str, words)])


# Names


OTHER = {'image_primary': '/front/image_raw', 'image_wrist': '/hand/color/image_raw/compressed',
         'twist_cmd': '/servo_node/delta_twist_cmds', 'joint_states': '/fr3/joint_states'}


@pytest.fixture
def plain(tmp_path):
    """Return a bag under the package's own names, and what it becomes."""
    bag = Robot('twist').write(tmp_path / 'plain')
    return bag, columns(converted(tmp_path / 'plain-data', bag)[1])


def test_topics_of_other_names_are_told_or_kept(tmp_path, plain):
    """In the options, or in the bag by who recorded it; what is told counts more."""
    bag, expected = plain
    other = edited(bag, tmp_path / 'other', renamed(**OTHER))
    for name in ('image_primary', 'image_wrist'):
        told = {k: v for k, v in OTHER.items() if k != name}
        line = refused(tmp_path, other, f'no /{name}', f'--topic {name}={OTHER[name]}',
                       told=Told(RobotNames(told)))
        assert '/servo_node/delta_twist_cmds' in line, 'what is there is listed'
    names = [word for name, topic in OTHER.items() for word in ('--topic', f'{name}={topic}')]
    done = command(other, '--out', tmp_path / 'told', *names)
    assert done.exit_code == 0, done.output
    wrong = RobotNames({**OTHER, 'image_primary': '/nothing'})
    kept = edited(bag, tmp_path / 'kept', renamed(**OTHER), dtvla=wrong.to_text())
    reports = [converted(tmp_path / 'told2', other, told=Told(RobotNames(OTHER)))[1],
               DatasetReader(tmp_path / 'told'), converted(tmp_path / 'kept2', kept, told=Told(
                   RobotNames({'image_primary': OTHER['image_primary']})))[1]]
    for reader in reports:
        for name, values in columns(reader).items():
            np.testing.assert_array_equal(values, expected[name])


def test_a_camera_is_found_compressed(tmp_path, plain):
    bag, expected = plain
    other = edited(bag, tmp_path / 'other', renamed(
        image_primary='/image_primary/compressed', image_wrist='/image_wrist/compressed'))
    np.testing.assert_array_equal(
        columns(converted(tmp_path / 'data', other)[1])[layout.STATE], expected[layout.STATE])


@pytest.mark.parametrize(('word', 'told'), [
    ('image_primary', 'NAME=/TOPIC'), ('image_primary=front', 'NAME=/TOPIC'),
    ('image_primary=/a b', 'NAME=/TOPIC'), ('image_primary=/a/', 'NAME=/TOPIC'),
    ('image_pirmary=/a', 'did you mean image_primary?'), ('x=/a', 'choose from image_primary')])
def test_what_is_no_name_is_refused(word, told):
    with pytest.raises(UserError, match='--topic') as caught:
        parse_topics([word])
    assert told in str(caught.value)


def test_names_survive_as_text_and_nothing_else_does():
    names = RobotNames(
        {'action': '/a'}, BASE, HAND, ('a', 'b'), ('c',), ('front',), 0.085, 0.0, 0.8)
    assert names.over(RobotNames()) == RobotNames().over(names) == names
    assert RobotNames.from_text(names.to_text()) == names
    assert parse_topics(['/action= /a', 'instruction=']) == {'action': '/a'}
    for text in ('', 'null', '[]', '{"topics": []}', '{"topics": {"action": 3}}', '{"x": 1}',
                 '{"base_frame": 3}', '{"arm_joints": "abc"}', '{"gripper_width": "wide"}',
                 '{"action_space": "JOINTS"}', None,
                 3):
        with pytest.raises((ValueError, TypeError)):
            RobotNames.from_text(text)


def test_frames_and_joints_come_from_the_nodes_parameters(tmp_path):
    """A node's own values count more than a wildcard's; the gripper's frame only with tf."""
    path = tmp_path / 'params.yaml'
    path.write_text(yaml.safe_dump({
        'vla': {'vla_node': {'ros__parameters': {'arm_joints': ['a', 'b'], 'ee_frame': HAND}}},
        '/**': {'ros__parameters': {'base_frame': 'world', 'pose_source': 'tf'}},
        '/command_gate': {'ros__parameters': {'base_frame': BASE}}}))
    assert names_in_params(ParameterFile.read(path)) == RobotNames({}, BASE, HAND, ('a', 'b'))
    path.write_text(path.read_text().replace('pose_source: tf', 'pose_source: topic'))
    assert names_in_params(ParameterFile.read(path)).ee_frame == ''
    for text in ('a: [', '/n: {ros__parameters: {base_frame: 3}}'):
        path.write_text(text)
        with pytest.raises(UserError, match=str(path)):
            names_in_params(ParameterFile.read(path))


def test_damaged_names_in_a_bag_are_named(tmp_path, plain):
    refused(tmp_path, edited(plain[0], tmp_path / 'bad', same, dtvla='{"topics": 3}'),
            'metadata.yaml', 'topics is 3', 'remove')


def test_a_task_that_nothing_tells_is_given(tmp_path):
    """A second without commands then ends an episode."""
    first = Robot()
    bag = edited(first.write(tmp_path / 'bag', Robot(clock=20.0)), tmp_path / 'silent',
                 lambda topic, *rest: [] if topic == '/instruction' else [(topic, *rest)])
    refused(tmp_path, bag, '--instruction')
    report, reader = converted(tmp_path / 'data', bag, instruction='open the drawer')
    assert (report.episodes, report.pieces) == (2, 2) and reader.tasks == ['open the drawer']
    report, reader = converted(tmp_path / 'same', tmp_path / 'bag', instruction='close it')
    assert reader.tasks == ['close it'] and report.episodes == 1


def test_types_are_part_of_a_name(tmp_path, plain):
    bag = edited(plain[0], tmp_path / 'bag', lambda topic, kind, at, message: [(
        topic, 'geometry_msgs/msg/Pose', at, message.pose)] if topic == '/ee_pose' else [(
            topic, kind, at, message)])
    refused(tmp_path, bag, '/ee_pose is geometry_msgs/msg/Pose', 'geometry_msgs/msg/PoseStamped')


# Pose


def transforms(message: Any, *placed: tuple[str, str, NDArray[Any], Rotation]) -> Any:
    """Return a TFMessage with the stamp of a message."""
    def entry(parent: str, child: str, position: NDArray[Any], rotation: Rotation) -> Any:
        return Message(
            header=Message(stamp=message.header.stamp, frame_id=parent), child_frame_id=child,
            transform=Message(translation=Message(**dict(zip('xyz', map(float, position)))),
                              rotation=Message(**dict(zip('xyzw', rotation.as_quat().tolist())))))
    return Message(transforms=[entry(*p) for p in placed])


TOOL = np.array([0.0, 0.0, 0.1034]), Rotation.from_euler('z', -np.pi / 4)


def on_tf(topic: str, kind: str, at: int, message: Any) -> list[Entry]:
    """Replace the pose by transforms: a static one of the tool, a moving one of the flange."""
    if topic != '/ee_pose':
        return [(topic, kind, at, message)]
    p, q = message.pose.position, message.pose.orientation
    turn = Rotation.from_quat([q.x, q.y, q.z, q.w]) * TOOL[1].inv()
    flange = np.array([p.x, p.y, p.z]) - turn.apply(TOOL[0])
    return [('/tf_static', 'tf2_msgs/msg/TFMessage', at, transforms(
                message, ('flange', HAND, *TOOL))),
            ('/tf', 'tf2_msgs/msg/TFMessage', at, transforms(
                message, (BASE, 'flange', flange, turn), ('odom', 'wheel', flange, turn)))]


def test_the_pose_comes_from_transforms(tmp_path, plain):
    bag, expected = plain
    on = edited(bag, tmp_path / 'tf', on_tf)
    refused(tmp_path, on, 'no /ee_pose', '--base-frame', HAND, 'flange')
    refused(tmp_path, on, 'does not lead', 'wheel', told=Told(RobotNames({}, 'world', HAND)))
    without = edited(bag, tmp_path / 'without', lambda topic, *rest: (
        [] if topic == '/ee_pose' else [(topic, *rest)]))
    refused(tmp_path, without, 'no /ee_pose')
    both = edited(bag, tmp_path / 'both', lambda *entry: [*same(*entry), *(
        on_tf(*entry) if entry[0] == '/ee_pose' else [])])
    refused(tmp_path, both, 'does not lead', told=Told(RobotNames({}, BASE, 'elsewhere')))
    where = RobotNames({}, BASE, HAND)
    for k, (source, told) in enumerate((
            (on, where), (edited(bag, tmp_path / 'kept', on_tf, dtvla=where.to_text()),
                          RobotNames()))):
        report, reader = converted(tmp_path / f'data{k}', source, told=Told(told))
        assert report.pieces == 1
        np.testing.assert_allclose(
            columns(reader)[layout.STATE], expected[layout.STATE], atol=1e-6)


def test_poses_and_commands_are_in_one_frame(tmp_path, plain):
    def framed(**frames: str) -> Any:
        def edit(topic: str, kind: str, at: int, message: Any) -> list[Entry]:
            if topic[1:] in frames:
                message.header.frame_id = frames[topic[1:]]
            return [(topic, kind, at, message)]
        return edit
    tool = edited(plain[0], tmp_path / 'tool', framed(twist_cmd='tool0'))
    refused(tmp_path, tool, "/twist_cmd: header.frame_id is 'tool0'", "'base'")
    refused(tmp_path, plain[0], "/ee_pose: header.frame_id is 'base'", "'fr3_link0'",
            '--base-frame base', told=Told(RobotNames({}, 'fr3_link0')))
    empty = edited(plain[0], tmp_path / 'empty', framed(twist_cmd='', ee_pose='/base'))
    converted(tmp_path / 'data', empty, told=Told(RobotNames({}, 'base')))


# What messages hold


def spoilt(topic: str, number: int, spoil: Any) -> Any:
    """Return an edit of one message of a topic."""
    seen = [0]

    def edit(of: str, kind: str, at: int, message: Any) -> list[Entry]:
        if of == topic:
            seen[0] += 1
            if seen[0] - 1 == number:
                spoil(message)
        return [(of, kind, at, message)]
    return edit


def put(message: Any, field: str, place: Any, value: float) -> None:
    """Change values of a message's array, which is read-only."""
    values = np.array(getattr(message, field))
    values[place] = value
    setattr(message, field, values)


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize(('topic', 'spoil'), [
    ('/ee_pose', lambda m, v: setattr(m.pose.position, 'x', v)),
    ('/ee_pose', lambda m, v: setattr(m.pose.orientation, 'w', v)),
    ('/joint_states', lambda m, v: put(m, 'position', 0, v)),
    ('/joint_states', lambda m, v: put(m, 'position', 2, v)),
    ('/action', lambda m, v: put(m.points[0], 'positions', 3, v))])
def test_what_is_not_finite_is_a_gap_and_counted(tmp_path, topic, spoil, value):
    robot = Robot()
    bag = edited(robot.write(tmp_path / 'bag'), tmp_path / 'bad', spoilt(
        topic, 6, lambda message: spoil(message, value)))
    report, reader = converted(tmp_path / 'data', bag)
    assert (report.pieces, report.frames) == (2, robot.steps - 1)
    assert sum(report.gaps.values()) == 1 and sum(report.left_out.values()) == 1
    assert topic in next(iter(report.left_out))
    assert all(np.isfinite(values).all() for values in columns(reader).values())


def split_joints(topic: str, kind: str, at: int, message: Any) -> list[Entry]:
    """Send arm and fingers apart, with a mobile base's wheels and an empty message between."""
    if topic != '/joint_states':
        return [(topic, kind, at, message)]
    order = np.argsort(message.name)[::-1]
    parts: list[tuple[list[str], Any]] = [(['wheel_left', 'wheel_right'], [1.0, np.nan]), ([], [])]
    for own in (FINGER_JOINTS, ('panda_joint1',)):
        kept = [k for k in order if message.name[k] in own]
        parts.append(([message.name[k] for k in kept], message.position[kept]))
    none = np.zeros(0)
    return [(topic, kind, at + k, Message(
        header=message.header, name=names, position=np.array(positions, float), velocity=none,
        effort=none)) for k, (names, positions) in enumerate(parts)]


def test_joints_come_in_parts_and_beside_those_of_others(tmp_path, plain):
    bag, expected = plain
    parts = edited(bag, tmp_path / 'parts', split_joints)
    refused(tmp_path, parts, 'several sets of joints', 'wheel_left', '--joints')
    refused(tmp_path, parts, 'joint9', '--joints', told=Told(RobotNames(arm_joints=('joint9',))))
    report, reader = converted(tmp_path / 'data', parts, told=Told(
        RobotNames(arm_joints=('panda_joint1',))))
    assert report.pieces == 1 and not sum(report.gaps.values())
    for name, values in columns(reader).items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize('compressed', [False, True])
def test_a_depth_camera_is_refused_however_it_comes(tmp_path, compressed):
    depth = np.full((32, 32), 1200, np.uint16)

    def edit(topic: str, kind: str, at: int, message: Any) -> list[Entry]:
        if topic != '/image_primary':
            return [(topic, kind, at, message)]
        header = message.header
        shown = [('/front/color', kind, at, message)]
        if compressed:
            return [*shown, (topic, kind, at, Message(
                header=header, format='16UC1; png compressed ',
                data=cv2.imencode('.png', depth)[1].ravel()))]
        return [*shown, (topic, 'sensor_msgs/msg/Image', at, Message(
            header=header, height=32, width=32, encoding='16UC1', is_bigendian=0, step=64,
            data=depth.view(np.uint8).ravel()))]
    bag = edited(Robot().write(tmp_path / 'bag'), tmp_path / 'depth', edit)
    refused(tmp_path, bag, '/image_primary', '16UC1', '--topic image_primary=/front/color')


def stamped(shift: Any, *of: str) -> Any:
    """Return an edit of header stamps [ns]."""
    def edit(topic: str, kind: str, at: int, message: Any) -> list[Entry]:
        if topic in of:
            stamp = message.header.stamp
            ns = shift(stamp.sec * 10**9 + stamp.nanosec)
            stamp = message.header.stamp.__class__(ns // 10**9, ns % 10**9)
            message.header = message.header.__class__(stamp, message.header.frame_id)
        return [(topic, kind, at, message)]
    return edit


@pytest.mark.parametrize(('shift', 'said'), [
    (lambda ns: 0, 'header.stamp is 0 in all 12'), (lambda ns: ns + 500 * 10**9, '+500.0 s')])
@pytest.mark.parametrize('topic', ['/image_wrist', '/joint_states', '/ee_pose'])
def test_stamps_of_nothing_or_of_another_clock_are_refused(tmp_path, topic, shift, said):
    """The times at which they were received can take their place."""
    bag = edited(Robot().write(tmp_path / 'bag'), tmp_path / 'odd', stamped(shift, topic))
    refused(tmp_path, bag, topic, said, '--stamps received')
    report, _ = converted(tmp_path / 'data', bag, told=Told(arrival=True))
    assert report.frames and not report.gaps[topic]


def test_a_clock_that_goes_back_cuts_the_episode(tmp_path):
    """Nothing of before is mixed with what comes after."""
    jump = 7 * 10**9 + 6 * 5 * 10**7
    bag = edited(Robot(steps=24).write(tmp_path / 'bag'), tmp_path / 'back', stamped(
        lambda ns: ns - 10**9 if ns >= jump + 3 * 10**8 else ns, '/action', '/joint_states',
        '/ee_pose', '/image_primary', '/image_wrist'))
    report, reader = converted(tmp_path / 'data', bag)
    assert report.pieces == 2 and report.gaps['command'] == 1
    assert [len(row) for row in (reader.lengths,)] == [2] and sum(reader.lengths) == 24


def test_stamps_of_one_topic_that_go_back_are_refused(tmp_path):
    bag = edited(Robot(steps=60).write(tmp_path / 'bag'), tmp_path / 'odd', stamped(
        lambda ns: ns - 10**9 if ns >= 85 * 10**8 else ns, '/image_primary'))
    refused(tmp_path, bag, '/image_primary: header.stamp goes back by 0.95 s',
            '--stamps received')
    assert converted(tmp_path / 'data', bag, told=Told(arrival=True))[0].pieces == 1


# Gripper


def gripped(scale: Any) -> Any:
    """Return an edit: the fingers follow the command, which is then told in another way."""
    wide = [0.04]

    def edit(topic: str, kind: str, at: int, message: Any) -> list[Entry]:
        if topic == '/gripper_cmd':
            wide[0] = 0.04 * message.data
            told = scale(message.data)
            return [] if told is None else [(topic, kind, at, Message(data=float(told)))]
        if topic == '/joint_states':
            put(message, 'position', slice(1, None), wide[0])
        return [(topic, kind, at, message)]
    return edit


@pytest.mark.parametrize(('scale', 'said', 'ends'), [
    (lambda v: 0.04 * v, ('0.04', '--gripper CLOSED,OPEN'), (0.0, 0.04)),
    (lambda v: 1.0 - v, ('told to close', '--gripper 1,0'), (1.0, 0.0)),
    (lambda v: 255.0 * (1.0 - v), ('255', '--gripper'), (255.0, 0.0)),
    (lambda v: 100.0 * v, ('100', '--gripper'), (0.0, 100.0)),
    (lambda v: None, ('no gripper command', '--gripper measured'), 'measured')])
def test_a_gripper_of_another_convention_is_seen_and_can_be_told(tmp_path, scale, said, ends):
    robot = Robot('twist', steps=40)
    robot.actions[:, 6] = np.where(np.arange(40) < 20, -1.0, 1.0)
    bag = edited(robot.write(tmp_path / 'bag'), tmp_path / 'odd', gripped(scale))
    refused(tmp_path, bag, *said)
    _, reader = converted(tmp_path / 'data', bag, told=Told(gripper=ends))
    actions = columns(reader)[layout.ACTION]
    wrong = np.flatnonzero(actions[:, 6] != robot.actions[:, 6])
    # The fingers are late, or the guess of it is.
    assert len(wrong) <= (8 if ends == 'measured' else 0)
    np.testing.assert_allclose(actions[:, :6], robot.actions[:, :6], atol=1e-5)


@pytest.mark.parametrize('text', ['0', '1,1', 'a,b', '0,nan', '0,1,2', ''])
def test_ends_of_a_gripper_are_two_numbers(tmp_path, text):
    done = command(Robot().write(tmp_path / 'bag'), '--out', tmp_path / 'out', '--gripper', text)
    assert isinstance(done.exception, UserError) and 'CLOSED,OPEN' in str(done.exception)


def test_commands_beyond_an_action_are_counted(tmp_path):
    bag = edited(Robot('twist').write(tmp_path / 'bag'), tmp_path / 'fast', spoilt(
        '/twist_cmd', 3, lambda message: setattr(message.twist.linear, 'x', 1.0)))
    done = command(bag, '--out', tmp_path / 'data')
    assert done.exit_code == 0 and 'clipped: 1 commands' in done.output


# Rates


def test_frames_come_as_the_images_do_even_at_no_whole_rate(tmp_path):
    """Every third control step: 20/3 images a second, each with the command of its moment."""
    robot = Robot(steps=24, camera_every=3)
    report, reader = converted(tmp_path / 'data', robot.write(tmp_path / 'bag'))
    assert (report.pieces, report.frames) == (1, 8) and reader.fps == pytest.approx(20 / 3)
    np.testing.assert_array_equal(columns(reader)[layout.ACTION], robot.actions[::3])
    assert reader.episode(0).images[next(iter(layout.CAMERAS))].shape[0] == 8


def test_a_rate_that_stamps_speak_against_is_refused(tmp_path):
    bag = Robot().write(tmp_path / 'bag')
    refused(tmp_path, bag, '--rate 10', '20 commands a second', rate=10)
    assert converted(tmp_path / 'data', bag, rate=19)[0].pieces == 1


def test_many_pieces_are_an_error_with_a_remedy_that_works(tmp_path):
    """One line, exit code 1; the dataset is there."""
    every_third = tuple(('/image_wrist', k) for k in range(0, 24, 3))
    bag = Robot(steps=24, without=every_third).write(tmp_path / 'bag')
    done = command(bag, '--out', tmp_path / 'data')
    error = done.output.strip().splitlines()[-1]
    assert done.exit_code == 1 and error.startswith('error: ') and '/image_wrist' in error
    assert DatasetReader(tmp_path / 'data').lengths == [2] * 8
    (finding,) = validate(tmp_path / 'data')
    assert '8 of 8 episodes' in finding.problem and 'shorter than a chunk' in finding.problem
    remedy = error[error.index('--tolerance'):].split()[:2]
    again = command(bag, '--out', tmp_path / 'again', *remedy)
    assert again.exit_code == 0 and '1 episodes in 1 pieces, 24 frames' in again.output
    assert validate(tmp_path / 'again') == []
    robot = Robot(steps=24, without=(('/image_wrist', 11),))
    assert command(robot.write(tmp_path / 'one'), '--out', tmp_path / 'c').exit_code == 0




# What cannot be meant


def each(topic: str, change: Any) -> Any:
    """Return an edit that changes the messages of a topic in place, or returns others."""
    def edit(name: str, kind: str, at: int, message: Any) -> list[Entry]:
        return [(name, kind, at, change(message) or message if name == topic else message)]
    return edit


def at_second(sec: int) -> Any:
    return lambda message: setattr(message.header, 'stamp', Message(sec=sec, nanosec=5))


def millimetres(message: Any) -> None:
    for axis in 'xyz':
        setattr(message.pose.position, axis, 1000 * getattr(message.pose.position, axis))


def joints(*positions: float, names: Any = None) -> Any:
    def change(message: Any) -> None:
        message.position = np.array(positions)
        message.name = names or message.name
    return change


@pytest.mark.parametrize(('topic', 'change', 'said'), [
    ('/ee_pose', millimetres, ['/ee_pose: it is more than 10 m away', 'millimetres']),
    ('/joint_states', joints(1e308, 0.03, 0.03), ['24 messages on /joint_states', '1e+308']),
    ('/joint_states', joints(np.nan, 0.03, 0.03), ['messages on /joint_states', 'is nan']),
    ('/joint_states', joints(), ['it has 3 names and 0 positions']),
    ('/joint_states', joints(0.1, 0.03, 0.03, 0.1, names=['panda_joint1', *FINGER_JOINTS,
                                                          'panda_joint1']), ['twice']),
    *((topic, at_second(7), [f'{topic}: header.stamp is 7 in all 24', '--stamps received'])
      for topic in ('/ee_pose', '/joint_states', '/twist_cmd')),
    ('/twist_cmd', lambda m: setattr(m.twist.linear, 'x', np.inf),
     ['fewer than two commands that can be used', '24 messages on /twist_cmd: not finite']),
    ('/image_primary', lambda m: setattr(m, 'data', np.frombuffer(b'RIFF____WEBP', np.uint8)),
     ['no sound JPEG or PNG); record it as rgb8'])])
def test_what_cannot_be_meant_is_told_with_its_reason(tmp_path, topic, change, said):
    bag = Robot('twist', steps=24).write(tmp_path / 'bag')
    text = refused(tmp_path, edited(bag, tmp_path / 'odd', each(topic, change)), *said)
    assert '0x' not in text


def test_a_command_of_another_type_is_told_so(tmp_path, plain):
    bag = edited(plain[0], tmp_path / 'bag', lambda topic, kind, at, message: [(
        topic, 'geometry_msgs/msg/Twist', at, message.twist)] if topic == '/twist_cmd' else [(
            topic, kind, at, message)])
    refused(tmp_path, bag, '/twist_cmd is geometry_msgs/msg/Twist', 'TwistStamped')


@pytest.mark.parametrize(('names', 'said'), [
    (RobotNames({'image_primary': '/image_wrist'}),
     '/image_wrist is said to be image_primary and image_wrist'),
    (RobotNames(arm_joints=('panda_joint1', 'panda_joint1')), 'panda_joint1 is told twice'),
    (RobotNames(arm_joints=FINGER_JOINTS[:1]), f'{FINGER_JOINTS[0]} is told twice')])
def test_names_told_twice_are_refused(tmp_path, plain, names, said):
    refused(tmp_path, plain[0], said, told=Told(names))


@pytest.mark.parametrize('placed', [
    [(BASE, HAND, np.zeros(3)), ('world', HAND, np.zeros(3))], [(BASE, HAND, np.full(3, np.nan))],
    [(BASE, 'a', np.zeros(3)), ('a', BASE, np.zeros(3)), ('b', HAND, np.zeros(3))]])
def test_transforms_that_lead_nowhere_are_told(tmp_path, plain, placed):
    bag = edited(plain[0], tmp_path / 'bag', lambda topic, kind, at, message: [(
        '/tf', 'tf2_msgs/msg/TFMessage', at, transforms(message, *(
            (*entry, Rotation.identity()) for entry in placed)))] if topic == '/ee_pose' else [(
                topic, kind, at, message)])
    refused(tmp_path, bag, f'does not lead from {BASE} to {HAND}', 'one parent of every frame',
            told=Told(RobotNames({}, BASE, HAND)))


def test_a_bag_of_ros_1_is_told_what_converts_it(tmp_path):
    (bag := tmp_path / 'run.bag').write_bytes(b'#ROSBAG V2.0\n')
    refused(tmp_path, bag, f'rosbags-convert --src {bag} --dst FOLDER')


def test_an_instruction_that_is_no_text_is_one_line(tmp_path, plain, dtvla):
    code, _, error = dtvla('data', 'from-bag', plain[0], '--out', tmp_path / 'new',
                           '--instruction', 'put \udcff')
    assert code == 2 and 'is no text that UTF-8 can hold' in error
    assert not (tmp_path / 'new').exists()
