"""Bags of an arm that is commanded by its joints become datasets of its positions or offsets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bags import DOWN, OPEN, SO101, JointRobot
from typer.testing import CliRunner

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.cli import app
from dtvla_ros.data import layout
from dtvla_ros.data.bag import Told, kept_names, open_bag
from dtvla_ros.data.from_bag import ConvertOptions, convert
from dtvla_ros.data.inspect import dataset_statistics
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.robot_names import RobotNames, names_in_params
from dtvla_ros.data.validate import fits_policy, validate
from dtvla_ros.data.view import view
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.transform import PolicyTransform, write_transform
from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids
from dtvla_ros.recording.record import silence, wanted
from dtvla_ros.ros.params_file import ParameterFile, find_robot

DRIVER = {
    '/image_primary': '/static_camera/image_raw', '/image_wrist': '/follower/image_raw',
    '/joint_states': '/follower/joint_states', '/joint_commands': '/leader/joint_states',
    '/joint_trajectory': '/follower/arm_trajectory_controller/joint_trajectory'}
ARM = RobotNames(
    base_frame='base_link', ee_frame='gripper_link', arm_joints=SO101, finger_joints=('gripper',),
    gripper_width=0.1, finger_open_position=OPEN, action_space='JOINT_POSITION')
LEADER = ('--topic', 'joint_commands=/leader/joint_states')


def command(*words: object) -> Any:
    return CliRunner().invoke(app, ['data', 'from-bag', *map(str, words)])


def converted(out: Path, bag: Path, names: RobotNames = ARM, **told: Any) -> DatasetReader:
    convert([bag], out, ConvertOptions(told=Told(names, **told)))
    return DatasetReader(out)


def refused(tmp_path: Path, bag: Path, *words: str, names: RobotNames = ARM,
            options: dict[str, Any] | None = None, **told: Any) -> None:
    with pytest.raises(UserError) as caught:
        convert([bag], tmp_path / 'none', ConvertOptions(told=Told(names, **told),
                                                         **options or {}))
    text = str(caught.value)
    assert not (tmp_path / 'none').exists() and '\n' not in text and len(text) < 700
    for word in (str(bag), *words):
        assert word in text, text


def policy_of(folder: Path, contract: ActionContract, words: str) -> Path:
    """Write what `fits_policy` reads of a training run: config, vocabulary and contract."""
    tokenizer = build_tokenizer(words.split())
    config = DecoderConfig.nano(
        tokenizer.get_vocab_size(), special_ids(tokenizer), width=32, layers=1, image_size=32,
        tokens=(4, 4), channels=(8, 8), chunk_steps=8)
    low, high = (0.0,) * contract.dim, (1.0,) * contract.dim
    folder.mkdir()
    write_transform(folder, PolicyTransform(
        replace(config, action_dim=contract.dim), tokenizer,
        ActionStatistics(low, high, contract.gripper_index), contract=contract))
    return folder


@pytest.mark.parametrize(('preset', 'options', 'source'), [
    ('joint_trajectory', (), DRIVER['/joint_trajectory']),
    ('joint_commands', LEADER, '/leader/joint_states'),
    ('leader', LEADER, '/leader/joint_states'), ('action', (), '/action'),
    ('', (), '/follower/joint_states')])
def test_joint_commands_of_any_kind_become_positions(tmp_path, preset, options, source):
    """With the shipped file of the arm alone, and with what was recorded nowhere as measured."""
    robot = JointRobot(preset, steps=24, names=DRIVER)
    bag, out = robot.write(tmp_path / 'bag'), tmp_path / 'data'
    done = command(bag, '--out', out, '--robot', 'so101', *options)
    assert done.exit_code == 0, done.output
    assert f'JOINT_POSITION of {", ".join(SO101)}, gripper at 20 Hz, from {source}' in done.output
    reader, contract = DatasetReader(out), ActionContract.of_joints(SO101)
    frames = robot.steps - (not preset)  # nothing was measured after the last one
    assert reader.lengths == [frames] and reader.fps == 20
    assert reader.info['robot_type'] == 'so101' and reader.contract == contract

    actions = np.asarray(reader.column(layout.ACTION))
    np.testing.assert_allclose(actions[:, :5], robot.targets[:frames], atol=1e-6)
    closing = np.where(robot.closed[:frames], 1.0, -1.0)
    # Measured fingers tell up to a quarter of a second early.
    assert (actions[:, 5] != closing).sum() <= (0 if preset else 5)
    measured = np.array([robot._measured(k)[1] for k in range(frames)])
    np.testing.assert_allclose(reader.column(layout.JOINTS), measured[:, :5], atol=1e-6)
    state = np.asarray(reader.column(layout.STATE))
    np.testing.assert_allclose(state[:, :3], robot.position[:frames], atol=1e-6)
    np.testing.assert_allclose(state[:, 3:6], [DOWN.as_rotvec()] * frames, atol=1e-5)
    np.testing.assert_allclose(state[:, 6], 0.05 * measured[:, 5] / OPEN, atol=1e-6)
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(frames, 8, 6)
    np.testing.assert_array_equal(chunk[3], actions[3:11])
    np.testing.assert_array_equal(chunk[-1, 1:], chunk[-1, [-1] * 7], 'it stays where it was sent')

    assert validate(out) == []
    run = policy_of(tmp_path / 'run', contract, robot.task + ' thought of 0 4 8 12 16 20')
    assert not fits_policy(out, run)
    other = ActionContract.of_joints(('base', *SO101[1:]))
    (finding,) = fits_policy(out, policy_of(tmp_path / 'other', other, robot.task + ' thought of '
                                            '0 4 8 12 16 20'))
    assert 'shoulder_pan' in finding.problem and 'base' in finding.problem
    assert dataset_statistics(reader.root, 0).to_dict()
    assert view(reader.root, tmp_path / 'view.html', [], None) == 1


@pytest.mark.parametrize('preset', ['joint_trajectory', ''])
def test_offsets_are_from_where_the_joints_were_measured(tmp_path, preset):
    robot = JointRobot(preset)
    reader = converted(tmp_path / 'data', robot.write(tmp_path / 'bag'),
                       replace(ARM, action_space='JOINT_DELTA', gripper_opens_at=100.0,
                               gripper_closes_at=0.0))
    actions, frames = np.asarray(reader.column(layout.ACTION)), reader.lengths[0]
    measured = np.array([robot._measured(k)[1][:5] for k in range(frames)])
    np.testing.assert_allclose(actions[:, :5] + measured, robot.targets[:frames], atol=1e-6)
    assert actions[-1, 5] == 0.0
    if preset:  # the fingers tell a quarter of a second early
        np.testing.assert_array_equal(actions[:, 5], np.where(robot.closed[:frames], 0.0, 100.0))
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(-1, 8, 6)
    np.testing.assert_array_equal(chunk[-1, -1], [0.0] * 5 + [0.0], 'it moves no further')
    assert reader.contract.controller == 'JOINT_DELTA'


def test_what_the_recorder_kept_says_it_all(tmp_path):
    """Names, frames and action space; an arm without a gripper's channel, one named camera."""
    kept = replace(ARM, gripper_channel='', cameras=('front',), topics={
        'joint_trajectory': '/arm/joint_trajectory'})
    robot = JointRobot('joint_trajectory', names={
        '/joint_trajectory': '/arm/joint_trajectory', '/image_primary': '/image_front'})
    bag = robot.write(tmp_path / 'bag', dtvla=kept.to_text())
    with open_bag(bag) as reader:
        assert kept_names(reader, bag) == kept
    done = command(bag, '--out', tmp_path / 'data')
    assert done.exit_code == 0, done.output
    reader = DatasetReader(tmp_path / 'data')
    assert reader.camera_keys == ['observation.images.front']
    assert reader.contract == ActionContract.of_joints(SO101, gripper='')
    np.testing.assert_allclose(
        reader.column(layout.ACTION), robot.targets[:robot.steps], atol=1e-6)


