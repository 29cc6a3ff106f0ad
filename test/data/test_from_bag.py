"""Bags become datasets: a real simulated run, and made-up ones with known answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dtvla_ros.actions import osc
from dtvla_ros.data import layout
from dtvla_ros.data.bag import decode, message_types, open_bag, stamp_of
from dtvla_ros.data.from_bag import ConvertOptions, convert
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.recording.record import BagWriter, bag_qos
from dtvla_ros.ros import images
from dtvla_ros.ros.conversions import message_type

ROOT = Path(__file__).resolve().parents[2]
TASKS = ('put_the_lemon_in_the_blue_bin', 'stack_the_red_cube_on_the_green_cube')
FINGERS = ('panda_finger_joint1', 'panda_finger_joint2')
DOWN = Rotation.from_euler('xyz', [np.pi, 0.1, 0.2])


def messages(bag, topic):
    with open_bag(bag) as reader:
        return [decode(c, data) for c, _, data in reader.messages(
            [c for c in reader.connections if c.topic == topic])]


@pytest.mark.slow
def test_a_real_run_there_and_back_and_a_step_of_training(graph, policy, tmp_path):
    from test.nodes.test_closed_loop import start_all

    bag, data, steps = tmp_path / 'bag', tmp_path / 'data', 10
    recording = subprocess.Popen([
        sys.executable, '-m', 'dtvla_ros.cli', 'record', '--out', str(bag)], cwd=ROOT)
    try:
        start_all(graph, policy, 'sim', '-p', f'tasks:=[{", ".join(TASKS)}]', '-p',
                  f'max_steps:={steps}')
        graph.spin(lambda: any(json.loads(m.data)['finished']
                               for _, m in graph.of('episode')), 120)
        assert graph.processes['sim_bridge'].wait(15) == 0  # its last words have left by then
        recording.send_signal(signal.SIGINT)
        assert recording.wait(20) == 0
    finally:
        recording.kill()

    report = convert([bag], data, ConvertOptions())
    assert (report.episodes, report.pieces, report.frames) == (2, 2, 2 * steps)
    assert not report.unthought and not sum(report.gaps.values())
    reader = DatasetReader(data)
    assert reader.fps == 20
    assert reader.tasks == [t.replace('_', ' ') for t in TASKS]

    commands = {stamp_of(m): m.points[0].positions for m in messages(bag, '/action')}
    assert len(commands) == 2 * steps
    actions = np.array([commands[stamp] for stamp in sorted(commands)], np.float32)
    np.testing.assert_array_equal(reader.column(layout.ACTION), actions)
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(2 * steps, 8, 7)
    np.testing.assert_array_equal(chunk[0], actions[:8])
    padding = np.asarray(reader.column(layout.ACTION_IS_PAD))
    assert not padding[2].any() and padding[steps - 1].tolist() == [False] + [True] * 7
    assert not chunk[steps - 1, 1:, :6].any(), 'nothing of the next episode'

    pictures = {stamp_of(m): images.image_to_numpy(m) for m in messages(bag, '/image_wrist')}
    poses = {stamp_of(m): m.pose.position for m in messages(bag, '/ee_pose')}
    stamps = sorted(commands)
    for number in (0, 1):
        episode = reader.episode(number)
        assert episode.metadata['task'] == TASKS[number] and episode.metadata['success'] is False
        for k, image in enumerate(episode.images['observation.images.wrist_image']):
            seen = pictures[stamps[number * steps + k]]
            assert np.abs(image.astype(int) - seen).mean() < 2.0, 'but for video compression'
        state = episode.columns[layout.STATE]
        for k, row in enumerate(state):
            p = poses[stamps[number * steps + k]]
            np.testing.assert_allclose(row[:3], (p.x, p.y, p.z), atol=1e-6)
        assert np.abs(np.linalg.norm(state[:, 3:6], axis=1) - np.pi).max() < 0.2
        assert (state[:, 6] > 0).all() and (state[:, 7] == -state[:, 6]).all()

    whole = [m.data for m in messages(bag, '/vla/reasoning') if not m.data.endswith('…')]
    looks = [stamp_of(m) for m in messages(bag, '/vla/action_chunk')]
    thoughts = reader.column(layout.REASONING)
    assert len(whole) == len(looks)
    for stamp, text in zip(looks, whole):
        assert thoughts[stamps.index(stamp)] == text
    assert set(thoughts) == set(whole)

    train(data, tmp_path / 'run')
    with pytest.raises(UserError, match='2 episodes without success'):
        convert([bag], tmp_path / 'good', ConvertOptions(successful=True))
    assert not (tmp_path / 'good').exists()


def train(data, out):
    """Take one step of training on a dataset."""
    from dataclasses import replace

    import torch
    from support.tiny import CONFIG

    from dtvla_ros.training.sft import SftRun, Trainer

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = Trainer(replace(CONFIG, validation_share=0.0), SftRun((data,), out, steps=1))
        trainer.prepare()
        assert np.isfinite(trainer.train_step(trainer.batches.train(0)).loss.item())
    finally:
        torch.set_num_threads(before)


@dataclass
class Robot:
    """A made-up run of ``steps`` commands at 20 Hz, on a clock of its own; all stamps exact."""

    preset: str = 'action'
    steps: int = 12
    task: str = 'put the lemon in the blue bin'
    clock: float = 7.0
    camera_every: int = 1
    without: tuple[tuple[str, int], ...] = ()  # topic, step at which it is silent
    shade: int = 0
    late: bool = False  # the last step is received after the next run has begun
    actions: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(0)
        self.actions = rng.uniform(-1, 1, (self.steps, 7)).astype(np.float32)
        self.actions[:, 6] = np.where(np.arange(self.steps) < 5, -1.0, 1.0)
        self.position = np.array([0.4, 0.0, 0.2]) + 0.01 * np.arange(self.steps)[:, None]

    def write(self, path, *more, episode=False):
        """Write this and ``more`` runs one after another into one bag."""
        bag = BagWriter(path)
        known, received = {}, 10**18

        def put(topic, kind, latched=False, data=None, **values):
            nonlocal received
            if topic not in known:
                known[topic] = bag.add_topic(topic, kind, [bag_qos(True, latched)])
            if not isinstance(data, bytes):
                values |= {} if data is None else {'data': data}
                message = as_rosbags(message_type(kind)(**values))
                data = message_types().serialize_cdr(message, kind)
            received += 10**6
            bag.write(known[topic], received, data)
        before = None
        for run in (self, *more):
            received += 2 * 10**9
            run._begin(put, episode)
            if before is not None and before.late:
                before._step(put, before.steps - 1)
            run._go_on(put, episode)
            before = run
        bag.finish()
        return path

    def _report(self, put, done):
        put('/sim/episode', 'std_msgs/msg/String', True, data=json.dumps({
            'episode': 0, 'task': self.task, 'seed': int(self.clock), 'instruction': self.task,
            'success': done and self.task.startswith('put'), 'done': done}))

    def _begin(self, put, episode):
        put('/instruction', 'std_msgs/msg/String', True, data=self.task)
        if episode:
            self._report(put, False)

    def _go_on(self, put, episode):
        for k in range(self.steps - self.late):
            self._step(put, k)
        if episode:
            self._report(put, True)

    def _step(self, put, k):
        ns = round((self.clock + 0.05 * k) * 1e9)
        stamp = message_type('builtin_interfaces/msg/Time')(
            sec=ns // 10**9, nanosec=ns % 10**9)
        head = message_type('std_msgs/msg/Header')(stamp=stamp, frame_id='base')
        silent = {topic for topic, step in self.without if step == k}
        if k % self.camera_every == 0:
            for name in ('primary', 'wrist'):
                if f'/image_{name}' not in silent:
                    pixels = np.full((32, 32, 3), 10 * k + self.shade, np.uint8)
                    put(f'/image_{name}', 'sensor_msgs/msg/CompressedImage',
                        data=images.serialize_compressed(pixels, stamp))
        if '/joint_states' not in silent:
            put('/joint_states', 'sensor_msgs/msg/JointState', header=head,
                name=['panda_joint1', *FINGERS], position=[0.1 * k, 0.03, 0.03])
        put('/ee_pose', 'geometry_msgs/msg/PoseStamped', header=head,
            pose=pose(self.position[k], DOWN))
        if k % 4 == 0:
            put('/vla/reasoning', 'std_msgs/msg/String', data=f'thought {k}…')
            put('/vla/reasoning', 'std_msgs/msg/String', data=f'thought {k} of {self.task}')
            put('/vla/action_chunk', 'trajectory_msgs/msg/JointTrajectory', header=head)
        if 'command' not in silent:
            self._command(put, k, head)

    def _command(self, put, k, head):
        action = self.actions[k].astype(float)
        if self.preset == 'action':
            point = message_type('trajectory_msgs/msg/JointTrajectoryPoint')
            put('/action', 'trajectory_msgs/msg/JointTrajectory', header=head,
                points=[point(positions=action.tolist())])
            return
        vector = message_type('geometry_msgs/msg/Vector3')
        if self.preset == 'twist':
            x, y, z, a, b, c = osc.velocity(action).tolist()
            put('/twist_cmd', 'geometry_msgs/msg/TwistStamped', header=head,
                twist=message_type('geometry_msgs/msg/Twist')(
                    linear=vector(x=x, y=y, z=z), angular=vector(x=a, y=b, z=c)))
        else:
            goal, turn = osc.target_pose(action, self.position[k], DOWN.as_quat())
            put('/target_pose', 'geometry_msgs/msg/PoseStamped', header=head,
                pose=pose(goal, Rotation.from_quat(turn)))
        put('/gripper_cmd', 'std_msgs/msg/Float64', data=(1.0 - action[6]) / 2.0)


def as_rosbags(value):
    """Return a message as rosbags takes it: rclpy's serialize_message leaves bytes at the end."""
    if hasattr(value, 'get_fields_and_field_types'):
        return SimpleNamespace(**{name: as_rosbags(getattr(value, name))
                                  for name in value.get_fields_and_field_types()})
    if isinstance(value, array):
        return np.array(value)
    return [as_rosbags(entry) for entry in value] if isinstance(value, list) else value


