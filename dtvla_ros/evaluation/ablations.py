"""Thought ablations: one policy acting on an empty, random, kept or another task's thought."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dtvla_ros.engine.engine import Decision
from dtvla_ros.engine.policy import Policy, act_on, suppressed_in_thought
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import Observation
from dtvla_ros.rollout.env import Env

MODES = ('full', 'masked', 'random', 'swapped', 'frozen')
RANDOM_TOKENS = 16  # of a random thought
KEEP = 4  # decisions a frozen thought is kept for


def ablated(policy: Policy, mode: str, seed: int = 0,
            other_instruction: Callable[[], str] | None = None,
            ) -> Callable[[Observation], Decision]:
    """Return what decides for one episode, with a policy's thought or with another one.

    'full' and 'masked': as in `Policy`; 'random': tokens drawn by ``seed``; 'frozen': its own
    thought, kept for some decisions; 'swapped': its thought for ``other_instruction()``, asked
    for at every decision.
    """
    if mode == 'full':
        policy.reset()
        return policy.infer
    if mode == 'masked':
        return Policy(policy.engine, policy.transform, 'masked').infer
    if mode == 'random':
        return RandomThought(policy, seed).infer
    if mode == 'frozen':
        return FrozenThought(policy).infer
    if mode == 'swapped':
        if other_instruction is None:
            raise UserError('mode swapped needs to know the other tasks; there are none here')
        return SwappedThought(policy, other_instruction).infer
    raise UserError(f'thought mode {mode!r} is none of {", ".join(MODES)}')


class RandomThought:
    """Acts on ``count`` tokens drawn uniformly from those a thought may hold."""

    def __init__(self, policy: Policy, seed: int = 0, count: int = RANDOM_TOKENS):
        self._policy, self._count = policy, count
        self._rng = np.random.default_rng(seed)
        ids, tokenizer = policy.transform.config.ids, policy.transform.tokenizer
        ordinary = ~suppressed_in_thought(policy.transform)
        ordinary[[ids.think_end, ids.newline]] = False
        ordinary[tokenizer.get_vocab_size():] = False
        self._ordinary = np.flatnonzero(ordinary)

    def infer(self, observation: Observation) -> Decision:
        """Return the decision for one observation."""
        ids = self._policy.transform.config.ids
        tokens = self._rng.choice(self._ordinary, self._count).tolist()
        return act_on(self._policy.engine, self._policy.transform, observation,
                      [ids.think, *tokens, ids.think_end])


class FrozenThought:
    """Thinks once and acts on that thought for ``keep`` decisions."""

    def __init__(self, policy: Policy, keep: int = KEEP):
        policy.reset()
        self._policy, self._keep = policy, keep
        self._age = 0
        self._thought: tuple[int, ...] = ()

    def infer(self, observation: Observation) -> Decision:
        """Return the decision for one observation."""
        if not self._thought or self._age >= self._keep:
            decision = self._policy.infer(observation)
            self._thought, self._age = decision.thought_tokens, 0
        else:
            decision = act_on(
                self._policy.engine, self._policy.transform, observation, self._thought)
        self._age += 1
        return decision


class SwappedThought:
    """Acts for its instruction on what it thinks, in the same scene, of another one.

    ``other_instruction`` is asked for at every decision. All the thought says of the scene is
    true, only what it wants is not what was asked for: a policy that does as it thinks does the
    other task, one that ignores its thought succeeds as ever.
    """

    def __init__(self, policy: Policy, other_instruction: Callable[[], str]):
        policy.reset()
        self._policy, self._other_instruction = policy, other_instruction

    def infer(self, observation: Observation) -> Decision:
        """Return the decision; its timings are those of the other one."""
        other = self._policy.infer(
            replace(observation, instruction=self._other_instruction()))
        acted = act_on(self._policy.engine, self._policy.transform, observation,
                       other.thought_tokens)
        return replace(other, chunk=acted.chunk, action_tokens=acted.action_tokens)


def other_instruction(env: Env, seed: int) -> str:
    """Return the instruction of another task, drawn by the episode's seed.

    One that could be asked for in the present scene; where there is none, any of the suite.
    """
    present = env.task.name
    names = [name for name in env.alternatives() if name != present] or [
        name for name in env.tasks if name != present]
    return instruction_of(env, drawn(names, seed))


def drawn(names: Sequence[str], seed: int) -> str:
    """Return one of the names, the same for the same seed."""
    return names[int(np.random.default_rng(seed).integers(len(names)))]


def instruction_of(env: Env, task: str) -> str:
    """Return a task's instruction; the scene stays as it is."""
    with env.asked(task):
        return env.task.instruction
