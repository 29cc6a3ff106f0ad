"""Configuration of GRPO, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dtvla_sim
from dtvla_ros.actions import osc
from dtvla_ros.errors import UserError
from dtvla_ros.training.config import checked, read_config

CHOICES: Mapping[str, tuple[str, ...]] = {
    'algorithm': ('grpo', 'rloo', 'dr_grpo'),
    'loss_agg_mode': ('token-mean', 'seq-mean-token-sum', 'seq-mean-token-mean'),
    'format_reward': ('closed', 'grammar'),
    'rollouts': ('episode', 'per-step'),
    'continue_from': ('sample', 'greedy'),
    'precision': ('no', 'bf16'),
}
# Names of earlier versions: files and ``--set`` may still use them.
ALIASES: Mapping[str, str] = {
    'groups': 'num_starts', 'group': 'num_generations', 'least_spread': 'min_reward_range',
    'tries': 'max_resample_factor', 'form': 'format_reward', 'form_weight': 'format_weight',
    'compare': 'rollouts', 'follow': 'continue_from', 'learn_share': 'sample_fraction',
    'epochs': 'num_iterations', 'minibatches': 'num_minibatches', 'clip_low': 'epsilon',
    'clip_high': 'epsilon_high', 'dual_clip': 'clip_ratio_c', 'aggregation': 'loss_agg_mode',
    'kl_weight': 'beta', 'environments': 'num_envs', 'lanes': 'num_env_groups',
}
VALUE_ALIASES: Mapping[str, Mapping[Any, str]] = {
    'rollouts': {'episodes': 'episode', 'decisions': 'per-step'},
    'continue_from': {'drawn': 'sample'},
}
_POSITIVE = ('num_starts', 'learning_rate', 'gradient_clip', 'num_iterations', 'num_minibatches',
             'micro_batch', 'num_envs', 'num_env_groups', 'step_timeout', 'evaluate_every',
             'thought_temperature', 'action_temperature')
_NOT_NEGATIVE = ('beta', 'weight_decay', 'min_reward_range', 'success_weight', 'format_weight',
                 'progress_weight', 'epsilon', 'epsilon_high', 'evaluate_episodes', 'first_seed',
                 'seed')


@dataclass(frozen=True, slots=True)
class GrpoConfig:
    """Options of GRPO, named as in TRL and verl. ``config/train/grpo.yaml`` says why each value.

    ``rollouts`` 'episode': ``num_generations`` episodes of each start are one group, and
    ``num_starts`` starts make an iteration, over all processes. A group whose rewards differ by
    less than ``min_reward_range`` (largest minus smallest) is replaced by a new start, until
    ``max_resample_factor`` times ``num_starts`` were played. 'per-step': one episode of each
    start is played, and ``num_generations`` samples of each of its decisions, tried from the same
    state (see ``branching``), are one group; progress, ``progress_weight`` per metre, takes the
    place of success, and a decision below ``min_reward_range`` is left out. The episode goes on
    with ``continue_from``: its first sample, or the greedy decision.
    An episode whose end effector leaves the workspace [m, base frame] has failed. Starts count
    from ``first_seed``. ``format_reward``: when a thought is well formed (see ``well_formed``).
    ``sample_fraction``: of the decisions, drawn at random, that are learnt from (the decisions of
    an episode share its advantage, so fewer of them cost less and mean the same).
    An iteration takes ``num_iterations`` passes of ``num_minibatches`` optimizer steps each;
    ``micro_batch``: decisions in memory at once. ``beta``: weight of the KL divergence to the
    initial policy. ``num_envs``: simulators per process, in ``num_env_groups`` that take turns;
    ``step_timeout`` [s]. ``evaluate_every``: iterations between evaluations of
    ``evaluate_episodes`` per task.
    """

    algorithm: str = 'grpo'
    rollouts: str = 'episode'
    continue_from: str = 'sample'
    num_starts: int = 8
    num_generations: int = 8
    min_reward_range: float = 0.1
    max_resample_factor: float = 3.0
    first_seed: int = 500_000
    success_weight: float = 1.0
    format_weight: float = 0.4
    progress_weight: float = 10.0
    format_reward: str = 'grammar'
    workspace_low: tuple[float, float, float] = osc.WORKSPACE_LOW
    workspace_high: tuple[float, float, float] = osc.WORKSPACE_HIGH
    thought_temperature: float = 1.0
    action_temperature: float = 1.0
    learning_rate: float = 5e-5
    warmup_steps: int = 4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: float = 1.0
    sample_fraction: float = 1.0
    num_iterations: int = 1
    num_minibatches: int = 4
    micro_batch: int = 32
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    clip_ratio_c: float = 3.0
    loss_agg_mode: str = 'token-mean'
    beta: float = 0.01
    num_envs: int = 8
    num_env_groups: int = 1
    step_timeout: float = 60.0
    evaluate_every: int = 5
    evaluate_episodes: int = 4
    precision: str = 'no'
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            self._require(name, getattr(self, name) in choices,
                          f'be one of {", ".join(choices)}')
        for name in _POSITIVE:
            self._require(name, getattr(self, name) > 0, 'be positive')
        for name in _NOT_NEGATIVE:
            self._require(name, getattr(self, name) >= 0, 'not be negative')
        for name in ('workspace_low', 'workspace_high'):
            self._require(name, len(getattr(self, name)) == 3, 'be three numbers [m]')
        osc.require_box(self.workspace_low, self.workspace_high)
        self._require('num_generations', self.num_generations >= 2,
                      'be at least 2: an advantage needs another sample to compare with')
        self._require('sample_fraction', 0.0 < self.sample_fraction <= 1.0, 'lie in (0, 1]')
        self._require('max_resample_factor', self.max_resample_factor >= 1.0, 'be at least 1')
        self._require('clip_ratio_c', self.clip_ratio_c > 1.0, 'be above 1')
        self._require('first_seed', self.first_seed < dtvla_sim.EVAL_SEED_START,
                      f'be below {dtvla_sim.EVAL_SEED_START}: the rest is kept for evaluation')

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise UserError(f'train config: {name} must {what}, got {getattr(self, name)!r}')

    @property
    def per_step(self) -> bool:
        """Whether the samples of one decision are compared, not whole episodes."""
        return self.rollouts == 'per-step'

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GrpoConfig:
        """Build from a mapping, of earlier names too; an unknown key or a wrong type is named."""
        values: dict[str, Any] = {}
        for name, value in data.items():
            name = ALIASES.get(name, name)
            if isinstance(value, str):
                value = VALUE_ALIASES.get(name, {}).get(value, value)
            values[name] = value
        return cls(**checked(cls, values))

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> GrpoConfig:
        """Read a YAML file; ``changes`` as of ``read_config``."""
        return read_config(path, cls.from_dict, 'config/train/grpo.yaml', changes)
