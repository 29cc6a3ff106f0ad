"""A changed thought is changed where it should be; who was followed, and recovery, are counted."""

from pathlib import Path

import numpy as np
import pytest
from support.libero_here import needs_libero

import dtvla_sim
from dtvla_ros.engine.load import load_policy
from dtvla_ros.engine.policy import act_on
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import ablations, interventions
from dtvla_ros.evaluation.workers import EvalOptions
from dtvla_ros.policy.transform import Observation
from dtvla_ros.policy.vocabulary import directions, turned_round
from dtvla_ros.rollout.episode import observation_from_sim
from dtvla_sim.experts import make_expert
from dtvla_sim.forced_release import FORCED, ForcedReleaseEnv

NANO = Path(__file__).resolve().parents[2] / 'models/nano'
TASK = 'stack_the_red_cube_on_the_green_cube'
CAN = 'put_the_can_in_the_wooden_bin'
OTHER = 'put the lemon in the blue bin'
SETUP = EvalOptions(NANO)
THOUGHT = (
    'holding nothing done nothing now reach can at x45 y-12 next lower move forward still down')


@pytest.fixture(scope='module')
def policy():
    return load_policy(NANO)[0]


@pytest.fixture(scope='module')
def observation():
    env = dtvla_sim.make('tabletop')
    obs, info = env.reset(seed=1_000_004, options={'task': TASK})
    seen = observation_from_sim(obs, info, env)
    said, again = ([ablations.other_instruction(env, k) for k in range(30)] for _ in range(2))
    assert env.task.name == TASK and said == again
    assert seen.instruction not in said and OTHER in said and len({*said}) == len(env.tasks) - 1
    env.close()
    return seen


def test_the_thought_is_another_tasks_and_the_action_follows_from_it(policy, observation):
    own = policy.infer(observation)
    swapped = ablations.swapped_thought(policy, lambda: OTHER)(observation)
    assert 'lemon' in swapped.reasoning and 'lemon' not in own.reasoning
    assert not np.array_equal(swapped.action_tokens, own.action_tokens)
    # With its own sentence as the other one it decides as ever, to the bit.
    same = ablations.swapped_thought(policy, lambda: observation.instruction)(observation)
    assert same.thought_tokens == own.thought_tokens and np.array_equal(same.chunk, own.chunk)
    nonsense = policy.transform.encode_thought(' '.join(['wooden'] * 16))
    assert not np.array_equal(
        act_on(policy.engine, policy.transform, observation, nonsense).chunk, own.chunk)


def noise(seed):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (128, 128, 3), np.uint8) for name in ('primary', 'wrist')}
    return Observation(images, {}, np.array([0.45, -0.118, 0.03]), np.array([1.0, 0.0, 0.0, 0.0]),
                       0.04, 'put the can in the wooden bin', 0.0)


def test_a_frozen_thought_is_kept(policy):
    frozen = ablations.frozen_thought(policy, keep=3)
    thoughts = [frozen(noise(seed)).thought_tokens for seed in range(7)]
    fresh = [policy.infer(noise(seed)).thought_tokens for seed in range(7)]
    assert len(set(fresh)) > 1 and thoughts == [fresh[0]] * 3 + [fresh[3]] * 3 + [fresh[6]]


def test_random_thoughts_differ_and_follow_the_seed(policy):
    first, second = (ablations.ablated(policy, 'random', 5) for _ in range(2))
    a, b, c = (infer(noise(0)).thought_tokens for infer in (first, second, first))
    assert a == b != c and len(a) == 18


@pytest.mark.slow
@needs_libero
def test_another_task_of_a_libero_scene():
    spatial = dtvla_sim.make('libero_spatial', image_size=64)
    spatial.reset(seed=0)  # its scenes have one task each
    assert ablations.other_instruction(spatial, 1) not in ('', spatial.task.instruction)


def test_words_agree_with_the_way_of_the_whole_chunk():
    """Only those after *move* are turned round."""
    opposite = turned_round(THOUGHT)
    assert opposite == THOUGHT.replace('forward', 'back').replace('down', 'up')
    assert turned_round('push it down move') == 'push it down move'
    chunk = np.array([[0.5, 0.0, 0.1, 0, 0, 0, -1], [-0.1, 0.0, -0.5, 0, 0, 0, -1]])
    assert directions(THOUGHT) == [(0, 1), (2, -1)]
    assert interventions.agreeing(THOUGHT, chunk) == 2
    assert interventions.agreeing(opposite, chunk) == 0
    assert interventions.agreeing(THOUGHT, np.zeros((2, 7))) == 0, 'standing still follows nothing'


def test_summary_counts_starts_without_another_task_for_directions_only():
    rows = [interventions.Steering('a', 'b', 1, True, False, 10, 9, 2),
            interventions.Steering('a', 'b', 2, False, True, 10, 7, 4),
            interventions.Steering('a', '', 3, False, False, 5, 5, 0)]
    summary = interventions.steering_summary(rows)
    rates = {name: (row['successes'], row['n'])
             for part in summary.values() for name, row in part.items()}
    assert rates == {'said': (1, 2), 'asked': (1, 2), 'own': (21, 25), 'opposite': (6, 25)}
    assert interventions.steering_sentence(summary) == (
        'Given the thought of another task, the arm did that task in 1 of 2 episodes and its own '
        'in 1; where the direction words of its thought were turned round, its motion agreed with '
        '6 of 25 of them.')
    alone = interventions.steering_sentence(interventions.steering_summary(rows[2:]))
    assert alone.startswith('No scene had another task to think of; ')


