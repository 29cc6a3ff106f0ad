"""The checks of numbers and images find what was done to a dataset, and pass a good one."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.arm import FPS, PER_UNIT, arm_episode
from support.tiny import write_dataset
from typer.testing import CliRunner

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.cli.data import data as app
from dtvla_ros.data import layout
from dtvla_ros.data.checks import Numbers, check_images, check_numbers, sample_images
from dtvla_ros.data.inspect import dataset_statistics
from dtvla_ros.data.reader import DatasetReader

PRIMARY, WRIST = layout.CAMERAS
FOLLOWS, ABSOLUTE = 'action and next position', 'absolute actions'


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp('arm'), [arm_episode(k) for k in range(10)])


@pytest.fixture(scope='module')
def numbers(good):
    """Return the numbers of the good dataset, to be damaged."""
    return Numbers.of(DatasetReader(good))


@pytest.fixture(scope='module')
def seen(good, numbers):
    """Return sampled images of the good dataset, to be turned or exchanged."""
    return sample_images(DatasetReader(good), numbers, 10)


def issues_of(found, name):
    return [issue for issue in found if issue.check == name]


def test_a_good_dataset_raises_no_warning(good):
    found = dataset_statistics(good, episodes=10)
    assert [n for n in found.issues if n.level == 'warning'] == []
    checks = {issue.check: issue for issue in found.issues}
    assert FOLLOWS in checks
    for name in ('gripper sign', 'swapped cameras', 'orientation of primary',
                 'mirroring of wrist'):
        assert (checks[name].level, checks[name].certainty) == ('ok', 'certain'), checks[name]


@pytest.mark.parametrize('told, said', [
    (({'success': True}, {'success': False}, {'success': True}),
     ['2 episodes succeeded, 1 failed']),
    (({'success': None}, {'success': False}, {'success': False, 'kind': layout.SINGLE}),
     ['0 episodes succeeded, 1 failed; 2 do not tell']),
    (({}, {'success': None}, {'success': 'yes'}), [])])
def test_how_many_episodes_succeeded_is_told(tmp_path, told, said):
    root = write_dataset(tmp_path, [replace(arm_episode(k), metadata=row)
                                    for k, row in enumerate(told)])
    found = dataset_statistics(root, episodes=0, whole=False)
    assert [issue.problem for issue in issues_of(found.issues, 'success')] == said


def test_statistics_are_those_of_the_frames_and_a_policy_reads_them(good, tmp_path):
    out, told = tmp_path / 'meta', tmp_path / 'stats.json'
    result = CliRunner().invoke(
        app, ['stats', str(good), '--out', str(out), '--episodes', '0', '--json', str(told)])
    assert result.exit_code == 0, result.output
    actions = np.asarray(DatasetReader(good).column(layout.ACTION), np.float64)
    norm = json.loads((out / 'norm_stats.json').read_text())
    read = ActionStatistics.from_dict(norm, 7)
    np.testing.assert_allclose(read.q99, np.quantile(actions, 0.99, axis=0))
    np.testing.assert_allclose(norm['action']['std'], actions.std(0))
    lerobot = json.loads((out / 'stats.json').read_text())
    np.testing.assert_allclose(lerobot[layout.ACTION]['q01'], read.q01)
    assert np.shape(lerobot[PRIMARY]['mean']) == (3, 1, 1)
    written = json.loads(told.read_text())
    assert written['norm_stats'] == norm
    assert {'constant channels', 'gripper sign'} <= {row['check'] for row in written['checks']}


def test_the_scale_of_an_action_is_measured(numbers):
    issue, = issues_of(check_numbers(numbers), FOLLOWS)
    scale = [float(word.rstrip(',')) for word in
             issue.problem.split('moves the gripper ')[1].split(' m/s')[0].split()]
    np.testing.assert_allclose(scale, PER_UNIT * FPS, rtol=0.05)


def misplaced(state, action):
    """Misplace one frame of episode 2."""
    state = state.copy()
    state[2 * 40 + 7, 1] = 5.0
    return state, action


@pytest.mark.parametrize('change, check, said', [
    (lambda s, a: (s, a * [1, 1, 1, 1, 1, 1, -1]), 'gripper sign', 'opposite sign'),
    (lambda s, a: (s, np.hstack([a[:, :6], (a[:, 6:] + 1) / 2])), 'gripper sign', 'coded 0 and 1'),
    (lambda s, a: (s, a[:, [1, 0, 2, 3, 4, 5, 6]]), FOLLOWS, 'axis x follows action channel 1'),
    (lambda s, a: (s, a * [1, 1, -1, 1, 1, 1, 1]), FOLLOWS, 'axis z moves against action'),
    (lambda s, a: (s, np.hstack([np.roll(s[:, :3], -1, 0), a[:, 3:]])), ABSOLUTE, 'absolute'),
    (lambda s, a: (s, np.roll(a, 2, 0)), 'delay of the position', '2 frames before the action'),
    (lambda s, a: (s, a * [1, 1, 1, 1, 0, 1, 1]), 'constant channels', 'channels 4 of action'),
    (lambda s, a: (s, np.vstack([a[1:], a[:1] * np.nan])), 'not finite', '1 frames hold NaN'),
    (misplaced, 'outliers of state', '1 frames in 1 episodes'), (misplaced, 'jumps', 'jumps')])
def test_damaged_numbers_are_noticed(numbers, change, check, said):
    state, action = change(numbers.state, numbers.action)
    issues = issues_of(check_numbers(replace(numbers, state=state, action=action)), check)
    found = [issue for issue in issues if issue.level == 'warning']
    assert any(said in issue.problem for issue in found), issues
    if change is misplaced:
        assert any('episode 2, frame 7' in place for place in found[0].where)


def test_half_a_turn_is_no_outlier(numbers):
    """A rotation vector of half a turn has two signs; the gripper has not moved."""
    turns = Rotation.from_rotvec(numbers.state[:, 3:6]).as_rotvec()
    assert np.ptp(turns[:, 0]) > 6.0
    assert issues_of(check_numbers(numbers), 'outliers of state')[0].level == 'ok'


@pytest.mark.parametrize('key, change, level, said', [
    (PRIMARY, lambda g: g[:, ::-1, ::-1], 'warning', 'rotated by 180 degrees'),
    (PRIMARY, lambda g: g[:, :, ::-1], 'warning', 'mirrored left to right'),
    (PRIMARY, lambda g: g[:, ::-1], 'warning', 'mirrored top to bottom'),
    (PRIMARY, lambda g: np.rot90(g, -1, (1, 2)), 'warning', 'a quarter turn to the right'),
    (PRIMARY, lambda g: np.rot90(g, 1, (1, 2)), 'warning', 'a quarter turn to the left'),
    (WRIST, lambda g: np.rot90(g[:, :, ::-1], 1, (1, 2)), 'warning', 'the image looks mirrored'),
    (WRIST, lambda g: np.rot90(g, 1, (1, 2)), 'ok', 'the image looks not mirrored')])
def test_a_turned_or_mirrored_image_is_told(seen, key, change, level, said):
    """Without knowing where the camera stands, or how it is turned about the gripper's axis."""
    check = 'orientation of primary' if key == PRIMARY else 'mirroring of wrist'
    turned = [replace(e, grey=e.grey | {key: np.ascontiguousarray(change(e.grey[key]))})
              for e in seen]
    issue, = issues_of(check_images(turned), check)
    assert issue.level == level and issue.problem.startswith(said), issue


