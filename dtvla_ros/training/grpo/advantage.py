"""Groups of rollouts from one start, and how much better than its group each one was."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.batched import Rollout
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.reward import Rewards
from dtvla_ros.training.grpo.rollout import BranchJob, Trajectory

_EQUAL = 1e-6  # rewards that differ by less are the same, whatever ``min_reward_range`` says


def group_advantages(rewards: Tensor, groups: Tensor, algorithm: str = 'grpo',
                     epsilon: float = 1e-6) -> Tensor:
    """Return each sample's advantage over its group [N], float32.

    ``rewards`` [N]; ``groups`` [N] integers, equal for samples of one group. With R a reward,
    m and s the mean and the unbiased standard deviation over its group of n:

    - 'grpo': (R - m) / (s + epsilon), Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300);
    - 'rloo': R minus the mean of the n - 1 others = (R - m) n / (n - 1), Ahmadian et al. 2024
      (arXiv 2402.14740);
    - 'dr_grpo': R - m, Liu et al. 2025 (arXiv 2503.20783).

    Every token of a sample shares its value. Computed in float64: in float32 the mean of equal
    rewards is off by as much as ``epsilon``, and a group without a signal would get one.
    """
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise UserError(f'rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must '
                        'be [N] alike')
    names, index, count = groups.unique(return_inverse=True, return_counts=True)
    if bool((count < 2).any()):
        raise UserError(f'group {names[count < 2][0].item()} has one sample; an advantage needs '
                        'another to compare with')
    n = count.double()  # [G]
    zero = torch.zeros_like(n)
    mean = zero.index_add(0, index, rewards.double()) / n
    centred = rewards.double() - mean[index]  # [N]
    if algorithm == 'grpo':
        deviation = (zero.index_add(0, index, centred ** 2) / (n - 1)).sqrt()
        return (centred / (deviation[index] + epsilon)).float()
    if algorithm == 'rloo':
        return (centred * (n / (n - 1))[index]).float()
    if algorithm == 'dr_grpo':
        return centred.float()
    raise UserError(f'algorithm {algorithm!r} is not known')


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
        self._begun: dict[int, dict[int, Trajectory]] = {}
        self._todo: list[Rollout] = []
        self._kept: list[int] = []
        self._dropped: list[int] = []

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
        undecided = len(self._begun) - len(self._kept) - len(self._dropped)
        if len(self._kept) + undecided >= self._wanted or len(self._begun) >= self._limit:
            return False
        config = self._config
        number = self._first + len(self._begun) * self._world + self._rank
        task, seed = self.start(number)
        self._begun[number] = {}
        job = EpisodeJob(task, seed, self._replan,
                         workspace=(config.workspace_low, config.workspace_high))
        if config.per_step:
            self._todo = [Rollout(BranchJob(job), (config.seed, number, 0))]
        else:
            self._todo = [Rollout(job, (config.seed, number, sample))
                          for sample in range(config.num_generations)]
        return True

    def take(self, trajectory: Trajectory) -> None:
        """Take a finished episode; the last of a group decides whether it is kept."""
        _, number, sample = trajectory.key
        samples = self._begun[number]
        samples[sample] = trajectory
        if len(samples) == self._config.num_generations:
            keep = self._config.per_step or self._differ(list(samples.values()))
            (self._kept if keep else self._dropped).append(number)

    def _differ(self, samples: Sequence[Trajectory]) -> bool:
        rewards = self._rewards.of(samples)
        spread = float(rewards.max() - rewards.min())
        return spread > _EQUAL and spread >= self._config.min_reward_range

    @property
    def tried(self) -> int:
        """Starts begun."""
        return len(self._begun)

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
        return [t for t in self.played if t.key[1] in self._kept]

    def advantages(self) -> list[Tensor]:
        """Return the advantage of every decision of every kept trajectory, [n] each.

        Of decisions whose samples differ by less than ``min_reward_range`` it is NaN.
        """
        kept, size = self.kept, self._config.num_generations
        if self._config.per_step:
            return [values for k in range(0, len(kept), size)
                    for values in self._of_decisions(kept[k:k + size])]
        if not kept:
            return []
        groups = torch.tensor([t.key[1] for t in kept])
        values = group_advantages(self._rewards.of(kept), groups, self._config.algorithm)
        return [value.expand(len(t.decisions)) for value, t in zip(values, kept, strict=True)]

    def _of_decisions(self, samples: Sequence[Trajectory]) -> Tensor:
        """Return the advantages [G, n] of the samples of an episode's decisions."""
        rewards = self._rewards.of_decisions(samples)  # [G, n]
        decision = torch.arange(rewards.shape[1]).expand_as(rewards)
        values = group_advantages(
            rewards.flatten(), decision.flatten(), self._config.algorithm).view_as(rewards)
        spread = rewards.max(0).values - rewards.min(0).values  # [n]
        return values.masked_fill(
            spread < max(self._config.min_reward_range, _EQUAL), torch.nan)
