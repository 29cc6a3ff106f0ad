"""Success of a policy during training, on start states no demonstration and no report uses."""

from __future__ import annotations

import dtvla_sim
from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.policy.manifest import ActionContract
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.rollout.batched import BatchedRollouts, success_rate
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.rollout.workers import Workers, open_envs

# Held-out start states for choosing a checkpoint lie far above those of the final tables.
SELECTION_SEEDS = 500_000
SIMULATORS = 2


class Rollouts:
    """Runs ``episodes`` per task in simulators that live as long as the training."""

    def __init__(self, transform: PolicyTransform, suite: str, episodes: int):
        self._transform = transform
        self._suite = suite
        self._episodes = episodes
        self._envs: Workers | None = None

    def success(self, model: HybridDecoder) -> float:
        """Return the share of successful episodes over all tasks."""
        if self._envs is None:
            self._envs = open_envs(SceneSetup(
                self._suite, image_size=self._transform.config.vision.image_size), SIMULATORS)
        first = dtvla_sim.EVAL_SEED_START + SELECTION_SEEDS
        jobs = [EpisodeJob(task, first + k, ActionContract().replan_steps)
                for task in self._envs.info.tasks for k in range(self._episodes)]
        sampler = BatchSampler(model, self._transform)
        found = success_rate(BatchedRollouts(self._envs), sampler, jobs)
        return sum(found) / len(found)
