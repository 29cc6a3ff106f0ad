"""What a training run is made of, read from YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.errors import UserError

Recipe = TypeVar('Recipe')


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Sizes of a small policy trained from scratch (see ``DecoderConfig.nano``)."""

    width: int = 192
    layers: int = 4
    image_size: int = 128
    tokens: tuple[int, ...] = (64, 16)
    channels: tuple[int, ...] = (32, 64, 128)
    cameras: tuple[str, ...] = CAMERAS
    chunk_steps: int = 8


@dataclass(frozen=True, slots=True)
class LoraChoice:
    """Low-rank updates of the decoder's layers instead of the layers themselves.

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
    """Each part's learning rate as a factor of ``learning_rate``; 0 freezes the part.

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
class SftConfig:
    """Recipe of supervised fine-tuning. ``config/train/nano.yaml`` says why each value.

    ``shift``: largest image shift by camera [px]; ``state_noise``: standard deviations of the
    state words (position [cm], tilt [steps], opening [cm]); ``place_noise``: of the location
    words in the thought the actions read [words]; sigmas are in words and bins.
    ``counterfactual``: share of rows with another task's instruction, whose thought is read and
    not learnt, so that the actions follow what is thought, not what was asked. ``turned``: share
    of rows whose direction words are turned round, and their actions with them.
    Before a run from scratch come ``grounding_steps`` of teaching the first camera's eye where
    things are and ``telling_steps`` of teaching the decoder to say it; ``grounding_weight`` is
    the eye's share in the fine-tuning that follows. ``pointing_weight``: share of the loss that
    teaches the first head of decoder layer ``pointing_layer`` (from 0) to look at the thing whose
    place is said (0: none).
    For large policies: ``lora`` and ``rates`` say what is learnt; ``accumulate`` batches make one
    step; ``checkpointing`` computes the layers' activations anew in the backward pass; batches of
    similar length are cut from ``bucket`` batches drawn together (1: no sorting); ``ema`` 0
    keeps no average of the weights. ``model`` means nothing to a run that begins with a policy
    whose vocabulary holds no location words.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
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
    turned: float = 0.0
    place_noise: float = 0.5
    place_sigma: float = 1.0
    action_sigma: float = 2.0
    thought_weight: float = 2.0
    place_weight: float = 2.0
    toggle_boost: float = 2.5
    start_boost: float = 2.5
    grounding_steps: int = 1500
    grounding_rate: float = 2e-3
    telling_steps: int = 1000
    grounding_weight: float = 0.2
    pointing_weight: float = 0.0
    pointing_layer: int = 2
    validation_share: float = 0.04
    precision: str = 'bf16'
    seed: int = 0
    lora: LoraChoice = field(default_factory=LoraChoice)
    rates: Rates = field(default_factory=Rates)
    accumulate: int = 1
    checkpointing: bool = False
    bucket: int = 1

    def __post_init__(self) -> None:
        for name in ('reasoning_dropout', 'counterfactual', 'turned', 'validation_share', 'ema'):
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
        if self.lora.rank and self.pointing_weight:
            raise UserError('train config: lora cannot teach a head to point; set '
                            'pointing_weight to 0')

    @property
    def freezes(self) -> bool:
        """Whether a part of the policy stays as it was."""
        return self.lora.rank > 0 or 0.0 in asdict(self.rates).values()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SftConfig:
        """Build from a mapping; an unknown key or a wrong type is named in the error."""
        values = dict(data)
        parts: dict[str, Any] = {}
        for name, kind in _PARTS.items():
            part = values.pop(name, {})
            if not isinstance(part, Mapping):
                raise UserError(f'train config: {name} must be a mapping, got {part!r}')
            parts[name] = kind(**checked(kind, part))
        return cls(**parts, **checked(cls, values))

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> SftConfig:
        """Read a YAML file; ``changes`` as of ``read_recipe``."""
        return read_recipe(path, cls.from_dict, 'config/train/nano.yaml', changes)


_PARTS: Mapping[str, type] = {'model': ModelChoice, 'lora': LoraChoice, 'rates': Rates}


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


def read_recipe(
    path: Path, build: Callable[[Mapping[str, Any]], Recipe], example: str,
    changes: Sequence[str] = (),
) -> Recipe:
    """Build a recipe from a YAML file; errors name the file, and ``example`` if there is none.

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
