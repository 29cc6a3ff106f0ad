"""What a policy does with the thought it would have had if it had been asked for another task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dtvla_ros.engine.engine import Decision, Engine
from dtvla_ros.engine.policy import Policy, act_on
from dtvla_ros.policy.observation import Observation
from dtvla_ros.policy.transform import PolicyTransform


class OtherTask:
    """Acts for its instruction on what it thinks, in the same scene, of another one.

    ``sentence`` says the other instruction; it is asked for at every decision. All the thought
    says of the scene is true, only what it wants is not what was asked for: a policy that does as
    it thinks does the other task, one that ignores its thought succeeds as ever.
    """

    def __init__(self, engine: Engine, transform: PolicyTransform, max_thought_tokens: int,
                 sentence: Callable[[], str]):
        self._engine, self._transform, self._sentence = engine, transform, sentence
        self._thinker = Policy(engine, transform, 'full', max_thought_tokens)

    def infer(self, observation: Observation) -> Decision:
        """Return the decision; its timings are those of the other one."""
        other = self._thinker.infer(replace(observation, instruction=self._sentence()))
        tokens, chunk = act_on(self._engine, self._transform, observation, other.thought_tokens)
        return replace(other, chunk=chunk, action_tokens=tokens)


def other_sentence(env: Any, seed: int) -> str:
    """Return the instruction of another task, drawn by the episode's seed.

    One that could be asked for in the present scene; where there is none, any of the suite.
    """
    here = env.task.name
    names = [name for name in env.alternatives() if name != here] or [
        name for name in env.tasks if name != here]
    return sentence_of(env, drawn(names, seed))


def drawn(names: Sequence[str], seed: int) -> str:
    """Return one of the names, the same for the same seed."""
    return names[int(np.random.default_rng(seed).integers(len(names)))]


def sentence_of(env: Any, task: str) -> str:
    """Return a task's instruction; the scene stays as it is."""
    with env.asked(task):
        return str(env.task.instruction)
