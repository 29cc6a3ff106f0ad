"""The way home: up before across, down only above it, no faster than it is told."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dtvla_ros.operator.homing import TURN, Pose, read_pose, way_home

STRAIGHT = np.array([0.0, 0.0, 0.0, 1.0])
HOME = Pose(np.array([0.5, 0.0, 0.3]), STRAIGHT)


@pytest.mark.parametrize(('at', 'twist'), [
    ((0.3, 0.0, 0.1), (0, 0, 0.1)),
    ((0.3, 0.0, 0.29), (0.1, 0, 0)),
    ((0.3, 0.0, 0.5), (0.1, 0, 0)),
    ((0.49, 0.0, 0.5), (0.005, 0, -0.0999)),
    ((0.49, 0.0, 0.3), (0.04, 0, 0)),
    ((0.5, 0.0, 0.3), (0, 0, 0))])
def test_the_arm_rises_goes_across_and_comes_down(at, twist):
    np.testing.assert_allclose(way_home(HOME, Pose(np.array(at), STRAIGHT), 0.1),
                               [*twist, 0, 0, 0], atol=1e-4)


@pytest.mark.parametrize(('turned', 'rate'), [(1.0, -0.1 * TURN), (-0.01, 0.04)])
def test_it_turns_back(turned, rate):
    at = Pose(HOME.position, Rotation.from_euler('z', turned).as_quat())
    np.testing.assert_allclose(way_home(HOME, at, 0.1), [0, 0, 0, 0, 0, rate], atol=1e-6)


@pytest.mark.parametrize('value', [None, 3, 'x', [1.0] * 6, [0.0] * 7, [np.nan] * 7, [[1]] * 7])
def test_what_is_no_pose_is_none(value):
    assert read_pose(value) is None


def test_a_pose_is_read():
    pose = read_pose([0.5, 0, 0.3, 0, 0, 0, 1])
    assert pose is not None
    np.testing.assert_array_equal([*pose.position, *pose.quaternion], [0.5, 0, 0.3, 0, 0, 0, 1])
