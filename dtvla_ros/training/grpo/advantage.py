"""Rewards, groups of rollouts from one start, and how much better than its group each one was."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.rollout.batched import Rollout
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.thought import Thought
from dtvla_ros.training.grpo.config import Algorithm, GrpoConfig
from dtvla_ros.training.grpo.rollout import BranchJob, Trajectory

_EQUAL = 1e-6  # rewards that differ by less are the same, whatever ``min_reward_range`` says


def well_formed(text: str, outcome: str, kind: str) -> bool:
    """Return whether a thought ended by itself and, for 'grammar', reads as the experts' do."""
    return outcome == 'complete' and (kind == 'closed' or Thought.parse(text) is not None)


class Rewards:
    """The reward function of a run; its default weights are those of the released recipe."""

    def __init__(self, config: GrpoConfig, transform: PolicyTransform):
        self._config, self._transform = config, transform

    def format(self, trajectory: Trajectory) -> float:
        """Return the share of decisions whose thought is well formed."""
        formed = self._formed(trajectory)
        return sum(formed) / len(formed)

    def _formed(self, trajectory: Trajectory) -> list[bool]:
        return [well_formed(self._transform.decode_thought(d.thought_tokens), d.outcome,
                            self._config.format_reward) for d in trajectory.decisions]

    def of(self, trajectories: Sequence[Trajectory]) -> Tensor:
        """Return the rewards of N episodes [N]: success, and share of well-formed thoughts."""
        success = torch.tensor([float(t.success) for t in trajectories])
        formed = torch.tensor([self.format(t) for t in trajectories])
        return self._config.success_weight * success + self._config.format_weight * formed

    def of_group(self, samples: Sequence[Trajectory]) -> Tensor:
        """Return what is compared of G samples [G, n]: n decisions per step, else one episode.

        A decision's reward is its progress [m], and whether its thought is well formed.
        """
        if not self._config.per_step:
            return self.of(samples)[:, None]
        formed = torch.tensor([self._formed(t) for t in samples]).float()
        return (self._config.progress_weight * torch.tensor([t.progress for t in samples])
                + self._config.format_weight * formed)


def group_advantages(rewards: Tensor, algorithm: Algorithm = 'grpo',
                     epsilon: float = 1e-6) -> Tensor:
    """Return the advantage of each sample over its group [G, ...], float32.

    ``rewards`` [G, ...]: G samples of every group. With R a reward, m and s the mean and the
    unbiased standard deviation over its group:

    - 'grpo': (R - m) / (s + epsilon), Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300);
    - 'rloo': R minus the mean of the G - 1 others = (R - m) G / (G - 1), Ahmadian et al. 2024
      (arXiv 2402.14740);
    - 'dr_grpo': R - m, Liu et al. 2025 (arXiv 2503.20783).

    Every token of a sample shares its value. Computed in float64: in float32 the mean of equal
    rewards is off by as much as ``epsilon``, and a group without a signal would get one.
    """
    rewards = rewards.double()
    centred = rewards - rewards.mean(0)
    if algorithm == 'grpo':
        centred = centred / (rewards.std(0) + epsilon)
    elif algorithm == 'rloo':
        centred = centred * (len(rewards) / (len(rewards) - 1))
    return centred.float()


