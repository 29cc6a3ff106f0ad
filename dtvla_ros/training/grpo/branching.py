"""Every decision drawn several times from the same moment, to see which went further.

An episode's end says little about any one of its thousand tokens. A simulator can go back: here
it tries all draws of a decision from the same state, measures how much of the task each leaves,
and the episode goes on from the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions import osc
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env_worker import EpisodeJob
from dtvla_ros.rollout.episode import Decide, Moved, execute, observation_from_sim

# An arm in motion runs on: only at rest is it plain whether it went past its aim.
SETTLE_STEPS = 4


@dataclass(frozen=True, slots=True)
class Branched:
    """What came of an episode and of the draws along it.

    ``progress``: of every decision, how much shorter the way became by each of its draws [m], once
    the arm had come to rest.
    """

    success: bool
    steps: int
    progress: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class BranchJob:
    """One episode to branch; ``decide`` returns all draws of a decision as chunks [G, T, D]."""

    episode: EpisodeJob

    def play(self, env: Any, decide: Decide) -> Branched:
        if not hasattr(env, 'snapshot'):
            raise UserError('rollouts=per-step needs a simulator that can go back and tells what '
                            'is left to do; of the suites tabletop can. Use rollouts=episode')
        job = self.episode
        obs, info = env.reset(seed=job.seed, options={'task': job.task})
        gripper, steps, over, success = osc.GRIPPER_OPEN, 0, False, False
        progress: list[tuple[float, ...]] = []
        limit = job.max_steps or env.max_steps
        before = env.remaining()
        while not over and steps < limit:
            chunks = decide(observation_from_sim(obs, info, env, steps)).chunk  # [G, T, D]
            moved, here, left = self._try(env, chunks, gripper)
            obs, gripper, success, over = moved.obs, moved.gripper, moved.success, moved.over
            steps += len(moved.commands)
            progress.append(tuple(before - way for way in left))
            before = here
        return Branched(success, steps, tuple(progress))

    def _try(self, env: Any, chunks: NDArray[np.float32],
             gripper: float) -> tuple[Moved, float, list[float]]:
        """Carry out all draws from the present state, the first last.

        Returns what the first led to, the way that is left there [m], and the way that is left
        by each once the arm is at rest.
        """
        restore = env.snapshot()
        left: list[float] = []
        for number in reversed(range(len(chunks))):
            if left:
                restore()
            moved = execute(env, chunks[number][:self.episode.replan_steps], gripper,
                            self.episode.workspace)
            if number == 0:  # what is seen is drawn before the scene moves on
                moved = replace(moved, obs=dict(moved.obs))
            here, resume = env.remaining(), env.snapshot()
            if not moved.over:
                execute(env, np.repeat(_hold(moved.gripper), SETTLE_STEPS, 0), moved.gripper)
            left.insert(0, env.remaining())
        resume()
        return moved, here, left


def _hold(gripper: float) -> NDArray[np.float64]:
    """Return the action [1, 7] that stays where the arm is."""
    return np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper]])
