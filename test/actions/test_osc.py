"""The OSC_POSE law against its definition, and its inverse."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dtvla_ros.actions import osc


def test_rotation_is_premultiplied_in_base_axes_and_values_beyond_one_are_clipped():
    tilted = Rotation.from_euler('x', 40, degrees=True)
    goal, turned = osc.target_pose([10, -0.5, 0, 0, 0, 1, 0], [0.5, 0.0, 0.2], tilted.as_quat())
    np.testing.assert_allclose(goal, [0.55, -0.025, 0.2])
    expected = Rotation.from_rotvec([0, 0, 0.5]).as_matrix() @ tilted.as_matrix()
    np.testing.assert_allclose(Rotation.from_quat(turned).as_matrix(), expected, atol=1e-12)


def test_velocity_is_the_settled_speed_not_offset_over_period():
    speed = osc.velocity([1, 0, 0, 0, 1, 0, 0])
    np.testing.assert_allclose(speed, [0.267, 0, 0, 0, 2.67, 0])
    np.testing.assert_allclose(osc.from_velocity(speed), [1, 0, 0, 0, 1, 0])


@pytest.mark.parametrize(
    ('channel', 'last', 'expected'),
    [(-1, 1, -1), (1, -1, 1), (0.0, 1, 1), (0.05, -1, -1), (-0.2, 1, -1), (0.0, 0.0, 0.0)])
def test_gripper_sign_with_dead_band(channel, last, expected):
    assert osc.gripper_command(channel, last) == expected
