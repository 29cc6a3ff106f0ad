"""Runs episodes into trajectories: whole ones, or per-step rollouts of every decision.

An episode's end says little about any one of its thousand tokens. Per-step (vine) rollouts carry
out several samples of each decision from the same state, measure the distance each leaves to the
task's goal, and continue from the first. Simulators import this file, and no torch with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from dtvla_ros.actions import osc
from dtvla_ros.errors import UserError
from dtvla_ros.files import written_whole
from dtvla_ros.rollout.env import Env, Restorable
from dtvla_ros.rollout.episode import EpisodeJob, Executed, Infer, execute, observation_from_sim

if TYPE_CHECKING:
    from dtvla_ros.engine.batch import SampledDecision
    from dtvla_ros.rollout.batched import BatchedRollouts, Episode, Images, Rollout, Sampler

# Arrays of a decision, as an episode's file holds them; the first two are tuples of ids.
ARRAYS = ('prompt_tokens', 'thought_tokens', 'thought_log_probs', 'action_tokens', 'chunk',
          'action_log_probs')
# A moving arm overshoots: the distance is measured after so many control steps at rest.
SETTLE_STEPS = 4


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A finished episode: observations, sampled tokens, executed actions and the outcome.

    ``key``: what its sampling was seeded with; in training (seed, number of the start, sample).
    ``frames``: images by camera [H, W, 3] of every decision. ``steps``: control steps taken.
    ``progress`` [m]: of every decision of per-step rollouts.
    """

    job: EpisodeJob
    key: tuple[int, ...]
    decisions: tuple[SampledDecision, ...]
    frames: tuple[Images, ...]
    success: bool
    steps: int
    progress: tuple[float, ...] = ()

    def executed(self, number: int) -> int:
        """Return how many actions of decision ``number`` moved the arm."""
        return min(self.steps - number * self.job.replan_steps, self.job.replan_steps)

    @property
    def tokens(self) -> int:
        """How many thought tokens and executed action values the episode has."""
        return sum(len(d.thought_log_probs) + d.chunk.shape[1] * self.executed(k)
                   for k, d in enumerate(self.decisions))

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, in one step."""
        tensors = {f'{k}.{name}': np.asarray(getattr(d, name))
                   for k, d in enumerate(self.decisions) for name in ARRAYS}
        tensors |= {f'{k}.frames.{camera}': image
                    for k, images in enumerate(self.frames) for camera, image in images.items()}
        metadata = {'job': asdict(self.job), 'key': self.key, 'success': self.success,
                    'steps': self.steps, 'progress': self.progress,
                    'outcome': [d.outcome for d in self.decisions]}
        with written_whole(path) as part:
            save_file(tensors, part, {'trajectory': json.dumps(metadata)})

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        from dtvla_ros.engine.batch import SampledDecision

        with safe_open(path, 'np') as file:
            metadata = json.loads(file.metadata()['trajectory'])
            rows: list[dict[str, Any]] = [{} for _ in metadata['outcome']]
            for name in file.keys():  # noqa: SIM118
                number, _, part = name.partition('.')
                rows[int(number)][part] = file.get_tensor(name)
        for row in rows:
            row |= {name: tuple(row[name].tolist()) for name in ARRAYS[:2]}
        decisions = tuple(SampledDecision(outcome=outcome, **{name: row[name] for name in ARRAYS})
                          for row, outcome in zip(rows, metadata['outcome'], strict=True))
        frames = tuple({part.removeprefix('frames.'): image for part, image in row.items()
                        if part not in ARRAYS} for row in rows)
        return cls(EpisodeJob(**metadata['job']), tuple(metadata['key']), decisions, frames,
                   metadata['success'], metadata['steps'], tuple(metadata['progress']))


@dataclass(frozen=True, slots=True)
class BranchResult:
    """Outcome of an episode of per-step rollouts.

    ``progress`` [m]: of each decision's samples, by how much the goal was nearer once at rest.
    """

    success: bool
    steps: int
    progress: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class BranchJob:
    """An episode of per-step rollouts; ``infer`` returns a decision's samples [G, T, D]."""

    episode: EpisodeJob

    def run(self, env: Env, infer: Infer) -> BranchResult:
        """Run it; raises ``UserError`` if the simulator cannot restore a state."""
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

        Returns the outcome of the first, the distance left there [m], and that of each once at
        rest.
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


def run_rollouts(engine: BatchedRollouts, sampler: Sampler, source: Callable[[], Rollout | None],
                 done: Callable[[Trajectory], None], samples: Sequence[int | None] = (0,)) -> None:
    """Run what ``source`` gives; ``done`` gets the trajectory of each episode.

    Of a ``BranchJob`` one for each of ``samples``, the numbers of a decision's samples, which
    share images. The episode continues from the first; None is the greedy decision, and no
    trajectory.
    """
    def ended(episode: Episode, result: Any) -> None:
        job, key = episode.rollout.job, episode.rollout.key
        branched = isinstance(job, BranchJob)
        for k, sample in enumerate(samples):
            if sample is not None:
                done(Trajectory(
                    job.episode if branched else job, (*key[:-1], sample) if branched else key,
                    tuple(decisions[k] for decisions in episode.decisions),
                    tuple(episode.frames), result.success, result.steps,
                    tuple(one[k] for one in result.progress) if branched else ()))

    engine.run(sampler, source, ended, samples)
