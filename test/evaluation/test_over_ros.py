"""The same seeds in process and through the three real nodes: the same commands, to the bit."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.beside import fresh_domain
from support.graph import NANO
from support.policies import trained_on

from dtvla_ros.errors import NodeDied, UserError
from dtvla_ros.evaluation import ros_runner
from dtvla_ros.evaluation.ros_runner import blocks, parameters
from dtvla_ros.evaluation.workers import EvalOptions
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.ros.graph import Seen

ROOT = Path(__file__).resolve().parents[2]
TASKS = 'push_the_green_cube_onto_the_yellow_mark,stack_the_red_cube_on_the_green_cube'


def evaluate(out: Path, *arguments: str) -> dict:
    """Return result and journal rows of a run of ``dtvla eval``."""
    environment = {**os.environ, 'ROS_DOMAIN_ID': fresh_domain()}
    done = subprocess.run(
        [sys.executable, '-m', 'dtvla_ros.cli', 'eval', '--episodes', '1', '--workers', '1',
         '--seed', '1000004', '--json', str(out / 'r.json'), '--resume', str(out / 'r.jsonl'),
         *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / 'r.jsonl').read_text().splitlines()[1:]]
    return {**json.loads((out / 'r.json').read_text()), 'output': done.stdout,
            'rows': {(r['task'], r['seed']): r for r in rows}}


@pytest.mark.slow
@pytest.mark.parametrize('scene', [(), (
    '--starts', 'jitter', '--perturb', 'layout:2', '--perturb', 'noise:1', '--max-steps', '70',
    '--threads', '2')], ids=['plain', 'disturbed'])
def test_lock_step_over_ros_moves_the_arm_as_in_process(tmp_path, scene):
    if scene:  # what a policy was not trained on is measured, too
        other = tmp_path / 'other'
        shutil.copytree(NANO, other)
        manifest = json.loads((other / 'manifest.json').read_text())
        (other / 'manifest.json').write_text(json.dumps({**manifest, 'tasks': ['juggle']}))
        scene = (*scene, '--policy', str(other))
    alone = evaluate(tmp_path / 'here', '--tasks', TASKS, *scene)
    nodes = evaluate(tmp_path / 'there', '--tasks', TASKS, *scene, '--via', 'ros')
    assert nodes['rows'].keys() == alone['rows'].keys() and len(alone['rows']) == 2
    for (job, row), key in itertools.product(alone['rows'].items(), (
            'success', 'steps', 'thoughts', 'decisions', 'commands')):
        assert row[key] == nodes['rows'][job][key] and len(row['commands']) == 16, (job, key)
    for key in ('starts', 'perturb', 'flags', 'device', 'threads'):
        assert nodes[key] == alone[key], key
    assert 'over ROS in lock-step' in nodes['output']
    assert (nodes['via'], nodes['realtime']) == ('ros', False)
    if scene:
        assert (nodes['starts'], nodes['flags']['max_steps']) == ('jitter', 70)
        assert max(e['steps'] for e in nodes['episodes']) <= 70


@pytest.mark.slow
def test_wordings_over_ros_end_as_in_process(tmp_path):
    said = tmp_path / 'said.yaml'
    said.write_text(json.dumps({'push the green cube onto the yellow mark': [
        'PUSH the green cube, onto the yellow mark', 'Push the green cube onto the yellow mark.',
        'stack the red cube on the green cube'],
        'refuse': ['fly', 'put the lemon in the blue bin', "don't \"push\" it: no, käse!"]}))
    words = ('--instructions', str(said), '--max-steps', '60')
    alone = evaluate(tmp_path / 'here', *words)
    nodes = evaluate(tmp_path / 'there', *words, '--via', 'ros')
    for key in ('episodes', 'refuse', 'total', 'instructions'):
        assert nodes[key] == alone[key], key
    assert [e['outcome'] for e in nodes['episodes']][0::2] == ['refused', 'another task']
    assert [e['understood'] for e in nodes['episodes']] == [
        '', *TASKS.replace('_', ' ').split(',')]
    assert [bool(row['understood']) for row in nodes['refuse']['sentences']] == [0, 1, 0]
    rows = [json.loads(line) for line in (tmp_path / 'here/r.jsonl').read_text().splitlines()[1:]]
    assert len(rows) == 3 and all(row['said'] for row in rows)
    assert evaluate(tmp_path / 'here', *words)['episodes'] == alone['episodes'], 'continued'


# The policy says so from its 17th decision on, at control step 48.
SAYS_SO = """
from dataclasses import replace
from dtvla_ros.engine import policy
_decide, _made = policy.Policy.infer, []
def decide(self, *arguments):
    _made.append(0)
    decision = _decide(self, *arguments)
    return decision if len(_made) <= 16 else replace(decision, reasoning=(
        'holding nothing done can now wait can at x50 y-17 next wait move still still still'))
