"""The three real processes: an episode over topics, and an arm whose policy is killed."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

import dtvla_sim
from dtvla_ros.engine.load import load_policy
from dtvla_ros.rollout.episode import run_episode
from dtvla_ros.ros import conversions
from test.nodes.conftest import IN_NAMESPACE

TASK = 'put_the_lemon_in_the_blue_bin'
TICK = 0.05
EVAL_SEED = 1_000_000


def start_all(graph, policy, config, *bridge):
    folder, engine = policy
    params = ['--params-file', f'config/{config}.yaml']
    node = graph.listen(
        action=(JointTrajectory, '/action'), chunk=(JointTrajectory, '/vla/action_chunk'),
        reasoning=(String, '/vla/reasoning'), episode=(String, '/sim/episode'),
        gate=(DiagnosticStatus, '/gate_state'), vla=(DiagnosticStatus, '/vla/state'),
        joints=(JointState, '/joint_states'))
    graph.start('vla_node', *IN_NAMESPACE, *params, '-p', f'policy:={folder}',
                '-p', f'engine:={engine}', '-p', 'on_cut:=act', '-p', 'replan_steps:=4')
    graph.start('command_gate', *params)
    graph.start('sim_bridge', *params, '-p', f'tasks:=[{TASK}]', *bridge)
    return node


def motion(message):
    return np.asarray(message.points[0].positions)[:6]


def decide_in_process(policy, steps):
    """Return the chunks [n, 4, 7] and thoughts of the same episode without any topic."""
    env = dtvla_sim.make('tabletop')
    policy_, _ = load_policy(*policy)
    rows, thoughts = [], []

    def note(_, decision, __):
        rows.append(decision.chunk[:4])
        thoughts.append(decision.reasoning)

    run_episode(env, policy_.infer, TASK, EVAL_SEED, 4, steps, on_decision=note)
    env.close()
    return np.array(rows), thoughts


@pytest.mark.slow
def test_one_episode_in_lock_step_every_command_over_topics(graph, policy):
    steps = 22
    start_all(graph, policy, 'sim', '-p', f'max_steps:={steps}', '-p', 'camera_every:=4')
    graph.spin(lambda: any(json.loads(m.data)['finished'] for _, m in graph.of('episode')), 90)
    maps = Path(f'/proc/{graph.processes["command_gate"].pid}/maps').read_text()
    assert graph.processes['sim_bridge'].wait(15) == 0
    assert graph.interrupt('vla_node') == 0
    assert graph.interrupt('command_gate') == 0

    last = json.loads(graph.of('episode')[-1][1].data)
    assert last['step'] == steps and last['done'] and last['task'] == TASK
    assert last['summary'] == {TASK: [int(last['success']), 1]}

    actions = [m for _, m in graph.of('action')]
    stamps = [conversions.seconds(m.header.stamp) for m in actions]
    np.testing.assert_allclose(np.diff(stamps), TICK, atol=1e-9)
    assert len(actions) == steps

    chunks = [conversions.chunk_from(m, TICK) for _, m in graph.of('chunk')]
    assert len(chunks) == math.ceil(steps / 4)
    rows = {round((c.stamp + k * TICK) * 1e3): row for c in chunks
            for k, row in enumerate(c.values)}
    for stamp, message in zip(stamps, actions, strict=True):
        np.testing.assert_array_equal(
            motion(message), np.clip(rows[round(stamp * 1e3)][:6], -1, 1).astype(np.float64))

    in_process, thoughts = decide_in_process(policy, steps)
    np.testing.assert_allclose([c.values for c in chunks], in_process, atol=1e-5)

    texts = [m.data for _, m in graph.of('reasoning')]
    whole = [t for t in texts if not t.endswith('…')]
    assert whole == thoughts, 'one complete thought per decision'
    assert len(texts) > len(whole), 'and it was seen while it was written'

    told = conversions.status_values(graph.of('vla')[-1][1])
    assert int(told['draft_passes']) >= 1 and int(told['draft_proposed']) > 0
    assert 0 <= int(told['draft_accepted']) <= int(told['draft_proposed'])

    joints = np.array([m.position for _, m in graph.of('joints')])
    assert np.ptp(joints[:, :7], axis=0).max() > 0.02, 'the arm moved'
    for library in ('torch', 'onnxruntime', 'mujoco'):
        assert library not in maps, f'the gate loaded {library}'


@pytest.mark.slow
def test_killing_the_policy_in_motion_stops_the_arm(graph, policy):
    start_all(graph, policy, 'sim_realtime', '-p', 'camera_every:=2', '-p', 'episodes:=9')

    def moving():
        recent = graph.of('action')[-3:]
        joints = graph.of('joints')[-1:]
        return (len(recent) == 3 and all(motion(m).any() for _, m in recent) and joints
                and np.abs(joints[0][1].velocity[:7]).max() > 0.05)

    graph.spin(moving, 120)
    graph.processes['vla_node'].send_signal(signal.SIGKILL)
    killed = time.monotonic()

    def noticed():
        return [m for _, m in graph.of('gate', killed)
                if 'heartbeat' in conversions.status_values(m)['reason']]
    graph.spin(noticed, 30)
    count = len(graph.of('action')) + 2  # topics are not ordered among each other
    graph.spin(lambda: len(graph.of('action')) >= count + 4
               and any(m.message == 'STOP' for m in noticed()), 30)
    ticks = len(graph.of('joints'))
    graph.spin(lambda: len(graph.of('joints')) >= ticks + 30, 60)
    commands = [m for _, m in graph.of('action')]
    assert not any(motion(m).any() for m in commands[count:]), 'and it does not move again'
    played = [m for m in commands if motion(m).any()]
    grips = {float(m.points[0].positions[6]) for m in [played[-1], *commands[count:]]}
    assert len(grips) == 1, 'the grip stays as last commanded'
    assert np.abs(graph.of('joints')[-1][1].velocity[:7]).max() < 0.05, 'the arm is still'


@pytest.mark.slow
def test_a_killed_policy_does_not_hang_a_lock_step_episode(graph, policy):
    start_all(graph, policy, 'sim', '-p', 'max_steps:=50')
    graph.spin(lambda: len(graph.of('action')) >= 10, 90)
    graph.processes['vla_node'].send_signal(signal.SIGKILL)
    assert graph.processes['vla_node'].wait(20) == -signal.SIGKILL
    graph.spin(lambda: any(json.loads(m.data)['finished'] for _, m in graph.of('episode')), 30)
    assert not motion(graph.of('action')[-1][1]).any()
    assert graph.processes['sim_bridge'].wait(15) == 0


@pytest.mark.parametrize(('name', 'arguments', 'words'), [
    ('vla_node', ['-p', 'policy:=no/such/policy', '-p', 'autostart:=true'],
     ['no/such/policy', 'manifest']),
    ('vla_node', ['-p', 'mode:=random'], ['mode', 'random', 'masked', 'dtvla eval --mode']),
    ('sim_bridge', ['-p', 'tasks:=[fly_to_the_moon]'], ['fly_to_the_moon', TASK]),
    ('sim_bridge', ['-p', 'suite:=kitchen'], ['kitchen', 'tabletop']),
    ('command_gate', ['-p', 'linear_speed:=-1.0'], ['linear_speed', '-1.0', 'range']),
    ('command_gate', ['--params-file', 'BROKEN'], ['broken.yaml']),
])
def test_bad_input_is_one_last_line_and_exit_code_2(graph, tmp_path, name, arguments, words):
    broken = tmp_path / 'broken.yaml'
    broken.write_text('command_gate:\n  ros__parameters: [1, {\n')
    process = graph.start(name, *[str(broken) if a == 'BROKEN' else a for a in arguments])
    assert process.wait(60) == 2
    lines = graph.log(name).strip().splitlines()
    assert lines[-1].startswith('error: ') and not any('Traceback' in line for line in lines)
    assert all(w in lines[-1] for w in words), lines[-1]
