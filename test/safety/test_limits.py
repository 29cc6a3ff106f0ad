"""Bounds hold for any sequence of actions; the fidelity profile changes none."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dtvla_ros.actions import osc
from dtvla_ros.errors import UserError
from dtvla_ros.safety.limits import PROFILES, Limiter, Limits

DT = 0.05
SEQUENCES = arrays(np.float64, (20, 7), elements=st.floats(-1, 1))


@settings(max_examples=60, deadline=None)
@given(SEQUENCES)
def test_speed_and_acceleration_never_exceed_their_bounds(actions):
    limits = Limits()
    limiter = Limiter(limits, DT)
    speed = np.array([osc.velocity(limiter.clamp(a)) for a in actions])
    assert np.linalg.norm(speed[:, :3], axis=1).max() <= limits.linear_speed + 1e-9
    assert np.linalg.norm(speed[:, 3:], axis=1).max() <= limits.angular_speed + 1e-9
    steps = np.diff(np.vstack((np.zeros(3), speed[:, :3])), axis=0)
    assert np.linalg.norm(steps, axis=1).max() <= limits.acceleration * DT + 1e-9


def test_jerk_is_bounded_while_speeding_up_and_the_speed_is_reached():
    limits = dataclasses.replace(Limits(), jerk=5.0)
    limiter = Limiter(limits, DT)
    v = [0.0] + [osc.velocity(limiter.clamp([1, 0, 0, 0, 0, 0, 0]))[0] for _ in range(20)]
    acceleration = np.diff([0.0] + list(np.diff(v) / DT)) / DT
    assert acceleration[:3].max() <= limits.jerk + 1e-9
    assert v[-1] == pytest.approx(limits.linear_speed, rel=0.02)


def test_braking_ignores_jerk_but_not_acceleration():
    limiter = Limiter(Limits(), DT)
    for _ in range(20):
        limiter.clamp([1, 0, 0, 0, 0, 0, 0])
    v = [osc.velocity(limiter.clamp(np.zeros(6)))[0] for _ in range(6)]
    assert v[0] == pytest.approx(0.20, abs=0.01)  # 1 m/s^2 for 50 ms
    assert abs(v[-1]) < 1e-9


@settings(max_examples=60, deadline=None)
@given(SEQUENCES)
def test_fidelity_lets_the_whole_action_cube_pass_untouched(actions):
    limiter = Limiter(PROFILES['fidelity'], DT)
    for a in actions:
        np.testing.assert_allclose(limiter.clamp(a), a[:6], atol=1e-12)


def test_targets_outside_the_box_are_named_and_the_way_back_is_free():
    limiter = Limiter(Limits(), DT)
    assert limiter.outside([1, 0, 0, 0, 0, 0, 0], [0.5, 0, 0.2]) is None
    assert 'target x = 0.930' in limiter.outside([1, 0, 0, 0, 0, 0, 0], [0.88, 0, 0.2])
    assert limiter.outside([-1, 0, 0, 0, 0, 0, 0], [0.99, 0, 0.2]) is None
    assert limiter.outside([0, 0, 0, 0, 0, 0, 0], [0.99, 0, 0.2]) is not None


@pytest.mark.parametrize(('change', 'word'), [
    ({'linear_speed': 0.0}, 'linear_speed'), ({'jerk': float('nan')}, 'jerk'),
    ({'workspace_low': (0.9, 0, 0), 'workspace_high': (0.2, 1, 1)}, 'on x')])
def test_senseless_limits_are_refused_by_name(change, word):
    with pytest.raises(UserError, match=word):
        dataclasses.replace(Limits(), **change)
