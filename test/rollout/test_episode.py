"""Episodes in the real simulator; the scripted expert stands where a policy would."""

import numpy as np
import pytest

import dtvla_sim
from dtvla_ros.actions.contract import ActionContract
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


STILL, UP = np.array([0, 0, 0, 0, 0, 0, -1.0]), np.array([0, 0, 0.5, 0, 0, 0, -1.0])
WAIT = 'holding nothing done can now wait can at x50 y-17 next wait move still still still'


class Scripted:
    """Stands where the simulator would: the task is done from one control step to another."""

    control_rate, max_steps, base_position = 20.0, 30, np.zeros(3)
    contract = ActionContract()
    views = {'primary': 'agentview_image', 'wrist': 'robot0_eye_in_hand_image'}

    def __init__(self, solved, undone=1000):
        self.holds = range(solved, undone)

    def reset(self, seed, options):
        self.step_count = 0
        return self.seen(), {'instruction': 'x'}

    def seen(self):
        return {name: np.zeros(size) for name, size in (
            ('robot0_gripper_qpos', 2), ('robot0_joint_pos', 7), ('robot0_eef_pos', 3),
            ('robot0_eef_quat', 4), ('agentview_image', 1), ('robot0_eye_in_hand_image', 1))}

    def step(self, action):
        self.step_count += 1
        done = self.step_count in self.holds
        return self.seen(), 0.0, done, self.step_count >= self.max_steps and not done, {
            'success': done}


@pytest.mark.parametrize(('holds', 'says_at', 'after', 'expected'), [
    # (success, steps, said_done, too_early, decisions); every third step is decided on.
    ((10,), 99, 0, (True, 10, None, False, 4)),
    ((10,), 99, 20, (True, 10, None, False, 10)), ((10,), 11, 20, (True, 10, 18, False, 7)),
    ((28,), 28, 20, (True, 28, 36, False, 13)), ((99,), 8, 20, (False, 15, 15, True, 6)),
    ((99,), 8, 0, (False, 15, 15, True, 6)), ((99,), 99, 20, (False, 30, None, False, 10)),
    ((10, 12), 11, 20, (True, 10, 18, True, 7))])
def test_an_episode_ends_when_the_policy_says_so_and_waits_for_it_after_success(
        holds, says_at, after, expected):
    """Its steps and commands are those up to success."""
    env = Scripted(*holds)

    def decide(observation):
        thought = WAIT if env.step_count >= says_at else 'x'
        rows = np.array([STILL if thought == WAIT else UP] * 8, np.float32)
        return Decision(thought, 'complete', rows, (), np.zeros(0, np.int64))

    result = episode.run_episode(env, decide, TASK, 0, 3, after_success=after)
    assert expected == (result.success, result.steps, result.said_done, result.too_early,
                        result.decisions)
    if result.success:
        assert result.commands == episode.commands_hash([UP] * 10 if holds[0] == 10 else [UP] * 28)


def test_replay_repeats_its_own_start_but_not_others(env):
    result, actions = episode.run_expert_episode(env, make_expert(env), TASK, 0, env.max_steps)
    assert result.success and actions.shape == (result.steps, 7)
    assert episode.run_replay_episode(env, actions, TASK, 0, env.max_steps).success
    assert sum(episode.run_replay_episode(env, actions, TASK, seed, env.max_steps).success
               for seed in range(100, 106)) <= 1
