"""The recipe of reinforcement learning, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtvla_ros.actions import osc
from dtvla_ros.errors import UserError
from dtvla_ros.training.config import checked, read_recipe
from dtvla_ros.training.grpo.advantage import BASELINES
from dtvla_ros.training.grpo.loss import AGGREGATIONS

FORMS = ('closed', 'grammar')
COMPARED = ('episodes', 'decisions')
FOLLOWED = ('drawn', 'greedy')


@dataclass(frozen=True, slots=True)
class GrpoConfig:
    """Recipe of GRPO. ``config/train/grpo.yaml`` says why each value.

    ``compare`` 'episodes': of every start ``group`` episodes are played; ``groups`` starts make an
    iteration, over all processes. A group whose rewards spread by less than ``least_spread`` is
    replaced by a new start, at most until ``tries`` times ``groups`` were played. 'decisions': of
    every start one episode is played, and of each of its decisions ``group`` draws are tried from
    the same state (see ``branching``); what they gain by, ``progress_weight`` per metre, takes the
    place of success; a decision whose draws differ by less than ``least_spread`` is left out. The
    episode goes on from the first draw, or, with ``follow`` 'greedy', from the greedy decision.
    An episode whose hand leaves the workspace [m, base frame] has failed. ``first_seed``: where
    the starts begin to count. ``form``: when a thought is well formed (see ``well_formed``).
    ``learn_share``: of the decisions that were played, drawn at random, that are learnt from (an
    episode's decisions share its advantage: fewer of them cost less and mean the same).
    ``minibatches``: optimizer steps per epoch; ``micro_batch``: decisions in memory at once.
    ``kl_weight``: of the distance to the policy the run began with.
    ``environments``: simulators per process, in ``lanes`` that take turns; ``step_timeout`` [s].
    ``evaluate_every``: iterations between evaluations of ``evaluate_episodes`` a task.
    """

    algorithm: str = 'grpo'
    groups: int = 8
    group: int = 8
    least_spread: float = 0.1
    tries: float = 3.0
    first_seed: int = 500_000
    success_weight: float = 1.0
    form_weight: float = 0.4
    form: str = 'grammar'
    compare: str = 'episodes'
    follow: str = 'drawn'
    progress_weight: float = 10.0
    workspace_low: tuple[float, float, float] = osc.WORKSPACE_LOW
    workspace_high: tuple[float, float, float] = osc.WORKSPACE_HIGH
    thought_temperature: float = 1.0
    action_temperature: float = 1.0
    learning_rate: float = 5e-5
    warmup_steps: int = 4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: float = 1.0
    learn_share: float = 1.0
    epochs: int = 1
    minibatches: int = 4
    micro_batch: int = 32
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0
    aggregation: str = 'token-mean'
    kl_weight: float = 0.01
    environments: int = 8
    lanes: int = 1
    step_timeout: float = 60.0
    evaluate_every: int = 5
    evaluate_episodes: int = 4
    precision: str = 'no'
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (('algorithm', BASELINES), ('aggregation', AGGREGATIONS),
                            ('form', FORMS), ('compare', COMPARED), ('follow', FOLLOWED),
                            ('precision', ('no', 'bf16'))):
            if getattr(self, name) not in known:
                raise UserError(f'train config: {name} {getattr(self, name)!r} is none of '
                                f'{", ".join(known)}')
        for name in ('groups', 'learning_rate', 'gradient_clip', 'epochs', 'minibatches',
                     'micro_batch', 'environments', 'lanes', 'step_timeout', 'evaluate_every',
                     'thought_temperature', 'action_temperature'):
            if not getattr(self, name) > 0:
                raise UserError(f'train config: {name} must be positive, '
                                f'got {getattr(self, name)}')
        for name in ('kl_weight', 'weight_decay', 'least_spread', 'success_weight', 'form_weight',
                     'progress_weight', 'clip_low', 'clip_high', 'evaluate_episodes',
                     'first_seed', 'seed'):
            if getattr(self, name) < 0:
                raise UserError(f'train config: {name} must not be negative, '
                                f'got {getattr(self, name)}')
        for name in ('workspace_low', 'workspace_high'):
            if len(getattr(self, name)) != 3:
                raise UserError(f'train config: {name} must be three numbers [m], '
                                f'got {getattr(self, name)}')
        osc.require_box(self.workspace_low, self.workspace_high)
        if self.group < 2:
            raise UserError(f'train config: group must be at least 2, got {self.group}; an '
                            'advantage needs another episode to compare with')
        if not 0.0 < self.learn_share <= 1.0:
            raise UserError(f'train config: learn_share must lie in (0, 1], got '
                            f'{self.learn_share}')
        for name in ('tries', 'dual_clip'):
            if not getattr(self, name) >= 1.0:
                raise UserError(f'train config: {name} must be at least 1, '
                                f'got {getattr(self, name)}')

    @property
    def branching(self) -> bool:
        """Whether the draws of one decision are compared."""
        return self.compare == 'decisions'

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GrpoConfig:
        """Build from a mapping; an unknown key or a wrong type is named in the error."""
        return cls(**checked(cls, data))

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> GrpoConfig:
        """Read a YAML file; ``changes`` as of ``read_recipe``."""
        return read_recipe(path, cls.from_dict, 'config/train/grpo.yaml', changes)
