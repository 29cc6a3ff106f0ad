"""Grippers that are stuck, ages on the steady clock, and bounds for any sequence of actions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dtvla_ros.actions import osc
from dtvla_ros.safety.gripper import GripperMonitor
from dtvla_ros.safety.limits import PROFILES, Limiter, Limits
from dtvla_ros.safety.watchdog import Watchdog

DT = 0.05
SEQUENCES = arrays(np.float64, (20, 7), elements=st.floats(-1, 1))
OPEN, CLOSE = -1.0, 1.0


@pytest.mark.parametrize(('start', 'command', 'end', 'seconds', 'word'), [
    (0.08, CLOSE, 0.08, 2.1, 'does not close'), (0.08, CLOSE, 0.08, 1.9, None),
    (0.08, CLOSE, 0.04, 9.0, None),  # stalled on something: a grasp
    (0.04, CLOSE, 0.04, 9.0, None),  # already holding it
    (0.0, OPEN, 0.0, 2.1, 'does not open'), (0.0, OPEN, 0.03, 2.1, None),
    (0.08, OPEN, 0.08, 9.0, None)])
def test_a_gripper_is_stuck_or_not_and_a_reset_forgives(start, command, end, seconds, word):
    monitor, unwatched = GripperMonitor(2.0), GripperMonitor(0.0)
    for one in (monitor, unwatched):
        one.measure(0.08)
        one.measure(start)
        one.command(command, 10.0)
        one.measure(end)
    told = monitor.fault(10.0 + seconds)
    assert told is None if word is None else word in told
    monitor.reset()
    assert monitor.fault(10.0 + seconds) is unwatched.fault(10.0 + seconds) is None


def test_commands_that_nobody_receives():
    monitor = GripperMonitor(2.0)
    monitor.listeners(0, 0.0)
    assert monitor.fault(9.0) is None, 'nothing was commanded yet'
    monitor.command(CLOSE, 9.0)
    monitor.listeners(0, 9.0)
    monitor.listeners(0, 10.0)
    assert 'nobody' in monitor.fault(11.1)
    monitor.listeners(1, 11.2)
    assert monitor.fault(20.0) is None


def watch(dog, start, stop):
    """Call `late` regularly, as the gate does; return the last answer."""
    return [dog.late(steady) for steady in np.arange(start, stop, 0.02)][-1]


def test_late_after_its_timeout_latest_first_unless_the_watcher_slept():
    dog = Watchdog({'a': 0.1, 'b': 0.2, 'c': 0.0}, own_period=0.02)
    assert dog.late(0.0) == ['a', 'b'], 'never seen is late'
    dog.feed('a', 0.0)
    dog.feed('b', 0.05)
    assert watch(dog, 0.02, 0.09) == []
    assert watch(dog, 0.10, 0.13) == ['a']
    assert watch(dog, 0.14, 0.30) == ['a', 'b']
    assert dog.age('c', 1.0) == math.inf
    dog.feed('a', 0.3)
    dog.feed('b', 0.3)
    assert watch(dog, 0.3, 0.34) == []
    assert dog.late(6.0) == [], 'everyone has their time again'
    assert watch(dog, 6.02, 6.14) == ['a']


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


def test_jerk_is_bounded_while_speeding_up_the_speed_is_reached_and_braking_ignores_it():
    limits = Limits(jerk=5.0)
    limiter = Limiter(limits, DT)
    v = [0.0] + [osc.velocity(limiter.clamp([1, 0, 0, 0, 0, 0, 0]))[0] for _ in range(20)]
    acceleration = np.diff([0.0] + list(np.diff(v) / DT)) / DT
    assert acceleration[:3].max() <= limits.jerk + 1e-9
    assert v[-1] == pytest.approx(limits.linear_speed, rel=0.02)
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
