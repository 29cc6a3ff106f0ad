"""Bags of an arm that is sent poses of its end effector become datasets of these."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace as Message
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.bags import DOWN, Robot, pose
from support.tiny import CONFIG
from typer.testing import CliRunner

from dtvla_ros.actions import osc
from dtvla_ros.actions.contract import OSC_POSE_ABSOLUTE, ActionContract
from dtvla_ros.cli import app
from dtvla_ros.conventions import POSE_CHANNELS
from dtvla_ros.data import layout
from dtvla_ros.data.bag import Told
from dtvla_ros.data.from_bag import ConvertOptions, Report, convert
from dtvla_ros.data.inspect import dataset_statistics
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.robot_names import RobotNames, names_in_params
from dtvla_ros.data.validate import fits_policy, validate
from dtvla_ros.data.view import view
from dtvla_ros.errors import UserError
from dtvla_ros.recording.record import silence, wanted
from dtvla_ros.ros.params_file import ParameterFile

POSES = RobotNames(action_space=OSC_POSE_ABSOLUTE)
SPACE = ('--action-space', OSC_POSE_ABSOLUTE)


@dataclass
class PoseRobot(Robot):
    """An arm that is sent the poses ``goals`` [K, 6]: places [m], turns from straight down [rad].

    Each is sent ``often`` times, every one but the first a part of the way to the next, and every
    second one with the other sign of its quaternion.
    """

    often: int = 1
    frame: str = 'base'
    goals: np.ndarray = field(init=False)

    def __post_init__(self):
        super().__post_init__()
        k = np.arange(self.steps + 1)
        self.goals = np.transpose([
            0.41 + 0.01 * k, 0.01 * k + 0.02 * np.sin(k), 0.18 + 0.01 * k,
            0.1 * np.sin(k), np.full(len(k), -0.05), 0.02 * k])

    def _command(self, bag, k, head):
        for part in range(self.often):
            ns = head.stamp.sec * 10**9 + head.stamp.nanosec + part * 5 * 10**7 // self.often
            goal = self.goals[k] + (
                part / self.often * (self.goals[k + 1] - self.goals[k]) if part else 0.0)
            said = pose(goal[:3], Rotation.from_rotvec(goal[3:]) * osc.HOME)
            if k % 2:
                for axis in 'xyzw':
                    setattr(said.orientation, axis, -getattr(said.orientation, axis))
            bag.put('/target_pose', 'geometry_msgs/msg/PoseStamped', pose=said, header=Message(
                stamp=Message(sec=ns // 10**9, nanosec=ns % 10**9), frame_id=self.frame))
        bag.put('/gripper_cmd', 'std_msgs/msg/Float64', data=float(k < 5))

    @property
    def rows(self):
        """The goals, and the gripper that is closed from step 5 on, [K, 7]."""
        return np.column_stack([self.goals, np.where(np.arange(len(self.goals)) < 5, -1.0, 1.0)])


def command(*words: object) -> Any:
    return CliRunner().invoke(app, ['data', 'from-bag', *map(str, words)])


def converted(out: Path, *bags: Path, names: RobotNames = POSES, rate: int | None = None,
              **told: Any) -> tuple[Report, DatasetReader]:
    report = convert(bags, out, ConvertOptions(rate=rate, told=Told(names, **told)))
    return report, DatasetReader(out)


def refused(tmp_path: Path, bag: Path, *words: str, names: RobotNames = POSES, **told: Any,
            ) -> None:
    with pytest.raises(UserError) as caught:
        converted(tmp_path / 'none', bag, names=names, **told)
    text = str(caught.value)
    assert not (tmp_path / 'none').exists() and '\n' not in text and len(text) < 700
    for word in (str(bag), *words):
        assert word in text, text


def test_the_poses_that_were_sent_are_the_actions(tmp_path):
    from test.recording.test_joint_bags import policy_of

    robot, out = PoseRobot(steps=24), tmp_path / 'data'
    done = command(robot.write(tmp_path / 'bag'), '--out', out, *SPACE)
    assert done.exit_code == 0, done.output
    assert 'OSC_POSE_ABSOLUTE of x, y, z, rx, ry, rz, gripper at 20 Hz, from /target_pose' in (
        done.output)
    assert 'models/nano' not in done.output, 'which is of offsets'
    reader, contract = DatasetReader(out), ActionContract.of_pose()
    assert reader.contract == contract
    assert reader.info[layout.CONTRACT]['controller'] == OSC_POSE_ABSOLUTE
    assert tuple(reader.channels(layout.ACTION)) == POSE_CHANNELS
    actions = np.asarray(reader.column(layout.ACTION))
    np.testing.assert_allclose(actions, robot.rows[:24], atol=1e-6)
    state = np.asarray(reader.column(layout.STATE))
    np.testing.assert_allclose(state[:, :3], robot.position, atol=1e-6)
    np.testing.assert_allclose(state[:, 3:6], [DOWN.as_rotvec()] * 24, atol=1e-5)
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(24, 8, 7)
    np.testing.assert_array_equal(chunk[3], actions[3:11])
    np.testing.assert_array_equal(chunk[-1, 1:], chunk[-1, [-1] * 7], 'it stays where it was sent')

    assert validate(out) == []
    words = robot.task + ' thought of 0 4 8 12 16 20'
    assert not fits_policy(out, policy_of(tmp_path / 'run', contract, words))
    (finding,) = fits_policy(out, policy_of(tmp_path / 'other', ActionContract(), words))
    assert 'the action space is OSC_POSE_ABSOLUTE' in finding.problem
    assert 'not OSC_POSE (' in finding.problem
    assert dataset_statistics(reader.root, 0).to_dict()
    assert view(reader.root, tmp_path / 'view.html', [], None) == 1


@pytest.mark.slow
def test_a_policy_of_poses_is_trained_on_them(tmp_path):
    from dtvla_ros.training.config import SftRun
    from dtvla_ros.training.export import read_source
    from dtvla_ros.training.sft import train_sft

    first, *more = (PoseRobot(clock=30.0 * k) for k in range(4))
    for k, robot in enumerate((first, *more)):
        robot.task = f'{robot.task} {k % 2}'
    bag, data, run = first.write(tmp_path / 'bag', *more), tmp_path / 'data', tmp_path / 'run'
    converted(data, bag)
    assert np.isfinite(train_sft(CONFIG, SftRun((data,), run, steps=2))['loss'])
    assert read_source(run)[1].contract.controller == OSC_POSE_ABSOLUTE


def test_an_action_of_the_simulator_is_the_pose_it_leads_to(tmp_path):
    """What the gate made of a policy's poses, or of offsets."""
    robot = Robot()
    report, reader = converted(tmp_path / 'data', robot.write(tmp_path / 'bag'))
    assert report.commands == {'/action'} and not report.clipped
    expected = [osc.pose_row(*osc.target_pose(action, position, DOWN.as_quat())) for
                action, position in zip(robot.actions, robot.position, strict=True)]
    actions = np.asarray(reader.column(layout.ACTION))
    np.testing.assert_allclose(actions[:, :6], expected, atol=1e-6)
    np.testing.assert_array_equal(actions[:, 6], robot.actions[:, 6])


