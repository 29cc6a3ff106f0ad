"""Runs the episodes of one iteration: whole ones, or per-step rollouts of every decision.

An episode's end says little about any one of its thousand tokens. Per-step (vine) rollouts carry
out several samples of each decision from the same simulator state, measure the distance that each
leaves to the task's goal, and continue from the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions import osc
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.batched import BatchedRollouts, Episode, Rollout, RolloutTimes, Sampler
from dtvla_ros.rollout.env import Env, Restorable
from dtvla_ros.rollout.episode import (
    EpisodeJob,
    Executed,
    Infer,
    Result,
    execute,
    observation_from_sim,
)
from dtvla_ros.training.grpo.trajectory import Trajectory

__all__ = ['BranchJob', 'BranchResult', 'Rollout', 'RolloutEngine', 'RolloutTimes', 'Sampler']

# A moving arm overshoots: the distance is measured after so many control steps at rest.
SETTLE_STEPS = 4


@dataclass(frozen=True, slots=True)
class BranchResult:
    """Outcome of an episode of per-step rollouts.

    ``progress``: for each decision, by how much each of its samples shortened the distance to
    the goal [m], once the arm had come to rest.
    """

    success: bool
    steps: int
    progress: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class BranchJob:
    """An episode of per-step rollouts; ``infer`` returns a decision's samples [G, T, D]."""

    episode: EpisodeJob

    def run(self, env: Env, infer: Infer) -> BranchResult:
        if not isinstance(env, Restorable):
            raise UserError('rollouts=per-step needs a simulator that can go back and tells what '
                            'is left to do; of the suites tabletop can. Use rollouts=episode')
        job = self.episode
        obs, info = env.reset(seed=job.seed, options={'task': job.task})
        gripper, steps, over, success = osc.GRIPPER_OPEN, 0, False, False
        progress: list[tuple[float, ...]] = []
        limit = job.max_steps or env.max_steps
        before = env.remaining()
        while not over and steps < limit:
            chunks = infer(observation_from_sim(obs, info, env, steps)).chunk  # [G, T, D]
            first, here, left = self._branch(env, env, chunks, gripper)
            obs, gripper, success, over = first.obs, first.gripper, first.success, first.over
            steps += len(first.commands)
            progress.append(tuple(before - distance for distance in left))
            before = here
        return BranchResult(success, steps, tuple(progress))

    def _branch(self, env: Env, state: Restorable, chunks: NDArray[np.float32],
                gripper: float) -> tuple[Executed, float, list[float]]:
        """Carry out all samples from the present state, the first last.

        Returns the outcome of the first, the distance that is left there [m], and the distance
        that is left by each once the arm is at rest.
        """
        restore = state.snapshot()
        left: list[float] = []
        for number in reversed(range(len(chunks))):
            if left:
                restore()
            executed = execute(env, chunks[number][:self.episode.replan_steps], gripper,
                               self.episode.workspace)
            if number == 0:  # its images are rendered before the scene moves on
                executed = replace(executed, obs=dict(executed.obs))
            here, resume = state.remaining(), state.snapshot()
            if not executed.over:
                hold = np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, executed.gripper]])  # [1, 7]
                execute(env, np.repeat(hold, SETTLE_STEPS, 0), executed.gripper)
            left.insert(0, state.remaining())
        resume()
        return executed, here, left


class RolloutEngine(BatchedRollouts):
    """Batched rollouts whose episodes become trajectories."""

    def episodes(self, sampler: Sampler, source: Callable[[], Rollout | None],
                 done: Callable[[Trajectory], None]) -> None:
        """Run ``EpisodeJob``s; ``done`` gets the trajectory of each. Otherwise as ``run``."""
        def ended(episode: Episode, result: Result) -> None:
            job = episode.rollout.job
            assert isinstance(job, EpisodeJob)
            done(Trajectory(job, episode.rollout.key, tuple(d for d, in episode.decisions),
                            tuple(episode.frames), result.success, result.steps))

        self.run(sampler, source, ended)

    def branch(
        self, sampler: Sampler, source: Callable[[], Rollout | None],
        done: Callable[[Trajectory], None], num_generations: int, greedy: bool = False,
    ) -> None:
        """Run ``BranchJob``s; ``done`` gets ``num_generations`` trajectories of each.

        They share the episode's images. It continues from the first sample, or, if ``greedy``,
        from the greedy decision, which is none of them.
        """
        samples = [*([None] if greedy else []), *range(num_generations)]

        def ended(episode: Episode, result: BranchResult) -> None:
            job = episode.rollout.job
            assert isinstance(job, BranchJob)
            for k, sample in enumerate(samples):
                if sample is not None:
                    done(Trajectory(
                        job.episode, (*episode.rollout.key[:-1], sample),
                        tuple(decisions[k] for decisions in episode.decisions),
                        tuple(episode.frames), result.success, result.steps,
                        tuple(progress[k] for progress in result.progress)))

        self.run(sampler, source, ended, samples)