policy.Policy.infer = decide
"""


@pytest.mark.slow
def test_a_policy_that_says_that_it_is_done_ends_its_episode_over_ros_as_in_process(
        tmp_path, monkeypatch):
    policy = tmp_path / 'policy'
    shutil.copytree(NANO, policy)
    manifest = json.loads((policy / 'manifest.json').read_text())
    (policy / 'manifest.json').write_text(json.dumps({**manifest, 'says_done': True}))
    (tmp_path / 'sitecustomize.py').write_text(SAYS_SO)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(
        filter(None, (str(tmp_path), os.environ.get('PYTHONPATH')))))
    rows = []
    for via in ('inprocess', 'ros'):
        result = evaluate(tmp_path / via, '--tasks', TASKS.split(',')[0], '--policy', str(policy),
                          '--via', via)
        row, = result['rows'].values()
        rows.append({key: row[key] for key in (
            'success', 'steps', 'commands', 'decisions', 'thoughts', 'said_done', 'too_early')})
        assert (row['decisions'], row['said_done']) == (18, 51)
        assert row['too_early'] is not row['success']
        assert result['episodes'][0]['said_done'] == 51
        assert result['done']['without_success'] == [int(row['too_early']), 1]
        assert 'done was said within 1 s of success in ' in result['output']
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_real_time_says_so_and_tells_how_long_it_thought(tmp_path):
    result = evaluate(tmp_path, '--tasks', TASKS.split(',')[0], '--via', 'ros', '--realtime',
                      '--html', str(tmp_path / 'r.html'), '--videos', str(tmp_path / 'films'))
    assert result['realtime'] and 'over ROS in real time' in result['output']
    assert result['total']['n'] == 1 and result['latency']['think']['n'] >= 3
    assert 'real time' in (tmp_path / 'r.html').read_text()
    episode, = result['episodes']
    assert episode['commands'] == ''  # when they come depends on the machine
    films = list((tmp_path / 'films').glob('*.mp4')) if (tmp_path / 'films').exists() else []
    assert len(films) == (not episode['success'])


def test_the_simulator_is_told_only_what_is_asked_for():
    assert parameters(SceneSetup('tabletop')) == {}
    assert parameters(SceneSetup(
        'libero_10', 'jitter', ('camera:2', 'noise:1'), 128, shadows=False, max_steps=620)) == {
            'starts': 'jitter', 'perturb': ['camera:2', 'noise:1'], 'image_size': 128,
            'shadows': False, 'max_steps': 620}


def test_a_fault_of_the_gate_ends_it(monkeypatch, tmp_path):
    listener = SimpleNamespace(seen=Seen(gate_state='FAULT', gate_reason='e-stop'))
    for name, stand_in in (('joined', lambda _: nullcontext((listener, None))),
                           ('start_nodes', lambda *_: None), ('watch', lambda *_: iter([None]))):
        monkeypatch.setattr(ros_runner, name, stand_in)
    setup = EvalOptions(policy=ROOT / 'models' / 'nano')
    with pytest.raises(NodeDied, match='FAULT: e-stop; repeat'):
        list(ros_runner._block(setup, ['a'], range(1), tmp_path))


@pytest.mark.parametrize(('suite', 'taken'), [
    ('tabletop_joints', 'JOINT_POSITION'), ('tabletop_poses', 'OSC_POSE_ABSOLUTE')])
def test_a_suite_whose_arm_takes_others_is_refused_before_a_node_starts(suite, taken, tmp_path):
    setup = EvalOptions(policy=ROOT / 'models' / 'nano', scene=SceneSetup(suite))
    with pytest.raises(UserError, match=f'models/nano: its actions are OSC_POSE, the arm of '
                       f'{suite} takes {taken}'):
        list(ros_runner._block(setup, ['a'], range(1), tmp_path))


def test_a_policy_of_images_that_are_no_squares_is_refused_before_a_node_starts(tmp_path):
    policy = trained_on(tmp_path / 'policy', primary=(128, 128), wrist=(1280, 720))
    with pytest.raises(UserError, match="policy: .* trained on 1280x720 of the camera 'wrist'"):
        list(ros_runner._block(EvalOptions(policy=policy), ['a'], range(1), tmp_path))


def test_jobs_become_few_runs_of_the_simulator():
    fresh = [(t, s) for s in (7, 8, 9) for t in 'ab']
    assert blocks(fresh) == [(['a', 'b'], range(7, 10))]
    assert blocks(fresh[3:]) == [(['b'], range(8, 10)), (['a'], range(9, 10))]
    assert blocks([('a', 1), ('a', 4), ('b', 4)]) == [
        (['a'], range(1, 2)), (['a', 'b'], range(4, 5))]
