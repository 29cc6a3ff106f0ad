"""Configuration of supervised fine-tuning: the YAML, the run and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
import yaml

from dtvla_ros.errors import UserError
from dtvla_ros.files import find_shared
from dtvla_ros.yaml_files import read_yaml

Share = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
T = TypeVar('T', bound='Config')
known_keys = pydantic.with_config(pydantic.ConfigDict(extra='forbid', allow_inf_nan=False))

# Held-out start states for choosing a checkpoint lie far above those of the final tables.
SELECTION_SEEDS = 500_000


class Config:
    """A dataclass that is read from YAML; its annotations say which values are valid.

    ``example``: a file that shows how. ``aliases``: names of earlier versions, of keys and of
    values that are words; ``section.name`` means the key ``name`` of a section.
    """

    __slots__ = ()
    example: ClassVar[str]
    aliases: ClassVar[Mapping[str, str]] = {}
    value_aliases: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
        """Build from a mapping, in which a later mention counts. Raises ``UserError``."""
        values: dict[str, Any] = {}
        for key, value in data.items():
            section, dot, name = cls.aliases.get(key, key).partition('.')
            if isinstance(value, str):
                value = cls.value_aliases.get(value, value)
            old: Any = values.get(section)
            value = {name: value} if dot else value
            both = isinstance(old, dict) and isinstance(value, dict)
            values[section] = {**old, **value} if both else value
        try:
            return pydantic.TypeAdapter(cls).validate_python(values)
        except pydantic.ValidationError as error:
            wrong = error.errors()[0]
            raise UserError(f'train config: {".".join(map(str, wrong["loc"]))}: {wrong["msg"]}, '
                            f'got {wrong["input"]!r}; {cls.example} has every key') from error

    @classmethod
    def read(cls: type[T], path: Path, changes: Sequence[str] = ()) -> T:
        """Read a YAML file; ``changes``: ``key=value`` each, instead of what the file says.

        Files of the package are found from any folder, as policies are. Raises ``UserError``.
        """
        path = find_shared(path)
        if not path.exists():
            here = sorted(p.name for p in find_shared(cls.example).parent.glob('*.yaml'))
            raise UserError(f'{path}: no such config; in {Path(cls.example).parent} there are '
                            f'{", ".join(here) or "none"}')
        data = read_yaml(path, f'see {cls.example}')
        try:
            if not isinstance(data, Mapping):
                raise UserError('expected "key: value" lines')
            named = {str(key): value for key, value in data.items()}
            return cls.from_dict({**named, **dict(map(_change, changes))})
        except UserError as error:
            raise UserError(f'{path}: {error}') from error


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition('=')
    if not equals or not key:
        raise UserError(f'--set {text}: expected key=value, as learning_rate=0.0005')
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f'--set {text}: {value!r} is no YAML value') from error


@known_keys
@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of a small policy trained from scratch (see ``DecoderConfig.nano``).

    ``stem`` 'lite0' begins with the first ``stages`` of a pretrained EfficientNet-Lite0.
    """

    width: int = 192
    layers: int = 4
    image_size: int = 128
    tokens: tuple[int, ...] = (64, 16)
    channels: tuple[int, ...] = (32, 64, 128)
    cameras: tuple[str, ...] = ('primary', 'wrist')
    chunk_steps: int = 8
    stem: Literal['conv', 'lite0'] = 'conv'
    stages: int = 0


