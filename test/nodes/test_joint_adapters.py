"""What controllers of joints are told, and what a stand-in of each does when that stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.controllers import TrajectoryController

from dtvla_ros.actions.joints import JointCommand
from dtvla_ros.errors import UserError
from dtvla_ros.nodes.joint_adapters import (
    AHEAD,
    ForwardPositionAdapter,
    JointTrajectoryAdapter,
)

PERIOD = 0.05
NAMES = ('shoulder', 'elbow')
SPEED = np.array([0.4, -0.2])  # rad/s


def commanded(tick: int, moving: bool = True) -> JointCommand:
    """Return where the joints shall be one period after a tick of a steady motion."""
    return JointCommand(tick * PERIOD, PERIOD, NAMES, (tick + 1) * PERIOD * SPEED,
                        SPEED if moving else np.zeros(2), 0.0, moving)


@pytest.fixture
def built(graph: Any) -> Any:
    """Return a function: class, arguments of the node -> an adapter."""
    return lambda kind, *arguments: kind(graph.listen(*arguments), 'base', None)


def test_an_arm_behind_a_trajectory_controller_follows_without_stops_and_ends_at_its_last_target(
        built: Any) -> None:
    adapter, arm = built(JointTrajectoryAdapter), TrajectoryController(NAMES, np.zeros(2))
    fine, now, places = 10, 0.0, []
    for tick in range(40):
        late = 0.4 * PERIOD if tick % 7 == 3 else 0.0  # a command comes late now and then
        told = False
        for part in range(fine):
            now = (tick + part / fine) * PERIOD
            if not told and part / fine * PERIOD >= late:
                arm.take(adapter._message(commanded(tick)), now)
                told = True
            places.append(arm.move(now))
    speeds = np.diff(places[10 * fine:], axis=0) / (PERIOD / fine)
    assert (np.abs(speeds - SPEED).max(0) < 0.5 * np.abs(SPEED)).all(), 'it never stops between'
    np.testing.assert_allclose(speeds.mean(0), SPEED, rtol=0.05)
    last = np.array(adapter._message(commanded(39)).points[0].positions)
    silent = 39 * PERIOD
    assert AHEAD * PERIOD <= 0.1
    np.testing.assert_allclose(arm.move(silent + AHEAD * PERIOD), last)
    np.testing.assert_allclose(arm.move(silent + 10.0), last, err_msg='and holds there')
    assert 'goes on to its last target' in adapter.on_silence


def test_an_arm_at_rest_is_told_where_it_is_with_each_tick(built: Any) -> None:
    message = built(JointTrajectoryAdapter)._message(commanded(3, moving=False))
    np.testing.assert_allclose(message.points[0].positions, 4 * PERIOD * SPEED)
    assert not message.points[0].velocities, 'the controller ends at rest'


def test_positions_are_forwarded_in_the_order_of_arm_joints(built: Any) -> None:
    adapter = built(ForwardPositionAdapter, '--ros-args', '-p', 'controller_timeout_s:=0.2')
    message = adapter._message(commanded(1))
    np.testing.assert_allclose(message.data, 2 * PERIOD * SPEED)
    assert adapter.topic == '/joint_commands'
    assert 'keeps its last target' in adapter.on_silence and '0.2 s' in adapter.on_silence


def test_a_forwarder_whose_time_out_is_not_stated_is_refused_with_the_remedy(built: Any) -> None:
    with pytest.raises(UserError, match=r'controller_timeout_s.*preset = "joint_trajectory"'):
        built(ForwardPositionAdapter)
