"""Pairing by stamp, and what never becomes part of an observation."""

import numpy as np
import pytest

from dtvla_ros.nodes.inputs import KEEP, Synchronizer
from dtvla_ros.ros.conversions import Joints

IMAGE = np.full((8, 8, 3), 90, np.uint8)


@pytest.fixture
def o():
    return Synchronizer(0.02)


def fill(o, stamp, *, wrist=0.0):
    """Give one sample of each topic."""
    o.image('primary', IMAGE, stamp)
    o.image('wrist', IMAGE, stamp + wrist)
    o.joints(Joints({'j0': 0.0, 'f1': 0.03}, stamp, 0.04))
    o.pose(np.array([0.5, 0, 0.2]), np.array([1.0, 0, 0, 0]), stamp)


def test_an_observation_has_all_of_one_moment(o):
    fill(o, 1.0)
    seen = o.poll('go')
    assert seen.joint_positions == {'j0': 0.0, 'f1': 0.03} and seen.gripper_opening == 0.04
    assert (seen.stamp, seen.instruction) == (1.0, 'go')


def test_the_newest_complete_moment_wins_and_what_is_refused_hides_nothing(o):
    fill(o, 1.0)
    fill(o, 1.05)
    o.image('primary', IMAGE, 1.1)
    assert o.poll('go').stamp == 1.05


def test_joints_a_thousand_times_a_second_still_reach_back_to_a_late_image(o):
    for k in range(200):
        o.joints(Joints({'j0': float(k)}, 1.0 + 0.001 * k, 0.0))
    o.pose(np.array([0.5, 0, 0.2]), np.array([1.0, 0, 0, 0]), 1.1)
    for name in ('primary', 'wrist'):
        o.image(name, IMAGE, 1.15)
    assert o.poll('go') is None and 'ee_pose' in o.missing
    o.pose(np.array([0.5, 0, 0.2]), np.array([1.0, 0, 0, 0]), 1.14)
    assert o.poll('go').joint_positions['j0'] == pytest.approx(150, abs=5)


def test_memory_is_bounded_and_clear_forgets(o):
    for k in range(100):
        fill(o, k * 0.05)
    assert all(len(s) <= KEEP for s in o._samples.values())
    o.clear()
    assert o.poll('go') is None
