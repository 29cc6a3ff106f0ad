"""Thought ablations: one policy acting on an empty, random, kept or another task's thought."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dtvla_ros.engine.engine import Decision
from dtvla_ros.engine.policy import Policy, act_on, suppressed_in_thought
from dtvla_ros.policy.transform import Observation
from dtvla_ros.rollout.env import Env
from dtvla_ros.rollout.episode import Infer

MODES = ('full', 'masked', 'random', 'swapped', 'frozen')
RANDOM_TOKENS = 16  # of a random thought
KEEP = 4  # decisions a frozen thought is kept for


def ablated(policy: Policy, mode: str, seed: int = 0,
            other_instruction: Callable[[], str] | None = None) -> Infer:
    """Return what decides for one episode, with a policy's thought or with another one.

    'full' and 'masked': as in `Policy`; 'random': tokens drawn by ``seed``; 'frozen': its own
    thought, kept for some decisions; 'swapped': its thought for ``other_instruction()``.
    """
    policy.reset()
    if mode == 'masked':
        return Policy(policy.engine, policy.transform, 'masked').infer
    if mode == 'random':
        return random_thought(policy, seed)
    if mode == 'frozen':
        return frozen_thought(policy)
    if mode == 'swapped':
        assert other_instruction is not None
        return swapped_thought(policy, other_instruction)
    return policy.infer


def random_thought(policy: Policy, seed: int = 0, count: int = RANDOM_TOKENS) -> Infer:
    """Act on ``count`` tokens drawn uniformly from those a thought may hold."""
    rng, ids = np.random.default_rng(seed), policy.transform.config.ids
    allowed = ~suppressed_in_thought(policy.transform)
    allowed[[ids.think_end, ids.newline]] = False
    ordinary = np.flatnonzero(allowed[:policy.transform.tokenizer.get_vocab_size()])

    def infer(observation: Observation) -> Decision:
        tokens = [ids.think, *rng.choice(ordinary, count).tolist(), ids.think_end]
        return act_on(policy.engine, policy.transform, observation, tokens)

    return infer


def frozen_thought(policy: Policy, keep: int = KEEP) -> Infer:
    """Think once and act on that thought for ``keep`` decisions."""
    age = 0
    thought: tuple[int, ...] = ()

    def infer(observation: Observation) -> Decision:
        nonlocal age, thought
        age += 1
        if thought and age < keep:
            return act_on(policy.engine, policy.transform, observation, thought)
        decision = policy.infer(observation)
        age, thought = 0, decision.thought_tokens
        return decision

    return infer


def swapped_thought(policy: Policy, other_instruction: Callable[[], str]) -> Infer:
    """Act for the instruction on what the policy thinks, in the same scene, of another one.

    ``other_instruction`` is asked for at every decision. A policy that does as it thinks does the
    other task, one that ignores its thought succeeds as ever. Timings are those of the thought.
    """
    def infer(observation: Observation) -> Decision:
        other = policy.infer(replace(observation, instruction=other_instruction()))
        acted = act_on(policy.engine, policy.transform, observation, other.thought_tokens)
        return replace(other, chunk=acted.chunk, action_tokens=acted.action_tokens,
                       action_log_probs=acted.action_log_probs, certainty={}, confidence=None)

    return infer


def other_instruction(env: Env, seed: int) -> str:
    """Return the instruction of another task of the scene, else of the suite, by the seed."""
    present = env.task.name
    names = [name for name in env.alternatives() if name != present] or [
        name for name in env.tasks if name != present]
    return env.instructions[drawn(names, seed)]


def drawn(names: Sequence[str], seed: int) -> str:
    """Return one of the names, the same for the same seed."""
    return names[int(np.random.default_rng(seed).integers(len(names)))]
