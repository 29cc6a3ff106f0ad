"""Row 44: a person at the keyboard of a demonstration."""

from __future__ import annotations

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from support.beside import fresh_domain
from support.graph import Graph
from support.terminal import terminal
from trajectory_msgs.msg import JointTrajectory

from test.faults.rig import STILL_TICKS

DEMO = ('demo', '--tasks', 'put_the_red_cube_and_the_can_in_the_blue_bin', '--episodes', '9')


def moves(message):
    return bool(np.any(message.points[0].positions[:6]))


@pytest.mark.slow
@pytest.mark.parametrize('command', [DEMO, ('play',)], ids=['demo', 'play'])
def test_44_space_stops_the_arm(tmp_path, monkeypatch, check, command):
    monkeypatch.setenv('ROS_DOMAIN_ID', fresh_domain())
    graph = Graph(tmp_path)
    graph.listen(action=(JointTrajectory, '/action'), gate=(DiagnosticStatus, '/gate_state'))
    try:
        with terminal('-m', 'dtvla_ros.cli', *command, '--out', str(tmp_path / 'out')) as shown:
            if command != DEMO:
                shown.wait('From another terminal', 120)
                shown.press('6\n')
            graph.spin(lambda: len(graph.of('action')) > 12 and all(
                moves(m) for _, m in graph.of('action')[-6:]), 120, 'motion')
            pressed = shown.press(' ')

            def still():
                after = [moves(m) for _, m in graph.of('action', pressed)]
                return len(after) > STILL_TICKS and not any(after[-STILL_TICKS:])
            graph.spin(lambda: still() and graph.said('gate') == ('FAULT', 'e-stop'), 20, 'a stop')
            last = max((t for t, m in graph.of('action', pressed) if moves(m)), default=pressed)
            check(44, last - pressed)
            shown.wait(r'STOPPED: e-stop \(SPACE at ')
            count = len(graph.of('action'))
            graph.wait(0.5)
            assert not any(moves(m) for _, m in graph.of('action')[count:]), 'it stays stopped'
    finally:
        graph.close()