@pytest.mark.parametrize(('rate', 'found'), [(None, 20), (50, 50)])
def test_positions_that_come_often_are_thinned(tmp_path, rate, found):
    """A leader at 100 Hz: 20 Hz as the nodes have it, or another rate below its own."""
    robot = JointRobot('leader', steps=24)
    bag = robot.write(tmp_path / 'bag')
    convert([bag], tmp_path / 'data', ConvertOptions(told=Told(ARM), rate=rate))
    reader = DatasetReader(tmp_path / 'data')
    every = 1 if found == 20 else 2  # images of which each is at a control step
    assert reader.contract.rate_hz == found and reader.lengths == [24 // every]
    np.testing.assert_allclose(
        np.asarray(reader.column(layout.ACTION))[:, :5], robot.targets[:24:every], atol=1e-6)
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(-1, 8, 6)
    ahead = robot.targets[0] + 0.4 * (robot.targets[1] - robot.targets[0])
    np.testing.assert_allclose(chunk[0, 1, :5], robot.targets[1] if found == 20 else ahead,
                               atol=1e-6)


@pytest.mark.parametrize(('preset', 'short'), [('joint_trajectory', 0), ('leader', 0), ('', 1)])
def test_a_clock_that_starts_anew_mixes_nothing_up(tmp_path, preset, short):
    """Two runs with the same stamps; commands without any belong where they were received."""
    robot, other = JointRobot(preset), JointRobot(preset, task='stack the red cube')
    other.targets += 1.0
    reader = converted(tmp_path / 'data', robot.write(tmp_path / 'bag', other))
    assert reader.lengths == [12 - short] * 2
    for number, run in enumerate((robot, other)):
        rows = np.asarray(reader.column(layout.ACTION))[number * (12 - short):][:12 - short]
        np.testing.assert_allclose(rows[:, :5], run.targets[:12 - short], atol=1e-6)


def test_what_does_not_fit_a_joint_policy_is_named(tmp_path):
    sent = JointRobot('joint_trajectory').write(tmp_path / 'sent')
    numbers = JointRobot('joint_commands').write(tmp_path / 'numbers')
    measured = JointRobot('').write(tmp_path / 'measured')
    refused(tmp_path, sent, 'lacks elbow', '--joints',
            names=replace(ARM, arm_joints=(*SO101[:4], 'elbow')))
    refused(tmp_path, numbers, 'commands of 5 positions', 'shoulder_lift, shoulder_pan are due',
            names=replace(ARM, arm_joints=SO101[1::-1]))
    refused(tmp_path, sent, '--rate 100', '20 commands a second', options={'rate': 100})
    refused(tmp_path, measured, '--rate 100', '20 commands a second', options={'rate': 100})
    refused(tmp_path, sent, '/joint_trajectory commanded its joints', '--action-space',
            names=replace(ARM, action_space=''))
    refused(tmp_path, sent, 'not /other', command='/other')
    elsewhere = JointRobot('leader', names={'/joint_commands': '/leader'}).write(
        tmp_path / 'elsewhere')
    refused(tmp_path, elsewhere, '--topic joint_commands=/leader', '--command measured')
    assert converted(tmp_path / 'data', elsewhere, command='measured').lengths == [11]
    refused(tmp_path, JointRobot('', names={'/tf': '/elsewhere'}).write(tmp_path / 'nowhere'),
            '/ee_pose', '/tf')


@pytest.mark.parametrize(('change', 'said'), [
    (lambda robot: robot.targets.__imul__(180 / np.pi), 'another unit than radians'),
    (lambda robot: robot.targets.__setitem__(slice(None), robot.targets[:, ::-1] + np.arange(5)),
     'another order')])
def test_commands_far_from_the_arm_are_refused(tmp_path, monkeypatch, change, said):
    robot = JointRobot('joint_commands')
    robot.targets += np.arange(5) / 2
    true = robot.targets.copy()
    change(robot)
    monkeypatch.setattr(JointRobot, '_measured', lambda self, k: (
        [*SO101, 'gripper'], np.append(true[max(k - 1, 0)], OPEN)))
    refused(tmp_path, robot.write(tmp_path / 'bag'), '/joint_commands: ', said)


def test_commands_of_other_joints_and_broken_ones(tmp_path, monkeypatch):
    """One of another arm is refused; one that is not finite is left out, and a gap."""
    robot = JointRobot('joint_trajectory')
    robot.targets[6, 2] = np.nan
    bag = robot.write(tmp_path / 'nan')
    report = convert([bag], tmp_path / 'data', ConvertOptions(told=Told(ARM)))
    assert (report.pieces, report.frames) == (2, robot.steps - 2)  # nor was it measured then
    assert report.left_out['/joint_trajectory: elbow_flex is nan'] == 1
    monkeypatch.setattr(JointRobot, '_measured', lambda self, k: (
        [*SO101, 'gripper', 'wrist'], np.append(self.targets[k], [OPEN, 0.0])))
    refused(tmp_path, JointRobot('joint_trajectory').write(tmp_path / 'bag'),
            'a command of elbow_flex, shoulder_lift', 'lacks wrist', '--joints', '--topic',
            names=replace(ARM, arm_joints=(*SO101, 'wrist')))


@pytest.mark.parametrize(('words', 'said'), [
    (('--action-space', 'JOINTS'), 'choose from OSC_POSE, OSC_POSE_ABSOLUTE, JOINT_POSITION'),
    (('--gripper-channel', 'jaw'), '--action-space'),
    (('--cameras', 'a,a'), '--cameras a'), (('--cameras', 'a b'), '--cameras a b'),
    (('--robot', 'so101', '--params-file', 'so101'), 'name one of them')])
def test_options_that_mean_nothing_are_named(tmp_path, words, said):
    done = command(tmp_path, '--out', tmp_path / 'out', *words)
    assert isinstance(done.exception, UserError) and said in str(done.exception)


def test_a_grippers_topic_is_one_of_the_bag_and_its_action_is_not(tmp_path):
    path = tmp_path / 'cell.yaml'
    for kind, topics in (('float64', {'gripper_cmd': '/jaw'}), ('gripper_command', {})):
        path.write_text('/bringup: {ros__parameters: {gripper_topic: /jaw}}\n'
                        f'/command_gate: {{ros__parameters: {{gripper: {kind}}}}}\n')
        assert names_in_params(ParameterFile.read(path)).topics == topics


@pytest.mark.parametrize('robot', ['so101', 'ur5e_jtc'])
def test_the_files_of_joint_robots_record_what_moves_them(robot):
    """Nothing is missed of a bag with the controller's topic, and nothing asked for a twist."""
    names = names_in_params(ParameterFile.read(find_robot(robot)))
    topics = wanted(names)
    moved = names.topic('joint_trajectory')
    assert [moved] in topics and moved.endswith('joint_trajectory')
    heard = dict.fromkeys([found[0] for found in topics], 9)
    assert silence(names, topics, heard, {}) == []
    del heard[moved], heard['/action']
    line = silence(names, topics, heard, {'/mine': 'trajectory_msgs/msg/JointTrajectory'})[0]
    assert line.startswith(f'warning: nothing on {moved} or /action, which ')
    assert '--topic joint_trajectory=/mine' in line
    assert RobotNames.from_text(names.to_text()) == names
    assert names.contract(names.arm_joints) == ActionContract.of_joints(names.arm_joints)
