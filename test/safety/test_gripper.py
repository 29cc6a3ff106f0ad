"""Stuck, absent, or holding something."""

import pytest

from dtvla_ros.safety.gripper import GripperMonitor

OPEN, CLOSE = -1.0, 1.0


def watched(start, command, end, seconds, timeout=2.0, widest=0.08):
    monitor = GripperMonitor(timeout)
    monitor.measure(widest)
    monitor.measure(start)
    monitor.command(command, 10.0)
    monitor.measure(end)
    return monitor.fault(10.0 + seconds)


@pytest.mark.parametrize(('start', 'command', 'end', 'seconds', 'word'), [
    (0.08, CLOSE, 0.08, 2.1, 'does not close'),
    (0.08, CLOSE, 0.08, 1.9, None),
    (0.08, CLOSE, 0.04, 9.0, None),  # stalled on something: a grasp
    (0.04, CLOSE, 0.04, 9.0, None),  # already holding it
    (0.0, OPEN, 0.0, 2.1, 'does not open'),
    (0.0, OPEN, 0.03, 2.1, None),
    (0.08, OPEN, 0.08, 9.0, None),
])
def test_stuck_or_not(start, command, end, seconds, word):
    told = watched(start, command, end, seconds)
    assert told is None if word is None else word in told


def test_nothing_is_watched_without_a_timeout_and_a_reset_forgives():
    assert watched(0.08, CLOSE, 0.08, 99.0, timeout=0.0) is None
    monitor = GripperMonitor(2.0)
    monitor.measure(0.08)
    monitor.command(CLOSE, 0.0)
    assert monitor.fault(3.0)
    monitor.reset()
    assert monitor.fault(3.0) is None


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