@known_keys
@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Low-rank updates (LoRA) of the decoder's layers, times ``alpha / rank``.

    ``rank`` 0: none. ``targets``: names of linear layers, as peft calls them.
    """

    rank: pydantic.NonNegativeInt = 0
    alpha: pydantic.PositiveInt = 64
    dropout: Share = 0.0
    targets: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] = (
        'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')


@known_keys
@dataclass(frozen=True, slots=True)
class Rates:
    """Each parameter group's learning rate as a factor of ``learning_rate``; 0 freezes it.

    ``vision``: image towers without ``projector``, SigLIP's linear layer into the decoder.
    """

    vision: pydantic.NonNegativeFloat = 1.0
    projector: pydantic.NonNegativeFloat = 1.0
    decoder: pydantic.NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        if not any(asdict(self).values()):
            raise UserError('train config: rates must not be all 0')


@known_keys
@dataclass(frozen=True, slots=True)
class AuxiliaryConfig:
    """Auxiliary supervision of small policies (``training/auxiliary/``).

    Before a run from scratch come two pre-training stages: ``localisation_steps`` at the rate
    ``localisation_rate``, then ``captioning_steps``. ``localisation_weight``,
    ``attention_weight``: shares of both losses in the fine-tuning that follows; the latter
    supervises the first head of decoder layer ``attention_layer`` (from 0). ``direction_flip``:
    share of rows whose direction words, and actions, are reversed.
    """

    localisation_steps: int = 1500
    localisation_rate: float = 2e-3
    captioning_steps: int = 1000
    localisation_weight: float = 0.2
    attention_weight: float = 0.0
    attention_layer: int = 2
    direction_flip: Share = 0.0


@known_keys
@dataclass(frozen=True, slots=True)
class SftConfig(Config):
    """Configuration of supervised fine-tuning. ``config/train/nano.yaml`` says why each value.

    ``shift``: largest image shift by camera [px]; ``state_noise``: standard deviations of the
    state tokens (position [cm], tilt [steps], opening [cm]); ``place_noise``: of the location
    tokens in the thought the actions read [tokens]; sigmas are in tokens and bins.
    ``counterfactual``: share of rows with another task's instruction, whose thought is input and
    supervised only in what does not depend on that. For large policies: ``lora`` and ``rates`` say
    what is trained; ``accumulate`` batches make one step; ``checkpointing`` recomputes activations
    in the backward pass; batches of similar length are taken from ``bucket`` batches drawn
    together (1: no sorting); ``ema`` 0 keeps no average of the weights. ``frozen_stages``: of a
    pretrained stem, they stay as they are. ``model`` means nothing to a run that begins with a
    policy without location tokens.
    """

    example: ClassVar[str] = 'config/train/nano.yaml'
    aliases: ClassVar[Mapping[str, str]] = {
        'grounding_steps': 'auxiliary.localisation_steps',
        'grounding_rate': 'auxiliary.localisation_rate',
        'telling_steps': 'auxiliary.captioning_steps',
        'grounding_weight': 'auxiliary.localisation_weight',
        'pointing_weight': 'auxiliary.attention_weight',
        'pointing_layer': 'auxiliary.attention_layer',
        'turned': 'auxiliary.direction_flip'}

    model: ModelConfig = field(default_factory=ModelConfig)
    batch_size: pydantic.PositiveInt = 64
    learning_rate: pydantic.PositiveFloat = 1e-3
    final_rate: float = 0.01
    warmup_steps: int = 200
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: pydantic.PositiveFloat = 1.0
    ema: Share = 0.998
    reasoning_dropout: Share = 0.3
    shift: tuple[int, ...] = (2, 4)
    colour: float = 1.0
    state_noise: tuple[float, float, float] = (0.5, 0.5, 0.2)
    counterfactual: Share = 0.0
    place_noise: float = 0.5
    place_sigma: float = 1.0
    action_sigma: float = 2.0
    thought_weight: float = 2.0
    place_weight: float = 2.0
    toggle_boost: float = 2.5
    start_boost: float = 2.5
    intervention_boost: pydantic.NonNegativeFloat = 1.0
    failure_boost: pydantic.NonNegativeFloat = 1.0
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    validation_share: Share = 0.04
    precision: Literal['no', 'bf16'] = 'bf16'
    seed: int = 0
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    rates: Rates = field(default_factory=Rates)
    accumulate: pydantic.PositiveInt = 1
    checkpointing: bool = False
    bucket: pydantic.PositiveInt = 1
    frozen_stages: pydantic.NonNegativeInt = 0

    def __post_init__(self) -> None:
        if len(self.shift) != len(self.model.cameras):
            raise UserError(f'train config: shift needs {len(self.model.cameras)} values, one per '
                            f'camera, got {self.shift}')
        if self.lora.rank and self.auxiliary.attention_weight:
            raise UserError('train config: attention cannot be supervised under lora; set '
                            'auxiliary.attention_weight to 0')

    @property
    def freezes(self) -> bool:
        """Whether a part of the policy stays as it was."""
        return self.lora.rank > 0 or 0.0 in asdict(self.rates).values()


@dataclass(frozen=True, slots=True)
class SftRun:
    """Input, output and length of a run: ``minutes`` in all, or ``steps`` of the fine-tuning.

    ``evaluate_every``, ``checkpoint_every``: minutes; ``episodes``: held-out ones per task at each
    evaluation (0: losses only). ``pretrain``: whether the pre-training stages come first; None:
    unless there is an ``init``. ``loaders``: processes that make batches ahead; 0: none.
    ``compile``: fuse the network with TorchInductor (needs a C++ compiler). ``weights``: each
    dataset's share of the draws; none: by its number of frames.
    """

    data: tuple[Path, ...]
    out: Path
    init: Path | None = None
    minutes: float | None = None
    steps: int | None = None
    evaluate_every: float = 5.0
    checkpoint_every: float = 1.0
    episodes: int = 0
    suite: str = 'tabletop'
    threads: int | None = None
    loaders: int = 1
    compile: bool = False
    weights: tuple[float, ...] = ()
    pretrain: bool | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise UserError('give either --minutes or --steps')
        if not self.data:
            raise UserError('--data: no dataset given; run dtvla collect first')
        if self.weights and (len(self.weights) != len(self.data) or min(self.weights) <= 0):
            raise UserError(f'--weight: {len(self.weights)} for {len(self.data)} datasets; give '
                            'each one a positive share, or none')


def warm_cosine(step: int, ramp: int, progress: float, floor: float) -> float:
    """Return min(1, (step + 1) / ramp) times a cosine from 1 at ``progress`` 0 to ``floor`` at 1.

    No torch scheduler, because ``progress`` may be measured by the clock.
    """
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / max(ramp, 1)) * (floor + (1.0 - floor) * cosine)
