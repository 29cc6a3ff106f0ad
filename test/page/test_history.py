"""What the page lists, and where it draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dtvla_ros.operator import marks
from dtvla_ros.operator.history import LISTED, WINDOW, Budget, Episodes, Motion, Thoughts, changes


@pytest.mark.parametrize('before, after, parts', [
    ('', 'one two', [('one two', True)]), ('one two', 'one two', [('one two', False)]),
    ('move left now', 'move right now', [('move', False), ('right', True), ('now', False)]),
    ('one two three', 'one', [('one', False)])])
def test_words_that_changed(before, after, parts):
    assert changes(before, after) == parts


def test_the_last_thoughts_newest_first_and_repeated_ones_counted():
    thoughts = Thoughts()
    for k in range(LISTED + 2):
        thoughts.add(f'thought {k}', f'12:00:{k:02}')
        thoughts.add(f'thought {k}', '12:59:59')
    rows = thoughts.rows()
    assert len(rows) == LISTED and rows[0] == {
        'at': f'12:00:{LISTED + 1}', 'times': 2, 'told': '',
        'parts': [('thought', False), (f'{LISTED + 1}', True)]}


def policy(episodes, task, state='ACTING', now=0.0, step=0, reason=''):
    episodes.policy(str(task), f'task {task}', state, reason, step, now)


def test_a_task_ends_by_what_ends_it_first():
    episodes = Episodes()
    policy(episodes, 0)
    assert episodes.rows() == [], 'what ran before is not known'
    policy(episodes, 1, now=1.0, step=5)
    policy(episodes, 2, now=4.0, step=9)
    episodes.gate('e-stop', 6.0, 12)
    policy(episodes, 2, 'STOPPED', 7.0, reason='command_gate is silent')
    policy(episodes, 3, now=8.0, step=20)
    policy(episodes, 3, 'DONE', 10.0, 25)
    policy(episodes, 4, now=11.0, step=30)
    episodes.judged('', 12.0, 31)
    episodes.judged('put_it', 13.0, 32)
    episodes.gate('asked to stop', 14.0, 33)
    assert [(row['asked'], row['outcome'], row['good'], row['length'])
            for row in reversed(episodes.rows())] == [
        ('task 1', 'told otherwise', False, '3 s, 4 thoughts'),
        ('task 2', 'stopped: e-stop', False, '2 s, 3 thoughts'),
        ('task 3', 'done, says the policy', True, '2 s, 5 thoughts'),
        ('task 4', 'done, judges the simulator', True, '2 s, 2 thoughts')]


def test_where_a_simulator_has_episodes_they_count():
    episodes = Episodes()
    policy(episodes, 1)
    policy(episodes, 2)
    row = {'instruction': 'put it', 'success': False, 'step': 7, 'done': False}
    episodes.simulated(row)
    assert episodes.rows() == []
    episodes.simulated(row | {'done': True, 'reason': 'too late'})
    episodes.simulated(row | {'done': True, 'success': True})
    policy(episodes, 2, 'DONE')
    assert episodes.rows() == [
        {'asked': 'put it', 'good': True, 'outcome': 'success', 'length': '7 steps'},
        {'asked': 'put it', 'good': False, 'outcome': 'failed: too late', 'length': '7 steps'}]


def test_a_persons_mark_counts_most_and_the_last_one():
    episodes = Episodes()
    episodes.mark(True)
    policy(episodes, 1)
    policy(episodes, 2)
    episodes.mark(True)
    episodes.mark(False)
    assert episodes.rows() == [], 'it goes on'
    policy(episodes, 2, 'DONE')
    assert [(row['outcome'], row['good']) for row in episodes.rows()] == [
        ('failure, says a person', False)]
    before = episodes.rows()
    episodes.mark(True)
    assert episodes.rows() != before, 'what was sent once is not changed'
    policy(episodes, 3)
    episodes.gate('e-stop', 1.0, 1)
    assert [row['outcome'] for row in episodes.rows()] == [
        'stopped: e-stop', 'success, says a person']

    row = {'instruction': 'put it', 'success': True, 'step': 7, 'done': False}
    for mark, done in ((False, True), (None, True)):
        episodes.simulated(row)
        if mark is not None:
            episodes.mark(mark)
        episodes.simulated(row | {'done': done})
    assert [row['good'] for row in episodes.rows()] == [True, False]
    episodes.mark(False)
    assert [row['good'] for row in episodes.rows()] == [False, False]


def test_motion_is_sampled_and_a_command_grows_old():
    motion = Motion()
    motion.command(10.0, np.array([0.1, 0.0, -0.2]))
    for k in range(101):  # 1 kHz
        motion.measure(10.0 + 0.001 * k, np.array([0.001 * k * 0.05, 0.0, 0.0]))
    rows = motion.rows()
    assert len(rows) == 2 and rows[0][1:] == [0.1, 0.0, -0.2, 0.05, 0.0, 0.0]
    motion.measure(10.2, np.zeros(3))
    motion.measure(10.4, np.zeros(3))
    assert motion.rows()[-1][1:4] == [0.0, 0.0, 0.0]
    for k in range(400):
        motion.measure(11.0 + 0.05 * k, np.zeros(3))
    assert motion.rows()[-1][0] - motion.rows()[0][0] <= WINDOW + 1e-6
    motion.measure(1.0, np.zeros(3))
    assert motion.rows() == [], 'the clock went back'


def test_the_budget_of_a_decision_is_what_was_left_of_the_chunk_before():
    budget = Budget()
    assert budget.add(10.0, 0.4) is None
    assert budget.add(10.15, 0.4) == pytest.approx(0.25)
    assert budget.add(10.55, 0.4) is None, 'in lock-step time waits'
    assert budget.add(20.0, 0.4) is None, 'after a stillness'


def test_a_place_before_the_camera_is_where_its_lens_puts_it():
    lens = marks.Lens(np.array([[100.0, 0, 63.5], [0, 100.0, 47.5], [0, 0, 1]]), np.zeros(5),
                      (128, 96))
    # One metre above the origin, looking down: right in the image is +x, down is -y.
    position, down = np.array([0.0, 0.0, 1.0]), Rotation.from_euler('x', 180, degrees=True)
    points = np.array([[0.0, 0, 0], [0.32, 0, 0], [0, -0.24, 0], [0, 0, 2.0], [0, 0, 1.0]])
    assert lens.sound
    assert marks.project(points, lens, position, down) == [
        [0.5, 0.5], [0.75, 0.5], [0.5, 0.75], None, None]
    assert not marks.Lens(np.zeros((3, 3)), np.zeros(0), (128, 96)).sound
    np.testing.assert_allclose(np.linalg.norm(
        marks.ring(1.0, 2.0, 3.0) - [1, 2, 3], axis=1), marks.RADIUS)
