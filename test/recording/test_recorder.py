"""``dtvla record`` as a user runs it, against a node that really publishes."""

import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosbags.interfaces import QosDurability, QosReliability
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from typer.testing import CliRunner

from dtvla_ros.cli import app
from dtvla_ros.data.bag import decode, kept_names, message_types, open_bag
from dtvla_ros.data.robot_names import RobotNames, names_in_params, parse_topics
from dtvla_ros.errors import UserError
from dtvla_ros.recording.record import (
    DISK_FULL,
    BagThread,
    BagWriter,
    bag_qos,
    silence,
    wanted,
)
from dtvla_ros.ros import images
from dtvla_ros.ros.params_file import ParameterFile
from dtvla_ros.ros.run import STEADY

LATCHED = QoSProfile(depth=3, durability=DurabilityPolicy.TRANSIENT_LOCAL)
JOINTS = {'name': ['a', 'b'], 'position': [0.5, -1.0]}


def start(out, *arguments, limit=None):
    """Start a recording; ``limit``: largest file it may write [bytes]."""
    def prepare():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.Popen(
        [sys.executable, '-m', 'dtvla_ros.cli', 'record', '--out', str(out), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)


def ended(graph, recording, code, seconds=60):
    """Wait until a recording has ended with an exit code; return what it printed, and errors."""
    graph.spin(lambda: recording.poll() is not None, seconds)
    printed, errors = recording.communicate()
    assert recording.returncode == code, errors
    return printed, errors


def read(path):
    """Return the messages of a bag by topic."""
    found = {}
    with open_bag(path) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(decode(connection, data))
    return found


class Source:
    """Publishes joints, numbered images and a latched instruction until it is told to stop."""

    def __init__(self, graph, size=64, rate=50.0):
        node = graph.listen()
        node.create_publisher(String, '/instruction', LATCHED).publish(
            String(data='put the lemon in the blue bin'))
        self.joints = node.create_publisher(JointState, '/joint_states', qos_profile_sensor_data)
        self.camera = node.create_publisher(Image, '/image_primary', qos_profile_sensor_data)
        self.sent, self.size = 0, size
        node.create_timer(1.0 / rate, self.publish, clock=STEADY)

    def heard(self):
        return self.camera.get_subscription_count() and self.joints.get_subscription_count()

    def publish(self):
        if not self.heard():
            return
        self.sent += 1
        self.joints.publish(JointState(**JOINTS))
        pixels = np.full((self.size, self.size, 3), self.sent % 251, np.uint8)
        self.camera.publish(images.serialize_image(pixels, Time(sec=self.sent), 'camera'))


def test_a_bag_holds_what_was_published_and_how_it_was_offered(graph, tmp_path):
    """Messages bit by bit, of a camera at full size and rate; other tools find all they need."""
    source, out = Source(graph, size=480, rate=30.0), tmp_path / 'bag'
    recording = start(out)
    graph.spin(lambda: graph.node.count_subscribers('/episode_mark'), 60,
               'a listener before anybody marks')
    mark = graph.node.create_publisher(String, '/episode_mark', 1)
    graph.spin(mark.get_subscription_count, 20, 'the listener')
    mark.publish(String(data='success'))
    graph.spin(lambda: source.sent >= 60, 60)
    recording.send_signal(signal.SIGINT)
    printed, _ = ended(graph, recording, 0)

    found = read(out)
    assert [m.data for m in found['/episode_mark']] == ['success']
    assert found['/instruction'][0].data == 'put the lemon in the blue bin', 'latched before'
    stamps = [m.header.stamp.sec for m in found['/image_primary']]
    assert len(stamps) > 30 and stamps == list(range(stamps[0], stamps[0] + len(stamps)))
    for message, stamp in zip(found['/image_primary'], stamps, strict=True):
        assert (images.image_to_numpy(message) == stamp % 251).all()
    assert list(found['/joint_states'][0].position) == JOINTS['position']
    assert f'{len(found["/joint_states"]):8}' in printed and ' MB' in printed

    told = yaml.safe_load((out / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    assert told['storage_identifier'] == 'mcap' and told['message_count'] == sum(
        map(len, found.values()))
    with open_bag(out) as reader:
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
        definitions = {c.topic: c.msgdef.data for c in reader.connections}
    assert [(qos[name].durability, qos[name].reliability)
            for name in ('/instruction', '/image_primary')] == [
        (QosDurability.TRANSIENT_LOCAL, QosReliability.RELIABLE),
        (QosDurability.VOLATILE, QosReliability.BEST_EFFORT)]
    assert 'MSG: std_msgs/Header' in definitions['/image_primary'].replace('/msg/', '/')
    assert read(out / 'bag.mcap').keys() == found.keys(), 'the file alone opens too'


def test_only_the_topics_asked_for_and_only_so_long(graph, tmp_path):
    Source(graph).heard = lambda: True
    ended(graph, start(tmp_path / 'bag', '--topics', '/joint_states', '--seconds', '6'), 0)
    assert set(read(tmp_path / 'bag')) == {'/joint_states'}


def test_a_later_publisher_that_offers_less_is_heard_too(graph, tmp_path):
    node = graph.listen()
    first = node.create_publisher(String, '/instruction', LATCHED)
    first.publish(String(data='first'))
    recording = start(tmp_path / 'bag', '--topics', '/instruction')
    graph.spin(first.get_subscription_count, 60)
    graph.wait(2.0)  # what is latched reaches reliable subscriptions only
    second = node.create_publisher(String, '/instruction', qos_profile_sensor_data)
    graph.spin(second.get_subscription_count, 10)
    for _ in range(5):  # each end finds the other in its own time
        second.publish(String(data='second'))
        first.publish(String(data='third'))
        graph.wait(0.3)
    recording.send_signal(signal.SIGINT)
    assert recording.wait(20) == 0
    assert {m.data for m in read(tmp_path / 'bag')['/instruction']} >= {'first', 'second', 'third'}


def test_other_names_are_recorded_and_kept_and_silence_is_told(graph, tmp_path):
    """A camera that only comes compressed, too; what has a type that a dataset needs is named."""
    node, out = graph.listen(), tmp_path / 'bag'
    node.create_publisher(String, '/said', LATCHED).publish(String(data='put it there'))
    node.create_publisher(CompressedImage, '/hand/compressed', LATCHED).publish(
        CompressedImage(format='jpeg'))
    node.create_publisher(Image, '/front/image_raw', LATCHED).publish(Image())
    node.create_publisher(JointState, '/joint_states', LATCHED)
    params = tmp_path / 'robot.yaml'
    params.write_text('/**: {ros__parameters: {base_frame: base_link}}')
    recording = start(out, '--topic', 'instruction=/said', '--topic', 'image_wrist=/hand',
                      '--topic', 'target_pose=', '--params-file', str(params), '--seconds', '6')
    printed, _ = ended(graph, recording, 0)
    assert set(read(out)) == {'/said', '/hand/compressed'}
    lines = printed.splitlines()
    assert any('/image_primary' in line and '--topic image_primary=/front/image_raw' in line
               for line in lines), printed
    assert any('/joint_states' in line and line.startswith('warning: ') for line in lines)
    silent = next(line for line in lines if line.startswith('never heard: '))
    assert '/joint_states (published, but nothing came)' in silent and '/estop' in silent
    assert '/said' not in silent and '/hand' not in silent
    with open_bag(out) as reader:
        assert kept_names(reader, out) == RobotNames(
            {'instruction': '/said', 'image_wrist': '/hand'}, 'base_link')


@pytest.mark.parametrize(('arguments', 'word'), [
    (('--topics', '/a b'), '/a b'), (('--topic', 'image=/a'), 'image'),
    (('--params-file', 'no.yaml'), 'no.yaml'), ((), 'exists already'),
    (('--topics', 'joint_states'), '/joint_states')])
def test_bad_input_touches_nothing(tmp_path, arguments, word):
    (tmp_path / 'kept').write_text('mine')
    done = CliRunner().invoke(app, ['record', '--out', str(tmp_path), *arguments])
    assert isinstance(done.exception, UserError) and word in str(done.exception)
    assert [p.name for p in tmp_path.iterdir()] == ['kept']


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a disk of 6 MB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=6m', 'tmpfs', str(folder)],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'cannot mount a small disk: {done.stderr.strip()}')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.parametrize('kind', ['disk', 'file'])
def test_a_full_disk_ends_the_recording_and_nothing_else(graph, tmp_path, kind, request):
    """What fits is kept, indexed and readable; the publisher goes on."""
    folder = request.getfixturevalue('small_disk') if kind == 'disk' else tmp_path
    source = Source(graph, size=256)
    _, errors = ended(graph, start(
        folder / 'bag', limit=5_000_000 if kind == 'file' else None), DISK_FULL)
    line = errors.strip().splitlines()[-1]
    assert line.startswith('error: ') and 'recording stopped' in line
    assert ('No space left' if kind == 'disk' else 'File too large') in line

    sent = source.sent
    source.heard = lambda: True
    graph.spin(lambda: source.sent > sent + 20, 10)

    found = read(folder / 'bag')
    kept = sum(map(len, found.values()))
    assert f'first {kept} messages' in line
    stamps = [m.header.stamp.sec for m in found['/image_primary']]
    assert len(stamps) >= 15 and stamps == list(range(stamps[0], stamps[0] + len(stamps)))
    told = yaml.safe_load((folder / 'bag' / 'metadata.yaml').read_text())
    assert told['rosbag2_bagfile_information']['message_count'] == kept
    with open_bag(folder / 'bag') as reader:
        times = [t for _, t, _ in reader.messages()]
        assert (reader.start_time, reader.end_time) == (min(times), max(times) + 1)


def test_the_last_messages_make_room_for_the_index(tmp_path):
    """Whole chunks are given up, no more than needed."""
    bag = BagWriter(tmp_path / 'bag')
    topic = bag.add_connection('/word', 'std_msgs/msg/String', typestore=message_types())
    for k in range(8):  # two of them make a chunk
        bag.write(topic, k, bytes(600_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bag.storage.bio.tell() + 100, before[1]))
    try:
        bag.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert bag.finished and bag.truncated == 'File too large'
    with open_bag(tmp_path / 'bag') as reader:
        assert [t for _, t, _ in reader.messages()] == [0, 1, 2, 3, 4, 5]


def test_a_disk_without_room_for_an_index_is_told(graph, tmp_path):
    Source(graph)
    _, errors = ended(graph, start(tmp_path / 'bag', '--seconds', '8', limit=300), DISK_FULL)
    assert 'not even an index' in errors and 'Traceback' not in errors


def test_what_a_slow_disk_cannot_take_is_counted(tmp_path):
    bag, gate = BagWriter(tmp_path / 'bag'), threading.Event()
    write = bag.write

    def slowly(*arguments):
        assert gate.wait(30)
        write(*arguments)
    bag.write = slowly
    thread = BagThread(bag, lambda: None, queue_bytes=1000)
    thread.add_topic('/word', 'std_msgs/msg/String', [bag_qos(True, False)])
    for k in range(50):  # nobody waits for the disk: the gate is shut
        thread.add('/word', k, bytes(100))
    gate.set()
    thread.close()
    thread.add('/word', 50, bytes(100))  # it arrived together with what closed the bag
    assert (thread.written['/word'], thread.dropped['/word']) == (10, 40)
    with open_bag(tmp_path / 'bag') as reader:
        assert reader.message_count == 10


def test_what_is_no_bag_or_cannot_be_one_is_named(tmp_path):
    (tmp_path / 'bag.mcap').write_bytes(b'no bag')
    with pytest.raises(UserError, match='mcap/bag'):
        BagWriter(tmp_path / 'bag.mcap' / 'bag')
    for path in (tmp_path, tmp_path / 'bag.mcap', tmp_path / 'absent'):
        with pytest.raises(UserError, match=str(path)), open_bag(path):
            pass


def test_a_bag_holds_the_cameras_that_the_parameter_file_names():
    config = Path(__file__).parents[2] / 'config/sim_joints.yaml'
    told = names_in_params(ParameterFile.read(config))
    assert told.cameras == ('front',)
    topics = wanted(told)
    assert topics[0] == ['/image_front', '/image_front/compressed']
    assert not any('primary' in topic or 'wrist' in topic for topic in topics[0] + topics[1])
    assert ['/camera_front/camera_info'] in topics
    lines = silence(told, topics, {}, {'/cam/image_raw': 'sensor_msgs/msg/Image'})
    assert any(line.startswith('warning: nothing on /image_front,')
               and '--topic image_front=/cam/image_raw' in line for line in lines)
    usual = [found for found in wanted(RobotNames()) if 'image' in found[0]]
    assert usual == [[f'/image_{name}', f'/image_{name}/compressed']
                     for name in ('primary', 'wrist')]
    assert RobotNames.from_text(told.to_text()) == told
    assert parse_topics(['image_front=/cam/image_raw']) == {'image_front': '/cam/image_raw'}
    with pytest.raises(UserError, match='did you mean image_primary'):
        parse_topics(['image_primery=/cam/image_raw'])
