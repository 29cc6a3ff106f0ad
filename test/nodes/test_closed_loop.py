"""The three real processes: an episode over topics, and an arm whose policy is killed."""

import json
import math
import signal

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
from dtvla_ros.thought import as_sentence

TASK = 'put_the_lemon_in_the_blue_bin'
TICK = 0.05


def start_all(graph, policy, config, **bridge):
    """Start the three nodes with a file of parameters; return a node that listens to them."""
    node = graph.listen(
        action=(JointTrajectory, '/action'), chunk=(JointTrajectory, '/vla/action_chunk'),
        reasoning=(String, '/vla/reasoning'), episode=(String, '/sim/episode'),
        gate=(DiagnosticStatus, '/gate_state'), vla=(DiagnosticStatus, '/vla/state'),
        joints=(JointState, '/joint_states'))
    graph.start('vla_node', config, policy=policy[0], engine=policy[1], on_cut='act',
                replan_steps=4)
    graph.start('command_gate', config)
    graph.start('sim_bridge', config, **{'tasks': f'[{TASK}]', **bridge})
    return node


def finished(graph):
    """Whether the last episode is over."""
    return any(json.loads(m.data)['finished'] for _, m in graph.of('episode'))


def motion(message):
    """Return what an action moves the arm by, [6]."""
    return np.asarray(message.points[0].positions)[:6]


def decide_in_process(policy, steps):
    """Return the chunks [n, 4, 7] and thoughts of the same episode without any topic."""
    env, decisions = dtvla_sim.make('tabletop'), []
    run_episode(env, load_policy(*policy)[0].infer, TASK, 1_000_000, 4, steps,
                on_decision=lambda _, decision, __: decisions.append(decision))
    env.close()
    return np.array([d.chunk[:4] for d in decisions]), [d.reasoning for d in decisions]


@pytest.mark.slow
def test_one_episode_in_lock_step_every_command_over_topics(graph, policy):
    steps = 22
    start_all(graph, policy, 'sim', max_steps=steps, camera_every=4)
    graph.spin(lambda: finished(graph), 90)
    assert graph.processes['sim_bridge'].wait(15) == 0
    assert graph.interrupt('vla_node') == graph.interrupt('command_gate') == 0

    last = json.loads(graph.last('episode').data)
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
    assert texts == [as_sentence(t) for t in thoughts], 'one complete sentence per decision'
    assert conversions.status_values(graph.last('vla'))['thought'] == thoughts[-1]

    told = conversions.status_values(graph.last('vla'))
    assert int(told['draft_passes']) and (
        0 <= int(told['draft_accepted']) <= int(told['draft_proposed']) > 0)
    joints = np.array([m.position for _, m in graph.of('joints')])
    assert np.ptp(joints[:, :7], axis=0).max() > 0.02, 'the arm moved'


@pytest.mark.slow
def test_a_killed_policy_stops_the_arm_and_does_not_hang_a_lock_step_episode(graph, policy):
    start_all(graph, policy, 'sim', max_steps=80)
    graph.spin(lambda: len(graph.of('action')) >= 10, 90)
    assert graph.kill('vla_node').wait(20) == -signal.SIGKILL
    graph.spin(lambda: finished(graph), 60)
    assert graph.processes['sim_bridge'].wait(15) == 0
    commands = [m for _, m in graph.of('action')]
    played = [m for m in commands if motion(m).any()]
    assert not motion(commands[-1]).any() and len(played) < 60
    assert commands[-1].points[0].positions[6] == played[-1].points[0].positions[6], (
        'the grip stays as last commanded')
    assert np.abs(graph.last('joints').velocity[:7]).max() < 0.05, 'the arm is still'