@pytest.mark.parametrize(('rate', 'every'), [(None, 1), (50, 2)])
def test_poses_that_come_often_are_thinned(tmp_path, rate, every):
    """Sent at 100 Hz: 20 Hz as the nodes have it, or another rate below their own."""
    robot = PoseRobot(steps=24, often=5)
    _, reader = converted(tmp_path / 'data', robot.write(tmp_path / 'bag'), rate=rate)
    assert reader.contract.rate_hz == (rate or 20) and reader.lengths == [24 // every]
    actions = np.asarray(reader.column(layout.ACTION))
    np.testing.assert_allclose(actions[:, :6], robot.goals[:24:every], atol=1e-6)
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(-1, 8, 7)
    ahead = robot.goals[0] + (0.4 if rate else 1.0) * (robot.goals[1] - robot.goals[0])
    np.testing.assert_allclose(chunk[0, 1, :6], ahead, atol=1e-6)
    # The gripper is told after the poses of a step, and before those of the next.
    np.testing.assert_array_equal(actions[:, 6], robot.rows[:24:every, 6])


def test_a_clock_that_starts_anew_mixes_nothing_up(tmp_path):
    robot, other = PoseRobot(), PoseRobot(task='stack the red cube')
    other.position += [0.3, 0.0, 0.3]
    other.goals[:, :3] += [0.3, 0.0, 0.3]
    _, reader = converted(tmp_path / 'data', robot.write(tmp_path / 'bag', other))
    np.testing.assert_allclose(reader.column(layout.ACTION), np.concatenate(
        [robot.rows[:12], other.rows[:12]]), atol=1e-6)


def test_what_the_recorder_kept_says_it_all(tmp_path):
    """Of an arm's file with this space: its topic is recorded, and nothing else asked for."""
    file = tmp_path / 'cell.yaml'
    file.write_text('/command_gate: {ros__parameters: {preset: crisp, base_frame: fr3_link0, '
                    'action_space: OSC_POSE_ABSOLUTE}}\n'
                    '/bringup: {ros__parameters: {command_topic: /left/target_pose}}\n')
    names = names_in_params(ParameterFile.read(file))
    assert names.commands == ('target_pose', 'action')
    topics = wanted(names)
    heard = dict.fromkeys([found[0] for found in topics], 9)
    assert ['/left/target_pose'] in topics and silence(names, topics, heard, {}) == []
    robot = PoseRobot(names={'/target_pose': '/left/target_pose'})
    bag = robot.write(tmp_path / 'bag', dtvla=replace(names, base_frame='base').to_text())
    done = command(bag, '--out', tmp_path / 'data')
    assert done.exit_code == 0 and 'from /left/target_pose' in done.output, done.output
    np.testing.assert_allclose(
        DatasetReader(tmp_path / 'data').column(layout.ACTION), robot.rows[:12], atol=1e-6)
    refused(tmp_path, bag, '--base-frame', "'base'", "'fr3_link0'", names=names)


def test_a_twist_is_no_pose(tmp_path):
    """By itself, by its name, or beside poses."""
    bag = Robot('twist').write(tmp_path / 'bag')
    said = ('/twist_cmd says how fast', 'OSC_POSE_ABSOLUTE', 'target_pose',
            '--action-space OSC_POSE')
    refused(tmp_path, bag, *said)
    refused(tmp_path, bag, *said, command='/twist_cmd')
    other = Robot('twist', names={'/twist_cmd': '/target_pose'}).write(tmp_path / 'other')
    refused(tmp_path, other, '/target_pose is geometry_msgs/msg/TwistStamped')
    none = Robot(names={'/action': '/elsewhere'}).write(tmp_path / 'none-sent')
    refused(tmp_path, none, 'no command (/target_pose, /action)')


@pytest.mark.parametrize(('change', 'said'), [
    (lambda robot: setattr(robot, 'frame', 'world'), ("'world'", "'base'")),
    (lambda robot: robot.goals.__iadd__([0.0, 0.3, 0, 0, 0, 0]), ('0.30 m', 'its flange')),
    (lambda robot: robot.goals.__iadd__([0, 0, 0, 0, 0, 0.8]), ('rad from', 'its flange')),
    (lambda robot: robot.goals.__imul__(1e3), ('target_pose', 'millimetres'))])
def test_poses_of_another_frame_point_or_unit_are_refused(tmp_path, change, said):
    robot = PoseRobot()
    change(robot)
    refused(tmp_path, robot.write(tmp_path / 'bag'), '/target_pose', *said)


def test_a_pose_that_is_none_is_left_out_and_a_gap(tmp_path):
    robot = PoseRobot()
    robot.goals[6, 1] = np.nan
    report, reader = converted(tmp_path / 'data', robot.write(tmp_path / 'bag'))
    assert (report.pieces, report.frames) == (2, 11)
    assert [why for why in report.left_out if why.startswith('/target_pose: it is not finite')]
    np.testing.assert_allclose(
        reader.column(layout.ACTION), np.delete(robot.rows[:12], 6, axis=0), atol=1e-6)
