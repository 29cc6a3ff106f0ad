"""From a download to decisions over topics and to an evaluation: one command each.

The checkpoint is a tiny one of the released layout; the real one is 6 GB.
"""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from std_msgs.msg import String
from support.graph import ROOT
from support.released import STATISTICS, write_checkpoint
from trajectory_msgs.msg import JointTrajectory

from benchmarks.arm import Robot
from dtvla_ros.ros import conversions, qos
from test.sim.test_libero import needs_libero

BUTTER = 'pick_up_the_butter_and_place_it_in_the_basket'


def dtvla(*words):
    """Run a command to its end."""
    subprocess.run([sys.executable, '-m', 'dtvla_ros.cli', *map(str, words)], cwd=ROOT, check=True,
                   timeout=240)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hub') / 'deepthinkvla_libero_cot_rl'
    write_checkpoint(folder)
    out = folder.parent / 'released'
    dtvla('convert', folder, '--out', out)
    return out


def test_a_decision_over_topics(graph, converted):
    node = graph.listen(chunk=(JointTrajectory, '/vla/action_chunk'),
                        reasoning=(String, '/vla/reasoning'))
    Robot(node, '', (256, 256), frame_rate=20.0)
    instruction = node.create_publisher(String, '/instruction', qos.LATCHED)
    graph.start('vla_node', policy=converted, engine='torch', max_thought_tokens=12, on_cut='act',
                deadline_s=20.0, max_age_s=5.0, input_timeout_s=1.0)
    instruction.publish(String(data=BUTTER.replace('_', ' ')))
    graph.spin(lambda: graph.of('chunk'), 90)
    chunk = conversions.chunk_from(graph.of('chunk')[0][1], 0.05)
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
