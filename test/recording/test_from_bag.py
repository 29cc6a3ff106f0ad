"""Bags become datasets: a real simulated run, and made-up ones with known answers."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace as Message

import numpy as np
import pytest
from support.bags import DOWN, Robot
from typer.testing import CliRunner

from dtvla_ros.cli import app
from dtvla_ros.data import layout
from dtvla_ros.data.bag import Told, stamp_of
from dtvla_ros.data.from_bag import ConvertOptions, convert
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.robot_names import RobotNames
from dtvla_ros.data.validate import fits_policy
from dtvla_ros.errors import UserError
from dtvla_ros.ros import images
from dtvla_ros.thought import as_compact, as_sentence

ROOT = Path(__file__).resolve().parents[2]
TASKS = ('put_the_lemon_in_the_blue_bin', 'stack_the_red_cube_on_the_green_cube')
PRIMARY, WRIST = layout.CAMERAS


def converted(tmp_path, *bags, **options):
    """Return the report and the dataset of bags."""
    report = convert(bags, tmp_path / 'data', ConvertOptions(**options))
    return report, DatasetReader(tmp_path / 'data')


@pytest.mark.slow
def test_a_real_run_there_and_back(graph, policy, tmp_path):
    from test.nodes.test_closed_loop import finished, start_all
    from test.recording.test_recorder import read

    bag, steps = tmp_path / 'bag', 10
    recording = subprocess.Popen([
        sys.executable, '-m', 'dtvla_ros.cli', 'record', '--out', str(bag)], cwd=ROOT)
    try:
        start_all(graph, policy, 'sim', tasks=f'[{", ".join(TASKS)}]', max_steps=steps)
        graph.spin(lambda: finished(graph), 120)
        assert graph.processes['sim_bridge'].wait(15) == 0  # its last words have left by then
        recording.send_signal(signal.SIGINT)
        assert recording.wait(20) == 0
    finally:
        recording.kill()

    report, reader = converted(tmp_path, bag)
    assert (report.episodes, report.pieces, report.frames) == (2, 2, 2 * steps)
    assert not report.unthought and not sum(report.gaps.values())
    said = read(bag)
    assert reader.fps == 20
    assert reader.tasks == [t.replace('_', ' ') for t in TASKS]

    commands = {stamp_of(m): m.points[0].positions for m in said['/action']}
    stamps = sorted(commands)
    np.testing.assert_array_equal(reader.column(layout.ACTION), np.array(
        [commands[stamp] for stamp in stamps], np.float32))
    padding = np.asarray(reader.column(layout.ACTION_IS_PAD))
    assert padding[steps - 1].tolist() == [False] + [True] * 7, 'nothing of the next episode'
    pixels = {stamp_of(m): images.image_to_numpy(m) for m in said['/image_wrist']}
    for number in (0, 1):
        episode = reader.episode(number)
        assert (episode.metadata['task'], episode.metadata['success']) == (TASKS[number], False)
        own = np.array([pixels[t] for t in stamps[number * steps:(number + 1) * steps]])
        off = np.abs(np.array(episode.images[WRIST]).astype(int) - own)
        assert off.mean((1, 2, 3)).max() < 2.0, 'but for compression'
    whole = [as_compact(m.data) for m in said['/vla/reasoning']]
    thoughts = reader.column(layout.REASONING)
    assert [thoughts[stamps.index(stamp_of(m))] for m in said['/vla/action_chunk']] == whole
    assert set(thoughts) == set(whole)
    assert not fits_policy(reader.root, policy[0])
    with pytest.raises(UserError, match='2 episodes without success'):
        convert([bag], tmp_path / 'good', ConvertOptions(successful=True))
    assert not (tmp_path / 'good').exists()


@pytest.mark.parametrize('preset', ['action', 'twist', 'target'])
def test_every_kind_of_command_becomes_the_action_it_came_from(tmp_path, preset):
    robot = Robot(preset)
    report, reader = converted(tmp_path, robot.write(tmp_path / 'bag'))
    assert (report.episodes, report.frames) == (1, robot.steps)
    np.testing.assert_allclose(reader.column(layout.ACTION), robot.actions, atol=1e-5)
    state = np.asarray(reader.column(layout.STATE))
    np.testing.assert_allclose(state[:, :3], robot.position, atol=1e-6)
    np.testing.assert_allclose(state[:, 3:6], [DOWN.as_rotvec()] * robot.steps, atol=1e-5)
    np.testing.assert_allclose(state[:, 6:], [[0.03, -0.03]] * robot.steps, atol=1e-7)
    joints = np.asarray(reader.column(layout.JOINTS))
    assert joints.shape == (robot.steps, 1), 'the arm without its fingers'
    assert reader.column(layout.REASONING) == [
        f'thought {k - k % 4} of {robot.task}' for k in range(robot.steps)]


def test_a_knuckles_angle_becomes_the_opening_in_metres(tmp_path):
    robot = Robot()  # its fingers' positions add up to 0.06, half way from open to closed here
    told = Told(RobotNames(gripper_width=0.08, finger_closed_position=0.12))
    _, reader = converted(tmp_path, robot.write(tmp_path / 'bag'), told=told)
    state = np.asarray(reader.column(layout.STATE))
    np.testing.assert_allclose(state[:, 6:], [[0.02, -0.02]] * robot.steps, atol=1e-7)


@pytest.mark.parametrize('published', [
    lambda compact: (as_sentence(compact),),
    lambda compact: (f'{compact[:20]}…', f'{compact[:40]}…', compact),  # by version 0.1
], ids=['sentences', 'compact'])
def test_thoughts_are_stored_compact(tmp_path, published):
    def compact(k):
        return (f'holding nothing done red cube missed now lower wooden bin at x{40 + k} y-17 '
                'next grasp move still left down')
    robot = Robot(thoughts=lambda k: published(compact(k)))
    _, reader = converted(tmp_path, robot.write(tmp_path / 'bag'))
    assert reader.column(layout.REASONING) == [compact(k - k % 4) for k in range(robot.steps)]


class Driven(Robot):
    """Driven by a person in steps 4 to 7; words were put into the thought of step 8."""

    def _step(self, bag, k):
        def status(topic, **values):
            bag.put(topic, 'diagnostic_msgs/msg/DiagnosticStatus', level=0, name='', message='',
                    hardware_id='', values=[Message(key=key, value=value)
                                            for key, value in values.items()])
        status('/gate_state', driver='person' if 4 <= k < 8 else 'policy')
        super()._step(bag, k)
        status('/vla/state', stamp=f'{self.clock + 0.05 * (k - k % 4):.9f}',
               forced='{"object": "lemon"}' if k >= 8 else '')


@pytest.mark.parametrize(('preset', 'space'), [
    ('action', ''), ('twist', ''), ('action', 'OSC_POSE_ABSOLUTE')])
@pytest.mark.parametrize('arrival', [False, True], ids=['header', 'received'])
def test_who_drove_and_which_thoughts_were_forced_are_columns(tmp_path, preset, space, arrival):
    robot = Driven(preset)
    _, reader = converted(tmp_path, robot.write(tmp_path / 'bag'), told=Told(
        RobotNames(action_space=space), arrival=arrival))
    steps = np.arange(robot.steps)
    assert np.ravel(reader.column(layout.INTERVENTION)).tolist() == (
        (steps >= 4) & (steps < 8)).tolist()
    assert np.ravel(reader.column(layout.FORCED)).tolist() == (steps >= 8).tolist()
    _, reader = converted(tmp_path / 'b', Robot().write(tmp_path / 'former'))
    assert not np.any(reader.column(layout.INTERVENTION)), 'a bag that does not say'


def test_frames_follow_the_camera_and_keep_every_command(tmp_path):
    """A slower camera leaves fewer frames, each with the chunk at the control rate."""
    robot = Robot(camera_every=2)
    _, reader = converted(tmp_path, robot.write(tmp_path / 'bag'))
    assert reader.fps == 10 and len(reader.table) == robot.steps // 2
    np.testing.assert_array_equal(reader.column(layout.ACTION), robot.actions[::2])
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(-1, 8, 7)
    np.testing.assert_array_equal(chunk[1], robot.actions[2:10])
    shades = [image.mean() for image in reader.episode(0).images[PRIMARY]]
    np.testing.assert_allclose(shades, 20 * np.arange(len(shades)), atol=3)


def test_episodes_end_with_their_instruction_and_fit_one_dataset(tmp_path):
    """A clock that starts anew mixes nothing up."""
    other = 'stack the red cube on the green cube'
    bag = Robot().write(tmp_path / 'a', Robot(task=other, shade=100))
    report, reader = converted(tmp_path, bag, Robot(steps=5).write(tmp_path / 'b'))
    assert (report.episodes, report.frames) == (3, 29)
    assert [row['tasks'][0] for row in reader.episodes] == [Robot.task, other, Robot.task]
    assert reader.lengths == [12, 12, 5]
    assert {t.split(' of ')[1] for t in reader.column(layout.REASONING)[12:24]} == {other}
    first, second = (reader.episode(k).images[PRIMARY].astype(int) for k in (0, 1))
    np.testing.assert_allclose((second - first).mean(axis=(1, 2, 3)), 100, atol=4)


@pytest.mark.parametrize('space', ['', 'OSC_POSE_ABSOLUTE'])
def test_a_goal_is_from_the_pose_of_its_own_run(tmp_path, space):
    """Two runs with the same stamps, elsewhere."""
    preset = 'action' if space else 'target'
    first, second = Robot(preset), Robot(preset, task='stack the red cube')
    second.position += 0.3
    _, reader = converted(tmp_path, first.write(tmp_path / 'bag', second), told=Told(
        RobotNames(action_space=space)))
    expected = np.concatenate([np.column_stack([
        run.position + 0.05 * run.actions[:, :3], run.actions[:, 6]]) if space else run.actions
        for run in (first, second)])
    actions = np.asarray(reader.column(layout.ACTION))
    np.testing.assert_allclose(actions[:, [0, 1, 2, 6]] if space else actions, expected, atol=1e-5)


def test_a_command_received_late_stays_with_its_episode(tmp_path):
    first = Robot(late=True)
    _, reader = converted(tmp_path, first.write(
        tmp_path / 'bag', Robot(task='stack the red cube', clock=30.0)))
    assert reader.lengths == [12, 12]
    np.testing.assert_array_equal(reader.column(layout.ACTION)[11], first.actions[11])


def test_a_missing_command_cuts_the_episode(tmp_path):
    """No chunk reaches over the gap."""
    robot = Robot(without=(('command', 6),))
    report, reader = converted(tmp_path, robot.write(tmp_path / 'bag'))
    assert (report.pieces, report.frames, report.gaps['command']) == (2, 11, 1)
    padding = np.asarray(reader.column(layout.ACTION_IS_PAD))
    assert padding[0].tolist() == [False] * 6 + [True] * 2, 'nothing is known beyond the gap'


def test_only_what_the_simulator_calls_successful(tmp_path):
    failed = Robot(task='stack the red cube on the green cube', clock=30.0)
    report, reader = converted(tmp_path, Robot().write(
        tmp_path / 'bag', failed, episode=True), successful=True)
    assert (report.episodes, report.failed) == (1, 1)
    assert reader.episode(0).metadata['success'] is True
    with pytest.raises(UserError, match='--successful.*episode_mark.*sim/episode'):
        convert([Robot().write(tmp_path / 'silent')], tmp_path / 'none',
                ConvertOptions(successful=True))


class Marked(Robot):
    """Marked by a person at steps, and in the pause after it."""

    def __init__(self, marks, *afterwards, **given):
        super().__init__(**given)
        self.marks, self.afterwards = marks, afterwards

    def _step(self, bag, k):
        super()._step(bag, k)
        for text in [self.marks[k]] if k in self.marks else []:
            bag.put('/episode_mark', 'std_msgs/msg/String', data=text)
        for text in self.afterwards if k == self.steps - 1 else ():
            bag.put('/episode_mark', 'std_msgs/msg/String', data=text)


LAST = 'put the can in the wooden bin'


@pytest.mark.parametrize('episode, marks, success', [
    (False, ({}, {}, {}), [None, None, None]),
    (False, ({3: 'success'}, {3: 'success', 5: 'failure'}, {}), [True, False, None]),
    (False, ({3: 'failure', 11: ' success '}, {0: 'perhaps'}, {}), [True, None, None]),
    (True, ({}, {}, {}), [True, False, True]),
    (True, ({3: 'failure'}, {3: 'success'}, {}), [False, True, True])])
def test_the_last_mark_of_a_person_counts_more_than_the_simulator(tmp_path, episode, marks,
                                                                  success):
    first, *more = (Marked(told, task=task, clock=10.0 * k) for k, (told, task) in enumerate(
        zip(marks, (Robot.task, 'stack the red cube', LAST)), 1))
    report, reader = converted(tmp_path, first.write(tmp_path / 'bag', *more, episode=episode))
    assert [reader.success(k) for k in range(3)] == success
    assert report.left_out == ({'/episode_mark: neither success nor failure': 1}
                               if 'perhaps' in marks[1].values() else {})
    kept = [task for task, good in zip(reader.tasks, success) if good]
    if kept:
        report, reader = converted(tmp_path / 'kept', tmp_path / 'bag', successful=True)
        assert reader.tasks == kept and report.failed == 3 - len(kept)


def test_a_mark_in_the_pause_is_of_the_episode_before(tmp_path):
    first = Marked({}, 'failure', 'success', task='')
    bag = first.write(tmp_path / 'bag', Marked({}, 'failure', task='', clock=30.0))
    _, reader = converted(tmp_path, bag, instruction=Robot.task)
    assert [reader.success(k) for k in range(2)] == [True, False]


def test_a_missing_frame_cuts_the_episode_and_is_told(tmp_path):
    """Unless the tolerance lets a neighbour stand in."""
    robot = Robot(without=(('/image_wrist', 4), ('/joint_states', 9)))
    robot.write(tmp_path / 'bag')
    done = CliRunner().invoke(
        app, ['data', 'from-bag', str(tmp_path / 'bag'), '--out', str(tmp_path / 'data')])
    assert done.exit_code == 1, 'in more than two pieces'
    assert '1 episodes in 3 pieces, 10 frames' in done.output
    assert '--tolerance 0.051' in done.output
    for topic in ('/image_wrist', '/joint_states'):
        assert f'1 frames without {topic}' in done.output
    reader = DatasetReader(tmp_path / 'data')
    assert reader.lengths == [4, 4, 2]
    expected = np.delete(robot.actions, [4, 9], axis=0)
    np.testing.assert_array_equal(reader.column(layout.ACTION), expected)
    assert {reader.metadata(k)['index'] for k in range(3)} == {0}, 'one scene'
    report = convert([tmp_path / 'bag'], tmp_path / 'loose', ConvertOptions(tolerance=0.051))
    assert report.pieces == 1 and not sum(report.gaps.values())


def test_what_cannot_be_used_is_named_and_leaves_nothing(tmp_path):
    bag = Robot().write(tmp_path / 'bag')
    for options, bags, word in (
            ({'told': Told(RobotNames(finger_joints=('thumb',)))}, [bag], 'thumb.*--fingers'),
            ({'told': Told(command='/twist_cmd')}, [bag], '/twist_cmd'),
            ({}, [tmp_path / 'no'], '/no'),
            ({}, [bag, Robot(camera_every=2).write(tmp_path / 'slow')], 'slow')):
        with pytest.raises(UserError, match=word):
            convert(bags, tmp_path / 'data', ConvertOptions(**options))
        assert not (tmp_path / 'data').exists()
    (tmp_path / 'data').mkdir()
    with pytest.raises(UserError, match='exists already'):
        convert([bag], tmp_path / 'data', ConvertOptions())