def test_a_start_state_is_judged_for_both_tasks():
    result = interventions.make_steering_worker(SETUP)((CAN, 1_000_003))
    assert result.other not in ('', result.task) and not (result.said and result.asked)
    assert result.along > result.words / 2 > 5, 'its own words are what it does'


@pytest.fixture(scope='module')
def knocked():
    environment = ForcedReleaseEnv(dtvla_sim.make('tabletop', image_size=32))
    yield environment
    environment.close()


def test_the_gripper_is_opened_once_and_the_expert_recovers(knocked, monkeypatch):
    """And never while it holds nothing."""
    executed, inner = [], knocked.env.step

    def note(action):
        executed.append(action[6])
        return inner(action)

    def play(seed, steps):
        """Return when the fingers opened against the expert's will, and its success."""
        knocked.reset(seed=seed, options={'task': CAN})
        expert, success, wanted = make_expert(knocked.env), False, []
        executed.clear()
        while not success and len(wanted) < steps:
            action = expert.act().action
            wanted.append(action[6])
            success = knocked.step(action)[-1]['success']
        return np.flatnonzero(np.array(executed) < np.array(wanted)).tolist(), success

    monkeypatch.setattr(knocked.env, 'step', note)
    opened, success = play(3, 400)
    assert knocked.released and success
    assert 1 <= len(opened) <= opened[-1] - opened[0] + 1 <= FORCED
    assert play(3, 120)[0] == opened, 'the same seed, the same moment'
    assert len({play(seed, 120)[0][0] - opened[0] for seed in (4, 5)}) == 2
    knocked.reset(seed=1, options={'task': CAN})
    for _ in range(30):
        knocked.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert not knocked.released, 'the gripper is empty'


def test_a_release_on_request_drops_what_is_held_and_else_is_refused(knocked):
    environment = ForcedReleaseEnv(knocked.env, by_itself=False)
    environment.reset(seed=3, options={'task': CAN})
    with pytest.raises(UserError, match='holds nothing'):
        environment.release()
    expert, wanted = make_expert(knocked.env), []
    while not knocked.env.scene.held('can') or environment.env.place('can')[2] < 0.9:
        environment.step(expert.act().action)
        wanted.append(1)
        assert len(wanted) < 200
    environment.release()
    for _ in range(FORCED):
        environment.step(expert.act().action)
    assert environment.released and not knocked.env.scene.held('can')


def test_success_counts_only_where_something_was_lost():
    rows = [interventions.Recovery('full', 'a', 1, True, True, 90, ('dropped now reach',), 0),
            interventions.Recovery('full', 'a', 2, False, True, 60, (), 0),
            interventions.Recovery('masked', 'a', 1, True, False, 180, ('',), 0),
            interventions.Recovery('full', 'b', 1, True, True, 90, ('missed now reach',), 0)]
    summary = interventions.recovery_summary(rows)
    assert (summary['full']['successes'], summary['full']['n']) == (2, 2)
    assert summary['full']['never_carried'] == 1 and summary['masked']['rate'] == 0.0
    assert [r.task for r in interventions.examples(rows, 5)] == ['a', 'b']
    assert interventions.recovery_sentence(summary).endswith(
        'in 2 of 2 episodes with the thought, in 0 of 1 with an empty one.')


def test_recovery_leaves_a_page_with_thoughts_and_one_sentence(monkeypatch, tmp_path, dtvla):
    rows = {('full', CAN, 1_000_000): interventions.Recovery(
                'full', CAN, 1_000_000, True, True, 90, ('carry <can>', THOUGHT), 1),
            ('masked', CAN, 1_000_000): interventions.Recovery(
                'masked', CAN, 1_000_000, True, False, 180, (), 0)}
    monkeypatch.setattr(interventions, 'run_jobs', lambda jobs, *_: [(j, rows[j]) for j in jobs])
    code, said, told = dtvla('recover', '--policy', NANO, '--tasks', CAN, '--episodes', '1',
                             '--json', 'r.json')
    sentence = 'in 1 of 1 episodes with the thought, in 0 of 1 with an empty one.'
    page = (tmp_path / 'out/recover.html').read_text()
    assert code == 0 and sentence in said and sentence in page
    assert 'wrote out/recover.html\nwrote r.json\n' in told
    assert page.count('class="bar"') == 2 and 'carry &lt;can&gt;' in page
    assert ' knocked  Nothing in hand. Reaching for the can, 45 cm ahead' in page
    assert 'model.safetensors' in page


def test_a_policy_loses_its_object_and_its_thoughts_are_kept():
    job = 'full', CAN, dtvla_sim.EVAL_SEED_START + 2
    result = interventions.make_recovery_worker(SETUP)(job)
    assert result.knocked and len(result.thoughts) > 3 and 0 <= result.at <= interventions.BEFORE