def pose(position, rotation):
    x, y, z = position.tolist()
    a, b, c, w = rotation.as_quat().tolist()
    return message_type('geometry_msgs/msg/Pose')(
        position=message_type('geometry_msgs/msg/Point')(x=x, y=y, z=z),
        orientation=message_type('geometry_msgs/msg/Quaternion')(x=a, y=b, z=c, w=w))


@pytest.mark.parametrize('preset', ['action', 'twist', 'target'])
def test_every_kind_of_command_becomes_the_action_it_came_from(tmp_path, preset):
    robot = Robot(preset)
    report = convert([robot.write(tmp_path / 'bag')], tmp_path / 'data', ConvertOptions())
    assert (report.episodes, report.frames) == (1, robot.steps)
    reader = DatasetReader(tmp_path / 'data')
    np.testing.assert_allclose(reader.column(layout.ACTION), robot.actions, atol=1e-5)
    state = np.asarray(reader.column(layout.STATE))
    np.testing.assert_allclose(state[:, :3], robot.position, atol=1e-6)
    np.testing.assert_allclose(state[:, 3:6], [DOWN.as_rotvec()] * robot.steps, atol=1e-5)
    np.testing.assert_allclose(state[:, 6:], [[0.03, -0.03]] * robot.steps, atol=1e-7)
    joints = np.asarray(reader.column(layout.JOINTS))
    assert joints.shape == (robot.steps, 1), 'the arm without its fingers'
    assert reader.column(layout.REASONING) == [
        f'thought {k - k % 4} of {robot.task}' for k in range(robot.steps)]


