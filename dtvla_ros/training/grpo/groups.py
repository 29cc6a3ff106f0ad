"""Which starts are played, what an episode is worth, and which groups teach something."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.rollout.env_worker import EpisodeJob
from dtvla_ros.training.grpo.advantage import group_advantages, scores
from dtvla_ros.training.grpo.branching import BranchJob
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.rollout import Rollout
from dtvla_ros.training.grpo.trajectory import Trajectory

# The words of ``dtvla_sim.experts.grammar.Thought.text``, in their order; names may be several.
_NAME = r'[a-z0-9]+( [a-z0-9]+){0,5}'
_GRAMMAR = re.compile(
    rf'holding {_NAME} done {_NAME} now [a-z]+ {_NAME} at x\d+ y[+-]\d+ next [a-z]+ '
    r'move (forward|back|still) (left|right|still) (up|down|still)')


def training_seed(seed: int) -> int:
    """Return ``seed``, refusing what evaluations begin from."""
    if not 0 <= seed < dtvla_sim.EVAL_SEED_START:
        raise UserError(f'seed {seed}: training may begin from 0 to '
                        f'{dtvla_sim.EVAL_SEED_START - 1}; the rest is kept for evaluation')
    return seed


def well_formed(text: str, outcome: str, form: str) -> bool:
    """Return whether a thought ended by itself and, for 'grammar', reads as the experts' do."""
    return outcome == 'complete' and (form == 'closed' or _GRAMMAR.fullmatch(text) is not None)


