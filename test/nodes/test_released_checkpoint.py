"""From a download to decisions over topics and to an evaluation: one command each.

The checkpoint is a tiny one of the released layout; the real one is 6 GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from std_msgs.msg import String
from support.released import STATISTICS, write_checkpoint
from trajectory_msgs.msg import JointTrajectory

from benchmarks.arm import Robot
from dtvla_ros.ros import conversions, qos
from test.nodes.conftest import IN_NAMESPACE, ROOT
from test.sim.test_libero import needs_libero

BUTTER = 'pick_up_the_butter_and_place_it_in_the_basket'
TASK = 'pick up the butter and place it in the basket'


def dtvla(*words):
    """Run a command to its end; return what it printed."""
    done = subprocess.run([sys.executable, '-m', 'dtvla_ros.cli', *map(str, words)], cwd=ROOT,
                          capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hub') / 'deepthinkvla_libero_cot_rl'
    write_checkpoint(folder)
    out = folder.parent / 'released'
    dtvla('convert', folder, '--out', out)
    return out


def test_a_decision_over_topics(graph, converted):
    node = graph.listen(chunk=(JointTrajectory, '/vla/action_chunk'),
                        reasoning=(String, '/vla/reasoning'),
                        vla=(DiagnosticStatus, '/vla/state'))
    Robot(node, '', (256, 256), frame_rate=20.0)
    instruction = node.create_publisher(String, '/instruction', qos.LATCHED)
    managed = [word.replace('autostart:=true', 'autostart:=false') for word in IN_NAMESPACE]
    graph.start('vla_node', *managed, '-p', f'policy:={converted}', '-p', 'engine:=torch',
                '-p', 'max_thought_tokens:=12', '-p', 'on_cut:=act', '-p', 'deadline_s:=20.0',
                '-p', 'max_age_s:=5.0', '-p', 'input_timeout_s:=1.0')

    def state():
        return graph.of('vla')[-1][1] if graph.of('vla') else DiagnosticStatus()
    graph.spin(lambda: state().message == 'UNCONFIGURED', 60)
    for transition, reached in ((Transition.TRANSITION_CONFIGURE, 'INACTIVE'),
                                (Transition.TRANSITION_ACTIVATE, 'IDLE')):
        answer = graph.call(ChangeState, '/vla/vla_node/change_state', ChangeState.Request(
            transition=Transition(id=transition)))
        assert answer.success, conversions.status_values(state())['reason']
        graph.spin(lambda reached=reached: state().message == reached, 60)
    instruction.publish(String(data=TASK))
    graph.spin(lambda: graph.of('chunk'), 60)
    message = graph.of('chunk')[0][1]
    chunk = conversions.chunk_from(message, 0.05)
    low, high = (np.array(STATISTICS['action'][key][:6]) for key in ('q01', 'q99'))
    assert chunk.values.shape == (10, 7) and chunk.period == pytest.approx(0.05)
    assert (chunk.values[:, :6] >= low - 1e-6).all() and (chunk.values[:, :6] <= high + 1e-6).all()
    assert graph.of('reasoning'), 'and it was seen while it thought'
    assert abs(chunk.stamp - time.time()) < 300, 'stamped by the clock of the cameras'


@pytest.mark.slow
@pytest.mark.parametrize(('suite', 'task', 'options'), [
    ('tabletop', 'put_the_lemon_in_the_blue_bin', ['--mode', 'masked']),
    pytest.param('libero_object', BUTTER, ['--mode', 'masked'], marks=needs_libero),
    pytest.param('libero_object', BUTTER, ['--via', 'ros'], marks=needs_libero)],
    ids=['tabletop', 'libero', 'libero over ros'])
def test_an_evaluation(converted, tmp_path, suite, task, options):
    report = tmp_path / 'eval.json'
    dtvla('eval', '--policy', converted, '--engine', 'torch', '--suite', suite, '--tasks', task,
          '--episodes', '1', '--workers', '1', '--json', report, *options)
    told = json.loads(report.read_text())
    assert told['total']['n'] == 1 and told['suite'] == suite
    assert told['policy'] == str(converted) and told['replan_steps'] == 10
