"""With swapped thoughts a policy is told one task and thinks of another, in the same scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dtvla_sim
from dtvla_ros.engine.load import load_policy
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.ablations import (
    FrozenThought,
    SwappedThought,
    ablated,
    other_sentence,
)
from dtvla_ros.policy.transform import Observation
from dtvla_ros.rollout.episode import observation_from_sim

NANO = Path(__file__).resolve().parents[2] / 'models/nano'
TASK = 'stack_the_red_cube_on_the_green_cube'
OTHER = 'put the lemon in the blue bin'


@pytest.fixture(scope='module')
def observation():
    env = dtvla_sim.make('tabletop')
    obs, info = env.reset(seed=1_000_004, options={'task': TASK})
    seen = observation_from_sim(obs, info, env)
    said = {other_sentence(env, seed) for seed in range(30)}
    assert env.task.name == TASK and info['instruction'] == seen.instruction
    assert seen.instruction not in said and OTHER in said and len(said) == len(env.tasks) - 1
    assert other_sentence(env, 3) == other_sentence(env, 3)
    env.close()
    return seen


def test_the_thought_is_another_tasks_and_the_action_follows_from_it(observation):
    policy, _ = load_policy(NANO)
    own = policy.infer(observation)
    assert 'cube' in own.reasoning and 'lemon' not in own.reasoning
    swapped = SwappedThought(policy, lambda: OTHER).infer(observation)
    assert 'lemon' in swapped.reasoning
    assert not np.array_equal(swapped.action_tokens, own.action_tokens)
    # With its own sentence as the other one it decides as ever, to the bit.
    same = SwappedThought(policy, lambda: observation.instruction).infer(observation)
    assert same.thought_tokens == own.thought_tokens
    assert np.array_equal(same.action_tokens, own.action_tokens)
    assert np.array_equal(same.chunk, own.chunk)


def noise(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (128, 128, 3), np.uint8) for name in ('primary', 'wrist')}
    return Observation(images, {}, np.array([0.45, -0.118, 0.03]), np.array([1.0, 0.0, 0.0, 0.0]),
                       0.04, 'put the can in the wooden bin', 0.0)


def test_a_frozen_thought_is_kept():
    policy, _ = load_policy(NANO)
    frozen = FrozenThought(policy, keep=3)
    thoughts = [frozen.infer(noise(seed)).thought_tokens for seed in range(7)]
    fresh = [policy.infer(noise(seed)).thought_tokens for seed in range(7)]
    assert len(set(fresh)) > 1
    assert thoughts == [fresh[0]] * 3 + [fresh[3]] * 3 + [fresh[6]]


def test_random_thoughts_differ_and_follow_the_seed():
    policy, _ = load_policy(NANO)
    first, second = (ablated(policy, 'random', 5) for _ in range(2))
    a, b, c = (infer(noise(0)).thought_tokens for infer in (first, second, first))
    assert a == b != c and len(a) == 18


def test_modes_that_are_none():
    policy, _ = load_policy(NANO)
    with pytest.raises(UserError, match='loud'):
        ablated(policy, 'loud')
    with pytest.raises(UserError, match='swapped'):
        ablated(policy, 'swapped')


@pytest.mark.slow
def test_another_task_of_a_libero_scene(libero):
    env = dtvla_sim.make('libero_goal', image_size=64)
    env.reset(seed=0)
    first, sentence = env.task.instruction, other_sentence(env, 1)
    assert sentence != first and env.task.instruction == first
    spatial = dtvla_sim.make('libero_spatial', image_size=64)
    spatial.reset(seed=0)  # its scenes have one task each
    assert other_sentence(spatial, 1) not in ('', spatial.task.instruction)
