"""What a policy does with the thought it would have had if it had been asked for another task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dtvla_ros.engine.engine import Decision, Engine
from dtvla_ros.engine.think_act import ThinkAct
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
        self._thinker = ThinkAct(engine, transform, 'full', max_thought_tokens)

    def decide(self, observation: Observation) -> Decision:
        """Return the decision; its timings are those of the other one."""
        other = self._thinker.decide(replace(observation, instruction=self._sentence()))
        transform, ids = self._transform, self._transform.config.ids
        features = self._engine.see(transform.pixels(observation.images))
        _, cache = self._engine.prefill(
            transform.prompt_ids(observation.instruction, observation), features)
        scores = self._engine.act(cache, [*other.thought_tokens, ids.action])
        tokens = scores.argmax(-1).astype(np.int64) + ids.bins_first
        return replace(other, chunk=transform.decode_actions(tokens), action_tokens=tokens)


def other_sentence(env: Any, seed: int) -> str:
    """Return the instruction of another task, drawn by the episode's seed.

    One that could be asked for in the present scene; where there is none, any of the suite.
    """
    here = env.task.name
    names = [name for name in env.alternatives() if name != here] or [
        name for name in env.tasks if name != here]
    with env.asked(names[int(np.random.default_rng(seed).integers(len(names)))]):
        sentence: str = env.task.instruction
    return sentence
