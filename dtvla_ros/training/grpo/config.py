"""Configuration of GRPO, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

import dtvla_sim
from dtvla_ros.actions import osc
from dtvla_ros.training.config import Config, known_keys

Algorithm = Literal['grpo', 'rloo', 'dr_grpo']
LossAggMode = Literal['token-mean', 'seq-mean-token-sum', 'seq-mean-token-mean']
Point = tuple[float, float, float]


@known_keys
@dataclass(frozen=True, slots=True)
class GrpoConfig(Config):
    """Options of GRPO, named as in TRL and verl. ``config/train/grpo.yaml`` says why each value.

    ``rollouts`` 'episode': ``num_generations`` episodes of each start are one group, and
    ``num_starts`` starts make an iteration, over all processes. A group whose rewards differ by
    less than ``min_reward_range`` (largest minus smallest) is replaced by a new start, until
    ``max_resample_factor`` times ``num_starts`` were played. 'per-step': one episode of each start
    is played, and ``num_generations`` samples of each of its decisions, tried from the same state,
    are one group; progress, ``progress_weight`` per metre, takes the place of success, and a
    decision below ``min_reward_range`` is left out. The episode goes on with ``continue_from``:
    its first sample, or the greedy decision. An episode whose end effector leaves the workspace
    [m, base frame] has failed. Starts count from ``first_seed``. ``format_reward``: as of
    ``well_formed``. ``sample_fraction``: of the decisions, drawn at random, that are learnt from.
    An iteration takes ``num_iterations`` passes of ``num_minibatches`` optimizer steps each;
    ``micro_batch``: decisions in memory at once. ``beta``: weight of the KL divergence to the
    initial policy. ``num_envs``: simulators per process, in ``num_env_groups`` that take turns;
    ``step_timeout`` [s]. ``evaluate_every``: iterations between evaluations of
    ``evaluate_episodes`` per task.
    """

    example: ClassVar[str] = 'config/train/grpo.yaml'
    aliases: ClassVar[Mapping[str, str]] = {
        'groups': 'num_starts', 'group': 'num_generations', 'least_spread': 'min_reward_range',
        'tries': 'max_resample_factor', 'form': 'format_reward', 'form_weight': 'format_weight',
        'compare': 'rollouts', 'follow': 'continue_from', 'learn_share': 'sample_fraction',
        'epochs': 'num_iterations', 'minibatches': 'num_minibatches', 'clip_low': 'epsilon',
        'clip_high': 'epsilon_high', 'dual_clip': 'clip_ratio_c', 'aggregation': 'loss_agg_mode',
        'kl_weight': 'beta', 'environments': 'num_envs', 'lanes': 'num_env_groups'}
    value_aliases: ClassVar[Mapping[str, str]] = {
        'episodes': 'episode', 'decisions': 'per-step', 'drawn': 'sample'}

    algorithm: Algorithm = 'grpo'
    rollouts: Literal['episode', 'per-step'] = 'episode'
    continue_from: Literal['sample', 'greedy'] = 'sample'
    num_starts: PositiveInt = 8
    num_generations: Annotated[int, Field(ge=2)] = 8
    min_reward_range: NonNegativeFloat = 0.1
    max_resample_factor: Annotated[float, Field(ge=1.0)] = 3.0
    first_seed: Annotated[int, Field(ge=0, lt=dtvla_sim.EVAL_SEED_START)] = 500_000
    success_weight: NonNegativeFloat = 1.0
    format_weight: NonNegativeFloat = 0.4
    progress_weight: NonNegativeFloat = 10.0
    format_reward: Literal['closed', 'grammar'] = 'grammar'
    workspace_low: Point = osc.WORKSPACE_LOW
    workspace_high: Point = osc.WORKSPACE_HIGH
    thought_temperature: PositiveFloat = 1.0
    action_temperature: PositiveFloat = 1.0
    learning_rate: PositiveFloat = 5e-5
    warmup_steps: int = 4
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: PositiveFloat = 1.0
    sample_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    num_iterations: PositiveInt = 1
    num_minibatches: PositiveInt = 4
    micro_batch: PositiveInt = 32
    epsilon: NonNegativeFloat = 0.2
    epsilon_high: NonNegativeFloat = 0.28
    clip_ratio_c: Annotated[float, Field(gt=1.0)] = 3.0
    loss_agg_mode: LossAggMode = 'token-mean'
    beta: NonNegativeFloat = 0.01
    num_envs: PositiveInt = 8
    num_env_groups: PositiveInt = 1
    step_timeout: PositiveFloat = 60.0
    evaluate_every: PositiveInt = 5
    evaluate_episodes: NonNegativeInt = 4
    precision: Literal['no', 'bf16'] = 'no'
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        osc.require_box(self.workspace_low, self.workspace_high)

    @property
    def per_step(self) -> bool:
        """Whether the samples of one decision are compared, not whole episodes."""
        return self.rollouts == 'per-step'
