"""Pairing by stamp, and what never becomes part of an observation."""

import numpy as np
import pytest

from dtvla_ros.nodes.inputs import Synchronizer, refuse_instruction

ARM = [f'j{i}' for i in range(3)]
FINGERS = ['f1', 'f2']
IMAGE = np.full((8, 8, 3), 90, np.uint8)
DOWN = np.array([1.0, 0, 0, 0])


@pytest.fixture
def o():
    return Synchronizer(ARM, FINGERS, 0.02)


def fill(o, stamp, *, wrist=0.0, joints=0.0, pose=0.0):
    o.image('primary', IMAGE, stamp)
    o.image('wrist', IMAGE, stamp + wrist)
    assert o.joints(['f2', 'j0', 'j2', 'j1', 'f1'], [-0.01, 0.0, 2.0, 1.0, 0.03],
                    stamp + joints) is None
    assert o.pose(np.array([0.5, 0, 0.2]), DOWN, stamp + pose) is None


def test_joints_are_matched_by_name_and_the_opening_ignores_the_fingers_sign(o):
    fill(o, 1.0)
    seen = o.poll('go')
    assert seen.joint_positions == {'j0': 0, 'j1': 1, 'j2': 2, 'f1': 0.03, 'f2': -0.01}
    assert seen.gripper_opening == pytest.approx(0.04)
    assert (seen.stamp, seen.instruction) == (1.0, 'go')


@pytest.mark.parametrize('late', ['wrist', 'joints', 'pose'])
def test_anything_beyond_the_skew_means_no_observation_and_says_what_lacks(o, late):
    fill(o, 1.0, **{late: 0.05})
    assert o.poll('go') is None
    assert late in o.missing.replace('joint_states', 'joints').replace('ee_pose', 'pose')


def test_the_newest_complete_moment_wins_over_a_newer_incomplete_one(o):
    fill(o, 1.0)
    fill(o, 1.05)
    o.image('primary', IMAGE, 1.1)
    assert o.poll('go').stamp == 1.05


def test_what_is_refused_does_not_hide_what_was_there(o):
    fill(o, 1.0)
    assert 'black' in o.image('primary', np.zeros((8, 8, 3), np.uint8), 1.05)
    assert 'lacks j2' in o.joints(['j0', 'j1', 'f1', 'f2'], [0] * 4, 1.05)
    assert 'non-finite' in o.joints([*ARM, *FINGERS], [0, np.nan, 0, 0, 0], 1.05)
    assert 'names' in o.joints([*ARM, *FINGERS], [0], 1.05)
    assert 'finite' in o.pose(np.array([np.inf, 0, 0]), DOWN, 1.05)
    assert 'unit length' in o.pose(np.zeros(3), np.zeros(4), 1.05)
    assert o.poll('go').stamp == 1.0


def test_memory_is_bounded_and_clear_forgets(o):
    for k in range(1000):
        fill(o, k * 0.05)
    assert all(len(s) <= 16 for s in o._samples.values())
    o.clear()
    assert o.poll('go') is None


@pytest.mark.parametrize(('text', 'word'), [
    ('', 'empty'), ('  \n', 'empty'), ('x' * 10_000, '10000'), ('put\x07it', 'control'),
    ('a\ud800', 'control')])
def test_bad_instructions(text, word):
    assert word in refuse_instruction(text)


def test_good_instructions_in_any_script():
    assert refuse_instruction('put the milk in the bin') is None
    assert refuse_instruction('setze die Tasse auf den Würfel') is None