class Rewards:
    """Success and form of an episode, and the reward made of them."""

    def __init__(self, config: GrpoConfig, transform: PolicyTransform):
        self._config, self._transform = config, transform

    def form(self, trajectory: Trajectory) -> float:
        """Return the share of decisions whose thought is well formed."""
        good = self._forms(trajectory)
        return sum(good) / len(good)

    def _forms(self, trajectory: Trajectory) -> list[bool]:
        return [well_formed(self._transform.decode_thought(d.thought_tokens), d.outcome,
                            self._config.form) for d in trajectory.decisions]

    def of_decisions(self, draws: Sequence[Trajectory]) -> torch.Tensor:
        """Return the rewards [G, n] of G draws of each of an episode's n decisions."""
        return scores(torch.tensor([t.gains for t in draws]),
                      torch.tensor([self._forms(t) for t in draws]).float(),
                      self._config.progress_weight, self._config.form_weight)

    def of(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """Return the rewards [N]."""
        return scores(torch.tensor([float(t.success) for t in trajectories]),
                      torch.tensor([self.form(t) for t in trajectories]),
                      self._config.success_weight, self._config.form_weight)


class Groups:
    """One iteration's starts of one process: gives episodes, takes them back, keeps groups.

    ``number`` of a start counts over the whole run; its task and seed follow from it. A new
    start is only begun when too few groups could be kept even if all unfinished ones were: so
    the starts of an iteration are the same in whatever order their episodes end.
    ``finished`` returns an episode that was played before, by group and member.
    """

    def __init__(self, config: GrpoConfig, tasks: Sequence[str], replan_steps: int,
                 rewards: Rewards, first: int, rank: int = 0, world: int = 1,
                 finished: Callable[[int, int], Trajectory | None] = lambda *_: None):
        if config.groups % world:
            raise UserError(f'train config: groups {config.groups} must be a multiple of the '
                            f'{world} processes')
        self._config, self._tasks, self._replan = config, tasks, replan_steps
        self._rewards, self._finished = rewards, finished
        self._wanted = config.groups // world
        self._limit = max(self._wanted, round(config.tries * self._wanted))
        self._first, self._rank, self._world = first, rank, world
        self._begun: dict[int, dict[int, Trajectory]] = {}
        self._todo: list[Rollout] = []
        self._kept: list[int] = []
        self._dropped: list[int] = []

    def start(self, number: int) -> tuple[str, int]:
        """Return task and seed of a start."""
        span = dtvla_sim.EVAL_SEED_START - training_seed(self._config.first_seed)
        seed = self._config.first_seed + number % span
        return self._tasks[number % len(self._tasks)], training_seed(seed)

    def next(self) -> Rollout | None:
        """Return an episode to play, or None if there is none at present."""
        while True:
            if not self._todo and not self._begin():
                return None
            rollout = self._todo.pop(0)
            _, number, member = rollout.key
            before = [self._finished(number, draw) for draw in (
                range(self._config.group) if self._config.branching else (member,))]
            if None in before:
                return rollout
            for trajectory in filter(None, before):
                self.take(trajectory)

    def _begin(self) -> bool:
        undecided = len(self._begun) - len(self._kept) - len(self._dropped)
        if (len(self._kept) + undecided >= self._wanted or len(self._begun) >= self._limit):
            return False
        number = self._first + len(self._begun) * self._world + self._rank
        task, seed = self.start(number)
        self._begun[number] = {}
        config = self._config
        job = EpisodeJob(task, seed, self._replan,
                         workspace=(config.workspace_low, config.workspace_high))
        if self._config.branching:
            self._todo = [Rollout(BranchJob(job), (config.seed, number, 0))]
        else:
            self._todo = [Rollout(job, (config.seed, number, member))
                          for member in range(config.group)]
        return True

    def take(self, trajectory: Trajectory) -> None:
        """Take a finished episode; the last of a group decides whether it is kept."""
        _, number, member = trajectory.key
        members = self._begun[number]
        members[member] = trajectory
        if len(members) == self._config.group:
            teaches = self._config.branching or self._differ(list(members.values()))
            (self._kept if teaches else self._dropped).append(number)

    def _differ(self, members: Sequence[Trajectory]) -> bool:
        rewards = self._rewards.of(members)
        spread = float(rewards.max() - rewards.min())
        return spread > 1e-6 and spread >= self._config.least_spread

    @property
    def tried(self) -> int:
        """Starts begun."""
        return len(self._begun)

    @property
    def played(self) -> list[Trajectory]:
        """All episodes, in the order of their starts."""
        return [t for number in sorted(self._begun)
                for _, t in sorted(self._begun[number].items())]

    @property
    def episodes(self) -> list[Trajectory]:
        """Those of ``played`` that were played to their end."""
        return [t for t in self.played if t.key[2] == 0] if self._config.branching else self.played

    @property
    def kept(self) -> list[Trajectory]:
        """The episodes of the groups that teach, in the order of their starts."""
        return [t for t in self.played if t.key[1] in self._kept]

    def advantages(self) -> list[torch.Tensor]:
        """Return the advantage of every decision of every kept trajectory, [n] each.

        Of decisions whose draws differ by less than ``least_spread`` it is not a number.
        """
        kept = self.kept
        if self._config.branching:
            size = self._config.group
            return [values for k in range(0, len(kept), size)
                    for values in self._among_draws(kept[k:k + size])]
        if not kept:
            return []
        groups = torch.tensor([t.key[1] for t in kept])
        values = group_advantages(self._rewards.of(kept), groups, self._config.algorithm)
        return [value.expand(len(t.decisions)) for value, t in zip(values, kept, strict=True)]

    def _among_draws(self, draws: Sequence[Trajectory]) -> torch.Tensor:
        """Return the advantages [G, n] of the draws of an episode's decisions."""
        rewards = self._rewards.of_decisions(draws)  # [G, n]
        where = torch.arange(rewards.shape[1]).expand_as(rewards)
        values = group_advantages(
            rewards.flatten(), where.flatten(), self._config.algorithm).view_as(rewards)
        spread = rewards.max(0).values - rewards.min(0).values  # [n]
        return values.masked_fill(spread < max(self._config.least_spread, 1e-6), torch.nan)


def journal_path(run: Path, number: int, member: int) -> Path:
    """Return where a finished episode of the present iteration is kept."""
    return run / 'rollouts' / f'{number:07d}-{member:03d}.safetensors'