def test_frames_follow_the_camera_and_keep_every_command(tmp_path):
    robot = Robot(camera_every=2)
    convert([robot.write(tmp_path / 'bag')], tmp_path / 'data', ConvertOptions())
    reader = DatasetReader(tmp_path / 'data')
    assert reader.fps == 10 and len(reader.table) == robot.steps // 2
    np.testing.assert_array_equal(reader.column(layout.ACTION), robot.actions[::2])
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(-1, 8, 7)
    np.testing.assert_array_equal(chunk[1], robot.actions[2:10])
    shades = [image.mean() for image in reader.episode(0).images['observation.images.image']]
    np.testing.assert_allclose(shades, 20 * np.arange(len(shades)), atol=3)


def test_episodes_end_with_their_instruction_and_fit_one_dataset(tmp_path):
    other = 'stack the red cube on the green cube'
    bag = Robot().write(tmp_path / 'a', Robot(task=other, clock=2.0))
    report = convert([bag, Robot(steps=5).write(tmp_path / 'b')], tmp_path / 'data',
                     ConvertOptions())
    assert (report.episodes, report.frames) == (3, 29)
    reader = DatasetReader(tmp_path / 'data')
    assert [row['tasks'][0] for row in reader.episodes] == [Robot.task, other, Robot.task]
    assert [row['length'] for row in reader.episodes] == [12, 12, 5]
    assert {t.split(' of ')[1] for t in reader.column(layout.REASONING)[12:24]} == {other}