def test_exchanged_cameras_are_told_but_nothing_is_claimed_from_too_little(seen):
    swapped = [replace(e, grey={PRIMARY: e.grey[WRIST], WRIST: e.grey[PRIMARY]}) for e in seen]
    issue, = issues_of(check_images(swapped), 'swapped cameras')
    assert (issue.level, issue.certainty) == ('warning', 'certain')
    assert 'exchanged' in issue.problem
    certainty = {issue.check: issue.certainty for issue in check_images(seen[:1])}
    assert certainty['swapped cameras'] == certainty['orientation of primary'] == 'unclear'


def test_frozen_and_dark_cameras_are_named_with_episode_and_frame(tmp_path):
    """Through files and codec, where a still image is never quite still."""
    episodes = [arm_episode(k) for k in range(4)]
    episodes[1].images[WRIST][20:] = episodes[1].images[WRIST][20]
    episodes[3].images[PRIMARY][:] = 4
    told = dataset_statistics(write_dataset(tmp_path, episodes), episodes=4)
    found = told.issues
    assert f'picture of {WRIST}' in {row['check'] for row in told.to_dict()['checks']}
    for key, said, where in ((WRIST, 'still image', 'episode 1, from frame 20'),
                             (PRIMARY, 'dark', 'episode 3, from frame 0: 20 of 20')):
        issue, = [n for n in issues_of(found, f'image of {key}') if n.level == 'warning']
        assert said in issue.problem and issue.where[0].startswith(where)


def test_two_cameras_that_stand_still_are_frozen_not_exchanged(dataset):
    """As in a dataset whose images never change, through a codec that flickers."""
    found = dataset_statistics(dataset, episodes=10).issues
    assert [n.level for key in (PRIMARY, WRIST) for n in issues_of(found, f'image of {key}')] == [
        'warning', 'warning']
    assert [n.certainty for n in issues_of(found, 'swapped cameras')] == ['unclear']
    assert 'never changes' in issues_of(found, 'action and next rotation')[0].problem


def test_episodes_of_a_single_frame_are_no_oddity(tmp_path):
    single = [arm_episode(20 + k, frames=1) for k in range(12)]
    root = write_dataset(tmp_path, [*single, *(arm_episode(k) for k in range(6))])
    found = dataset_statistics(root, episodes=6).issues
    length, = issues_of(found, 'episode lengths')
    assert length.level == 'ok' and '12 of 18' in length.problem
    assert '6 episodes' in issues_of(found, f'image of {PRIMARY}')[0].problem
    assert issues_of(found, 'orientation of primary')[0].problem.startswith('upright')
