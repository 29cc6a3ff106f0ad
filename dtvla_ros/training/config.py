"""Configuration of supervised fine-tuning: the YAML, the run and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dtvla_ros.errors import UserError

Config = TypeVar('Config')

# Held-out start states for choosing a checkpoint lie far above those of the final tables.
SELECTION_SEEDS = 500_000


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of a small policy trained from scratch (see ``DecoderConfig.nano``)."""

    width: int = 192
    layers: int = 4
    image_size: int = 128
    tokens: tuple[int, ...] = (64, 16)
    channels: tuple[int, ...] = (32, 64, 128)
    cameras: tuple[str, ...] = ('primary', 'wrist')
    chunk_steps: int = 8


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Low-rank updates (LoRA) of the decoder's layers instead of the layers themselves.

    ``rank`` 0: none. ``targets``: names of linear layers, as peft calls them; the update is
    ``alpha / rank`` times the product of its factors.
    """

    rank: int = 0
    alpha: int = 64
    dropout: float = 0.0
    targets: tuple[str, ...] = (
        'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or not 0.0 <= self.dropout < 1.0:
            raise UserError('train config: lora needs rank >= 0, alpha > 0 and dropout in [0, 1), '
                            f'got {self.rank}, {self.alpha} and {self.dropout}')
        if self.rank and not self.targets:
            raise UserError('train config: lora names no targets')


@dataclass(frozen=True, slots=True)
class Rates:
    """Each parameter group's learning rate as a factor of ``learning_rate``; 0 freezes it.

    ``vision``: image towers without ``projector``, SigLIP's linear layer into the decoder.
    """

    vision: float = 1.0
    projector: float = 1.0
    decoder: float = 1.0

    def __post_init__(self) -> None:
        values = asdict(self).values()
        if min(values) < 0.0 or not any(values):
            raise UserError(f'train config: rates must not be negative, and not all 0, got '
                            f'{", ".join(map(str, values))}')


@dataclass(frozen=True, slots=True)
class AuxiliaryConfig:
    """Auxiliary supervision of small policies (``training/auxiliary/``).

    Before a run from scratch come two pre-training stages: ``localisation_steps`` at the rate
    ``localisation_rate`` (the first camera's stem and the localisation head), then
    ``captioning_steps`` (the decoder lists where objects are). ``localisation_weight`` and
    ``attention_weight``: shares of the localisation and of the attention loss in the fine-tuning
    that follows; the latter supervises the first head of decoder layer ``attention_layer`` (from
    0). ``direction_flip``: share of rows whose direction words, and actions, are reversed.
    """

    localisation_steps: int = 1500
    localisation_rate: float = 2e-3
    captioning_steps: int = 1000
    localisation_weight: float = 0.2
    attention_weight: float = 0.0
    attention_layer: int = 2
    direction_flip: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.direction_flip < 1.0:
            raise UserError('train config: auxiliary.direction_flip must lie in [0, 1), '
                            f'got {self.direction_flip}')


@dataclass(frozen=True, slots=True)
class SftConfig:
    """Configuration of supervised fine-tuning. ``config/train/nano.yaml`` says why each value.

    ``shift``: largest image shift by camera [px]; ``state_noise``: standard deviations of the
    state tokens (position [cm], tilt [steps], opening [cm]); ``place_noise``: of the location
    tokens in the thought the actions read [tokens]; sigmas are in tokens and bins.
    ``counterfactual``: share of rows with another task's instruction, whose thought is input and
    not supervised, so that the actions follow the thought, not the instruction.
    For large policies: ``lora`` and ``rates`` say what is trained; ``accumulate`` batches make
    one step; ``checkpointing`` recomputes the layers' activations in the backward pass; batches
    of similar length are taken from ``bucket`` batches drawn together (1: no sorting); ``ema`` 0
    keeps no average of the weights. ``model`` means nothing to a run that begins with a policy
    whose vocabulary holds no location tokens.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_rate: float = 0.01
    warmup_steps: int = 200
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: float = 1.0
    ema: float = 0.998
    reasoning_dropout: float = 0.3
    shift: tuple[int, ...] = (2, 4)
    colour: float = 1.0
    state_noise: tuple[float, ...] = (0.5, 0.5, 0.2)
    counterfactual: float = 0.0
    place_noise: float = 0.5
    place_sigma: float = 1.0
    action_sigma: float = 2.0
    thought_weight: float = 2.0
    place_weight: float = 2.0
    toggle_boost: float = 2.5
    start_boost: float = 2.5
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    validation_share: float = 0.04
    precision: str = 'bf16'
    seed: int = 0
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    rates: Rates = field(default_factory=Rates)
    accumulate: int = 1
    checkpointing: bool = False
    bucket: int = 1

    def __post_init__(self) -> None:
        for name in ('reasoning_dropout', 'counterfactual', 'validation_share', 'ema'):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f'train config: {name} must lie in [0, 1), '
                                f'got {getattr(self, name)}')
        for name in ('batch_size', 'learning_rate', 'gradient_clip', 'accumulate', 'bucket'):
            if getattr(self, name) <= 0:
                raise UserError(f'train config: {name} must be positive, '
                                f'got {getattr(self, name)}')
        if self.precision not in ('no', 'bf16'):
            raise UserError(f'train config: precision must be bf16 or no, got {self.precision!r}')
        if len(self.shift) != len(self.model.cameras):
            raise UserError(f'train config: shift has {len(self.shift)} values for '
                            f'{len(self.model.cameras)} cameras')
        if len(self.state_noise) != 3:
            raise UserError('train config: state_noise needs three values')
        if self.lora.rank and self.auxiliary.attention_weight:
            raise UserError('train config: attention cannot be supervised under lora; set '
                            'auxiliary.attention_weight to 0')

    @property
    def freezes(self) -> bool:
        """Whether a part of the policy stays as it was."""
        return self.lora.rank > 0 or 0.0 in asdict(self.rates).values()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SftConfig:
        """Build from a mapping; an unknown key or a wrong type is named in the error.

        ``section.name`` means the key ``name`` of a section; of two mentions the later counts.
        """
        values: dict[str, Any] = {}
        sections: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
        for key, value in data.items():
            section, dot, name = _ALIASES.get(key, key).partition('.')
            if section not in sections:
                values[key] = value
            elif dot:
                sections[section][name] = value
            elif isinstance(value, Mapping):
                sections[section] |= value
            else:
                raise UserError(f'train config: {key} must be a mapping, got {value!r}')
        return cls(**checked(cls, values), **{
            name: kind(**checked(kind, sections[name])) for name, kind in _SECTIONS.items()})

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> SftConfig:
        """Read a YAML file; ``changes`` as of ``read_config``."""
        return read_config(path, cls.from_dict, 'config/train/nano.yaml', changes)