def test_a_command_received_late_stays_with_its_episode(tmp_path):
    first = Robot(late=True)
    bag = first.write(tmp_path / 'bag', Robot(task='stack the red cube', clock=30.0))
    convert([bag], tmp_path / 'data', ConvertOptions())
    reader = DatasetReader(tmp_path / 'data')
    assert [row['length'] for row in reader.episodes] == [12, 12]
    np.testing.assert_array_equal(reader.column(layout.ACTION)[11], first.actions[11])


def test_a_clock_that_starts_anew_mixes_nothing_up(tmp_path):
    bag = Robot().write(tmp_path / 'bag', Robot(task='stack the red cube', shade=100))
    convert([bag], tmp_path / 'data', ConvertOptions())
    reader = DatasetReader(tmp_path / 'data')
    first, second = (reader.episode(k).images['observation.images.image'].astype(int)
                     for k in (0, 1))
    np.testing.assert_allclose((second - first).mean(axis=(1, 2, 3)), 100, atol=4)


def test_a_missing_command_cuts_the_episode(tmp_path):
    robot = Robot(without=(('command', 6),))
    report = convert([robot.write(tmp_path / 'bag')], tmp_path / 'data', ConvertOptions())
    assert (report.pieces, report.frames, report.gaps['command']) == (2, 11, 1)
    padding = np.asarray(DatasetReader(tmp_path / 'data').column(layout.ACTION_IS_PAD))
    assert padding[0].tolist() == [False] * 6 + [True] * 2, 'nothing is known beyond the gap'


def test_only_what_the_simulator_calls_successful(tmp_path):
    failed = Robot(task='stack the red cube on the green cube', clock=30.0)
    bag = Robot().write(tmp_path / 'bag', failed, episode=True)
    report = convert([bag], tmp_path / 'data', ConvertOptions(successful=True))
    assert (report.episodes, report.failed) == (1, 1)
    assert DatasetReader(tmp_path / 'data').episode(0).metadata['success'] is True
    with pytest.raises(UserError, match='--successful.*sim/episode'):
        convert([Robot().write(tmp_path / 'silent')], tmp_path / 'none',
                ConvertOptions(successful=True))


def test_a_missing_frame_cuts_the_episode_and_is_told(tmp_path):
    robot = Robot(without=(('/image_wrist', 4), ('/joint_states', 9)))
    report = convert([robot.write(tmp_path / 'bag')], tmp_path / 'data', ConvertOptions())
    assert dict(report.gaps) == {'command': 0, '/image_wrist': 1, '/joint_states': 1}
    assert (report.episodes, report.pieces, report.frames) == (1, 3, 10)
    reader = DatasetReader(tmp_path / 'data')
    assert [row['length'] for row in reader.episodes] == [4, 4, 2]
    expected = np.delete(robot.actions, [4, 9], axis=0)
    np.testing.assert_array_equal(reader.column(layout.ACTION), expected)
    assert {json.loads(row['facts'])['index'] for row in reader.episodes} == {0}, 'one scene'
    report = convert([tmp_path / 'bag'], tmp_path / 'loose', ConvertOptions(tolerance=0.06))
    assert report.pieces == 1 and not sum(report.gaps.values())


def test_what_cannot_be_used_is_named_and_leaves_nothing(tmp_path):
    robot = Robot()
    bag = robot.write(tmp_path / 'bag')
    for options, bags, word in (
            (ConvertOptions(fingers=('thumb',)), [bag], 'thumb'),
            (ConvertOptions(camera_every=3), [bag], '1, 2, 4, 5'),
            (ConvertOptions(command='/twist_cmd'), [bag], '/twist_cmd'),
            (ConvertOptions(), [tmp_path / 'absent'], 'absent'),
            (ConvertOptions(), [bag, Robot(camera_every=2).write(tmp_path / 'slow')], 'slow')):
        with pytest.raises(UserError, match=word):
            convert(bags, tmp_path / 'data', options)
        assert not (tmp_path / 'data').exists()
    (tmp_path / 'data').mkdir()
    with pytest.raises(UserError, match='exists already'):
        convert([bag], tmp_path / 'data', ConvertOptions())


def test_the_command_says_what_it_made(tmp_path):
    Robot(without=(('/image_wrist', 4),)).write(tmp_path / 'bag')
    done = subprocess.run(
        [sys.executable, '-m', 'dtvla_ros.cli', 'data', 'from-bag', str(tmp_path / 'bag'),
         '--out', str(tmp_path / 'data')], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '1 episodes in 2 pieces, 11 frames' in done.stdout
    assert '1 frames without /image_wrist' in done.stdout
