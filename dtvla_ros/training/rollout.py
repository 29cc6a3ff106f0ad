"""Success of a policy in training, on start states no demonstration and no report uses."""

from __future__ import annotations

from typing import Any

from dtvla_ros.engine.policy import Policy
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.policy.manifest import ActionContract
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.rollout.episode import run_episode

# Held-out start states for choosing a checkpoint lie far above those of the final tables.
SELECTION_SEEDS = 500_000


class Rollouts:
    """Runs ``episodes`` per task in one simulator that lives as long as the training."""

    def __init__(self, transform: PolicyTransform, suite: str, episodes: int):
        self._transform = transform
        self._suite = suite
        self._episodes = episodes
        self._env: Any = None

    def success(self, model: HybridDecoder) -> float:
        """Return the share of successful episodes over all tasks."""
        import dtvla_sim

        if self._env is None:
            self._env = dtvla_sim.make(
                self._suite, image_size=self._transform.config.vision.image_size)
        env = self._env
        policy = Policy(TorchEngine(model), self._transform)
        first = dtvla_sim.EVAL_SEED_START + SELECTION_SEEDS
        results = []
        for task in env.tasks:
            for k in range(self._episodes):
                results.append(run_episode(
                    env, policy.infer, task, first + k, ActionContract().replan_steps).success)
        return sum(results) / len(results)