_SECTIONS: Mapping[str, type] = {
    'model': ModelConfig, 'auxiliary': AuxiliaryConfig, 'lora': AdapterConfig, 'rates': Rates}
# Keys of earlier versions, as files and checkpoints may still hold them.
_ALIASES = {
    'grounding_steps': 'auxiliary.localisation_steps',
    'grounding_rate': 'auxiliary.localisation_rate',
    'telling_steps': 'auxiliary.captioning_steps',
    'grounding_weight': 'auxiliary.localisation_weight',
    'pointing_weight': 'auxiliary.attention_weight',
    'pointing_layer': 'auxiliary.attention_layer',
    'turned': 'auxiliary.direction_flip'}


@dataclass(frozen=True, slots=True)
class SftRun:
    """Input, output and length of a run. Give ``minutes`` (of training time) or ``steps``.

    ``evaluate_every`` and ``checkpoint_every`` are in minutes of training time;
    ``episodes``: held-out episodes per task at each evaluation (0: losses only).
    ``loaders``: processes that make batches ahead. ``compile``: fuse the network with
    TorchInductor (needs a C++ compiler). ``weights``: each dataset's share of the draws; none: by
    its number of frames.
    """

    data: tuple[Path, ...]
    out: Path
    init: Path | None = None
    minutes: float | None = None
    steps: int | None = None
    evaluate_every: float = 5.0
    checkpoint_every: float = 3.0
    episodes: int = 0
    suite: str = 'tabletop'
    threads: int | None = None
    loaders: int = 1
    compile: bool = False
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise UserError('give either --minutes or --steps')
        if not self.data:
            raise UserError('--data: no dataset given; run dtvla collect first')
        if self.weights and (len(self.weights) != len(self.data) or min(self.weights) <= 0):
            raise UserError(f'--weight: {len(self.weights)} for {len(self.data)} datasets; give '
                            'each one a positive share, or none')

    def progress(self, step: int, seconds: float) -> float:
        """Return how much of the run is done, 0..1."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None
        return seconds / (60.0 * self.minutes)


def warm_cosine(step: int, ramp: int, progress: float, floor: float) -> float:
    """Return min(1, (step + 1) / ramp) times a cosine from 1 at ``progress`` 0 to ``floor`` at 1.

    Ours instead of a torch scheduler because ``progress`` may be measured by the clock; beyond 1
    the factor stays at ``floor``.
    """
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / max(ramp, 1)) * (floor + (1.0 - floor) * cosine)


def learning_rate(config: SftConfig, step: int, progress: float) -> float:
    """Linear warm-up by steps, then a cosine over the run down to ``final_rate`` of the peak."""
    return config.learning_rate * warm_cosine(
        step, config.warmup_steps, progress, config.final_rate)


def checked(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with each value of the type that the field's default has."""
    defaults = kind()
    known = {f.name for f in fields(kind)}
    out = {}
    for name, value in data.items():
        if name not in known:
            raise UserError(f'train config: unknown key {name!r}; known: '
                            f'{", ".join(sorted(known))}')
        wanted = getattr(defaults, name)
        if isinstance(wanted, tuple) and isinstance(value, (list, tuple)):
            value = tuple(value)
        elif isinstance(wanted, float) and isinstance(value, int):
            value = float(value)
        if type(value) is not type(wanted):
            raise UserError(f'train config: {name} must be like {wanted!r}, got {value!r}')
        out[name] = value
    return out


def read_config(
    path: Path, build: Callable[[Mapping[str, Any]], Config], example: str,
    changes: Sequence[str] = (),
) -> Config:
    """Build a config from a YAML file; errors name the file, and ``example`` if there is none.

    ``changes``: ``key=value`` each, instead of what the file says.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f'{path}: no such config; try {example}') from error
    except yaml.YAMLError as error:
        raise UserError(f'{path}: malformed YAML ({" ".join(str(error).split())}); '
                        'mend the line it names') from error
    if not isinstance(data, Mapping):
        raise UserError(f'{path}: expected "key: value" lines')
    data = {**data, **dict(map(_change, changes))}
    try:
        return build(data)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition('=')
    if not equals or not key:
        raise UserError(f'--set {text}: expected key=value, as learning_rate=0.0005')
    try:
        parsed = yaml.safe_load(value)
        return key, float(parsed) if isinstance(parsed, str) else parsed  # YAML 1.1: 5e-4 is text
    except yaml.YAMLError as error:
        raise UserError(f'--set {text}: {value!r} is no YAML value') from error
    except ValueError:
        return key, value
