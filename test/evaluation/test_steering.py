"""A changed thought is changed where it should be, and the judge can tell who was followed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dtvla_ros.engine.load import load_policy
from dtvla_ros.engine.policy import act_on
from dtvla_ros.evaluation import steering
from dtvla_ros.evaluation.workers import PolicySetup
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import observation_from_sim

NANO = Path(__file__).parents[2] / 'models' / 'nano'
needs_nano = pytest.mark.skipif(not NANO.is_dir(), reason='models/nano is not there')
THOUGHT = (
    'holding nothing done nothing now reach can at x45 y-12 next lower move forward still down')


def test_only_the_words_after_move_are_turned_round():
    assert steering.turned_round(THOUGHT) == THOUGHT.replace('forward', 'back').replace(
        'down', 'up')
    assert steering.turned_round('push it down move') == 'push it down move'
    assert steering.turned_round('') == ''


def test_words_agree_with_the_way_of_the_whole_chunk():
    chunk = np.array([[0.5, 0.0, 0.1, 0, 0, 0, -1], [-0.1, 0.0, -0.5, 0, 0, 0, -1]])
    assert steering.directions(THOUGHT) == [(0, 1), (2, -1)]
    assert steering.agreeing(THOUGHT, chunk) == 2
    assert steering.agreeing(steering.turned_round(THOUGHT), chunk) == 0
    assert steering.agreeing(THOUGHT, np.zeros((2, 7))) == 0, 'standing still follows nothing'


def test_summary_counts_starts_without_another_task_for_directions_only():
    rows = [steering.Steering('a', 'b', 1, True, False, 10, 9, 2),
            steering.Steering('a', 'b', 2, False, True, 10, 7, 4),
            steering.Steering('a', '', 3, False, False, 5, 5, 0)]
    summary = steering.summarise(rows)
    assert summary['thing']['said']['n'] == 2
    assert summary['thing']['said']['rate'] == summary['thing']['asked']['rate'] == 0.5
    assert summary['direction']['own']['successes'] == 21
    assert summary['direction']['opposite'] == summary['direction']['opposite'] | {
        'successes': 6, 'n': 25}


@needs_nano
def test_acting_on_a_given_thought_is_acting_on_ones_own():
    import dtvla_sim

    policy, _ = load_policy(NANO)
    engine, transform = policy.engine, policy.transform
    env = dtvla_sim.make('tabletop')
    try:
        task = 'put_the_can_in_the_wooden_bin'
        obs, info = env.reset(seed=dtvla_sim.EVAL_SEED_START, options={'task': task})
        seen = observation_from_sim(obs, info, env)
        own = policy.infer(seen)
        given = act_on(engine, transform, seen, own.thought_tokens)
        np.testing.assert_array_equal(given.chunk, own.chunk)
        nonsense = transform.encode_thought(' '.join(['wooden'] * 16))
        assert not np.array_equal(
            act_on(engine, transform, seen, nonsense).chunk, own.chunk)
    finally:
        env.close()


@needs_nano
def test_a_start_state_is_judged_for_both_tasks():
    serve = steering.make_steering_worker(
        PolicySetup(SceneSetup('tabletop', max_steps=None), str(NANO), 'onnx', 'full'))
    result = serve(('put_the_can_in_the_wooden_bin', 1_000_003))
    assert result.other not in ('', result.task)
    assert not (result.said and result.asked)
    assert result.words > 10
    assert result.along > result.words / 2, 'its own words are what it does'
