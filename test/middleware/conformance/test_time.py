"""Timers and clocks, real and simulated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import Clock, Time

Spin = Callable[..., bool]
STEADY = ros.ClockType.STEADY_TIME


def _publish_clock(publisher: Any, seconds: float) -> None:
    sec, nanosec = divmod(round(seconds * 1e9), 10**9)
    publisher.publish(Clock(clock=Time(sec=sec, nanosec=nanosec)))


def test_wall_timer_keeps_its_rate(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    calls: list[float] = []
    timer = node.create_timer(0.02, lambda: calls.append(time.monotonic()),
                              clock=ros.Clock(clock_type=STEADY))
    start = time.monotonic()
    assert spin_until(lambda: len(calls) == 20, node)
    # Never early; late only as far as a busy machine makes it.
    assert 0.39 < calls[-1] - start < 2.0
    timer.cancel()
    assert timer.is_canceled()
    assert not spin_until(lambda: len(calls) > 20, node, timeout=0.1)
    timer.reset()
    assert spin_until(lambda: len(calls) > 20, node)


def test_missed_periods_are_skipped_not_caught_up(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    calls: list[float] = []
    node.create_timer(0.05, lambda: calls.append(time.monotonic()),
                      clock=ros.Clock(clock_type=STEADY))
    time.sleep(0.5)
    assert spin_until(lambda: len(calls) >= 3, node)
    assert calls[2] - calls[1] > 0.02


def test_timer_follows_the_simulated_clock(make_node: Any, spin_until: Spin) -> None:
    node = make_node(parameter_overrides=[ros.Parameter('use_sim_time', value=True)])
    source = make_node('sim')
    clock = source.create_publisher(Clock, '/clock', 10)
    ticks: list[int] = []
    wall: list[int] = []
    node.create_timer(0.05, lambda: ticks.append(node.get_clock().now().nanoseconds))
    node.create_timer(0.02, lambda: wall.append(1), clock=ros.Clock(clock_type=STEADY))
    assert node.get_clock().now().nanoseconds == 0
    assert spin_until(clock.get_subscription_count, node, source)
    assert spin_until(lambda: len(wall) >= 5, node)
    assert ticks == []

    def advance(seconds: float) -> None:
        _publish_clock(clock, seconds)
        assert spin_until(
            lambda: node.get_clock().now().nanoseconds == round(seconds * 1e9), node)
        for _ in range(3):
            ros.spin_once(node, timeout_sec=0.002)
    advance(100.0)
    first = len(ticks)
    for step in range(1, 11):
        advance(100.0 + 0.05 * step)
    assert len(ticks) - first == 10
    paused = len(ticks)
    assert not spin_until(lambda: len(ticks) > paused, node, timeout=0.2)
    advance(50.0)  # backwards
    advance(50.04)
    assert len(ticks) == paused
    advance(50.06)
    assert len(ticks) == paused + 1
    result, = node.set_parameters([ros.Parameter('use_sim_time', value=False)])
    assert result.successful
    assert abs(node.get_clock().now().nanoseconds - time.time_ns()) < 10**9


def test_a_clock_that_jumps_back_keeps_timers_alive(make_node: Any, spin_until: Spin) -> None:
    node = make_node(args=('--ros-args', '-p', 'use_sim_time:=true'))
    clock = node.create_publisher(Clock, '/clock', 10)
    ticks: list[float] = []
    node.create_timer(1.0, lambda: ticks.append(node.get_clock().now().nanoseconds / 1e9))
    assert spin_until(clock.get_subscription_count, node)
    for seconds in (1000.0, 1001.0, 3.0, 3.5, 4.0, 5.0):
        _publish_clock(clock, seconds)
        assert spin_until(
            lambda: node.get_clock().now().nanoseconds == round(seconds * 1e9), node)  # noqa: B023
        spin_until(lambda: False, node, timeout=0.05)
    # A timer that waited for the time before the jump would be silent for a quarter of an hour.
    assert ticks[-2:] == [4.0, 5.0]


def test_times_of_different_clocks_do_not_mix(make_node: Any) -> None:
    steady = ros.Clock(clock_type=STEADY).now()
    system = ros.Clock(clock_type=ros.ClockType.SYSTEM_TIME).now()
    with pytest.raises(TypeError):
        steady < system  # noqa: B015
    with pytest.raises(TypeError):
        steady - system
    later = system + ros.Duration(seconds=1.5)
    assert (later - system).nanoseconds == 1_500_000_000
    assert ros.Time.from_msg(later.to_msg()).nanoseconds == later.nanoseconds
