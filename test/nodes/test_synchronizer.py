"""Pairing by stamp, and what never becomes part of an observation."""

import numpy as np
import pytest

from dtvla_ros.nodes.inputs import KEEP, Synchronizer

IMAGE = np.full((8, 8, 3), 90, np.uint8)


@pytest.fixture
def o():
    return Synchronizer(['j0', 'j1', 'j2'], ['f1', 'f2'], 0.02)


def fill(o, stamp, *, wrist=0.0):
    """Give one sample of each topic, the joints in another order."""
    o.image('primary', IMAGE, stamp)
    o.image('wrist', IMAGE, stamp + wrist)
    assert o.joints(
        ['f2', 'j0', 'j2', 'j1', 'f1'], [-0.01, 0.0, 2.0, 1.0, 0.03], stamp).stamp == stamp
    assert o.pose(np.array([0.5, 0, 0.2]), np.array([1.0, 0, 0, 0]), stamp) is None


def test_joints_are_matched_by_name_and_the_opening_ignores_the_fingers_sign(o):
    fill(o, 1.0)
    seen = o.poll('go')
    assert seen.joint_positions == {'j0': 0, 'j1': 1, 'j2': 2, 'f1': 0.03, 'f2': -0.01}
    assert seen.gripper_opening == pytest.approx(0.04)
    assert (seen.stamp, seen.instruction) == (1.0, 'go')


def test_the_newest_complete_moment_wins_and_what_is_refused_hides_nothing(o):
    fill(o, 1.0)
    fill(o, 1.05)
    o.image('primary', IMAGE, 1.1)
    assert 'names' in o.joints(['j0', 'j1', 'j2', 'f1', 'f2'], [0], 1.1)
    assert 'unit length' in o.pose(np.zeros(3), np.zeros(4), 1.1)
    assert o.poll('go').stamp == 1.05


def test_arm_and_fingers_in_two_messages_are_one_sample_at_the_arms_stamp(o):
    for name in ('primary', 'wrist'):
        o.image(name, IMAGE, 1.0)
    o.pose(np.array([0.5, 0, 0.2]), np.array([1.0, 0, 0, 0]), 1.0)
    assert 'lacks j0, j1, j2' in o.joints(['f1', 'f2'], [0.03, 0.01], 0.92)
    o.joints(['j0', 'j1', 'j2'], [0.0, 1.0, 2.0], 1.0)
    assert o.joints(['wheel'], [7.0], 1.0) == '', 'ignored'
    seen = o.poll('go')
    assert seen.joint_positions == {'j0': 0, 'j1': 1, 'j2': 2, 'f1': 0.03, 'f2': 0.01}


@pytest.mark.parametrize('fingers', [[40.0, 40.0], [255.0, 0.0], [0.4, 0.4], [0.04, -80.0]])
def test_a_gripper_that_is_not_told_in_metres_is_refused(o, fingers):
    assert 'metres' in o.joints(['j0', 'j1', 'j2', 'f1', 'f2'], [0.0, 1.0, 2.0, *fingers], 1.0)


def test_memory_is_bounded_and_clear_forgets(o):
    for k in range(100):
        fill(o, k * 0.05)
    assert all(len(s) <= KEEP for s in o._samples.values())
    o.clear()
    assert o.poll('go') is None
