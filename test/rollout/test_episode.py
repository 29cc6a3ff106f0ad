"""Episodes in the real simulator; the scripted expert stands where a policy would."""

import numpy as np
import pytest

import dtvla_sim
from dtvla_ros.engine.engine import Decision
from dtvla_ros.rollout import episode
from dtvla_sim.experts import make_expert

TASK = 'stack_the_red_cube_on_the_green_cube'


@pytest.fixture(scope='module')
def env():
    env = dtvla_sim.make('tabletop')
    yield env
    env.close()


def test_observation_is_in_the_base_frame(env):
    obs, info = env.reset(seed=5, options={'task': TASK})
    seen = episode.observation_from_sim(obs, info, env, step=3)
    assert set(seen.images) == {'primary', 'wrist'}
    assert all(i.dtype == np.uint8 and i.shape == (128, 128, 3) for i in seen.images.values())
    assert len(seen.joint_positions) == 9
    x, y, z = seen.ee_position  # in front of the base, above the table top, gripper open
    assert 0.2 < x < 0.8 and abs(y) < 0.15 and z > 0.0
    assert seen.gripper_opening == pytest.approx(0.08, abs=0.005)
    assert seen.stamp == pytest.approx(0.15)
    assert seen.instruction == 'stack the red cube on the green cube'


def test_an_idle_policy_fails_when_time_is_up(env, monkeypatch):
    """A limit of steps that is asked for replaces the task's own; each step may be watched."""
    monkeypatch.setattr(env, 'steps_per_goal', 5)
    still, looked = np.zeros((8, 7), np.float32), []

    def decide(observation):
        return Decision('wait', 'truncated', still, (), np.zeros(0, np.int64), {'think': 0.001})

    result = episode.run_episode(
        env, decide, TASK, 7, 4, 10, lambda o, d, step: looked.append(step))
    assert (result.success, result.steps, result.decisions, result.truncated) == (False, 10, 3, 3)
    assert looked == [0, 4, 8] and result.latency['think'] == [0.001] * 3
    assert result.thoughts == ('wait',) * 3
    assert episode.run_episode(env, decide, TASK, 7, 4).steps == 5
    assert episode.run_replay_episode(env, np.zeros((20, 7), np.float32), TASK, 7, 13).steps == 13


def test_replay_repeats_its_own_start_but_not_others(env):
    result, actions = episode.run_expert_episode(env, make_expert(env), TASK, 0, env.max_steps)
    assert result.success and actions.shape == (result.steps, 7)
    assert episode.run_replay_episode(env, actions, TASK, 0, env.max_steps).success
    assert sum(episode.run_replay_episode(env, actions, TASK, seed, env.max_steps).success
               for seed in range(100, 106)) <= 1