class Groups:
    """One iteration's rollouts of one process, in groups that are compared.

    Gives the episodes to play, takes them back, and replaces groups without a signal (the dynamic
    sampling of DAPO, arXiv 2503.14476). ``number`` of a start counts over the whole run; its task
    and seed follow from it. A new start is only begun when too few groups could be kept even if
    all unfinished ones were: so the starts of an iteration are the same in whatever order their
    episodes end. ``finished`` returns an episode that was played before, by number and sample.
    """

    def __init__(self, config: GrpoConfig, tasks: Sequence[str], replan_steps: int,
                 rewards: Rewards, first: int, rank: int = 0, world: int = 1,
                 finished: Callable[[int, int], Trajectory | None] = lambda *_: None):
        if config.num_starts % world:
            raise UserError(f'train config: num_starts {config.num_starts} must be a multiple of '
                            f'the {world} processes')
        self._config, self._tasks, self._replan = config, tasks, replan_steps
        self._rewards, self._finished = rewards, finished
        self._wanted = config.num_starts // world
        self._limit = max(self._wanted, round(config.max_resample_factor * self._wanted))
        self._first, self._rank, self._world = first, rank, world
        self.tried = 0  # starts begun
        self._begun: dict[int, dict[int, Trajectory]] = {}
        self._todo: list[Rollout] = []
        self._keep: dict[int, bool] = {}  # of the starts that are decided

    def start(self, number: int) -> tuple[str, int]:
        """Return task and seed of a start."""
        first = self._config.first_seed
        return (self._tasks[number % len(self._tasks)],
                first + number % (dtvla_sim.EVAL_SEED_START - first))

    def next(self) -> Rollout | None:
        """Return an episode to play, or None if there is none at present."""
        while self._todo or self._begin():
            rollout = self._todo.pop(0)
            _, number, sample = rollout.key
            samples = range(self._config.num_generations) if self._config.per_step else (sample,)
            before = [self._finished(number, k) for k in samples]
            if None in before:
                return rollout
            for trajectory in filter(None, before):
                self.take(trajectory)
        return None

    def _begin(self) -> bool:
        """Begin another start; False if enough groups are kept or may be."""
        config = self._config
        dropped = list(self._keep.values()).count(False)
        if self.tried - dropped >= self._wanted or self.tried >= self._limit:
            return False
        number = self._first + self.tried * self._world + self._rank
        self.tried += 1
        self._begun[number] = {}
        job = EpisodeJob(*self.start(number), self._replan,
                         workspace=(config.workspace_low, config.workspace_high))
        self._todo = [Rollout(BranchJob(job) if config.per_step else job,
                              (config.seed, number, sample))
                      for sample in range(1 if config.per_step else config.num_generations)]
        return True

    def take(self, trajectory: Trajectory) -> None:
        """Take a finished episode; the last of a group decides whether it is kept."""
        _, number, sample = trajectory.key
        samples, config = self._begun[number], self._config
        samples[sample] = trajectory
        if len(samples) == config.num_generations:
            self._keep[number] = config.per_step or bool(
                self._differ(self._rewards.of_group([*samples.values()])))

    @property
    def played(self) -> list[Trajectory]:
        """All samples, in the order of their starts."""
        return [t for number in sorted(self._begun)
                for _, t in sorted(self._begun[number].items())]

    @property
    def episodes(self) -> list[Trajectory]:
        """Those of ``played`` that were played to their end."""
        return [t for t in self.played if t.key[2] == 0] if self._config.per_step else self.played

    @property
    def kept(self) -> list[Trajectory]:
        """The samples of the kept groups, in the order of their starts."""
        return [t for t in self.played if self._keep.get(t.key[1])]

    def advantages(self) -> list[Tensor]:
        """Return the advantage of every decision of every kept trajectory, [n] each.

        Of decisions whose samples differ by less than ``min_reward_range`` it is NaN.
        """
        kept, size = self.kept, self._config.num_generations
        found: list[Tensor] = []
        for first in range(0, len(kept), size):
            samples = kept[first:first + size]
            rewards = self._rewards.of_group(samples)  # [G, n]
            values = group_advantages(rewards, self._config.algorithm)
            values = values.masked_fill(~self._differ(rewards), torch.nan)
            found += [row.expand(len(t.decisions)) for row, t in zip(values, samples, strict=True)]
        return found

    def _differ(self, rewards: Tensor) -> Tensor:
        """Return whether the G samples of a group differ enough, [G, n] -> [n]."""
        spread = rewards.max(0).values - rewards.min(0).values
        return (spread > _EQUAL) & (spread >= self._config.min_reward_range)
