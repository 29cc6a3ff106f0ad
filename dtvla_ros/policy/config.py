"""Sizes, special ids and attention rule of a hybrid decoder, 2 M to 2.9 B parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.errors import UserError
from dtvla_ros.field_types import require_types

MASKED = -1e9  # finite, so that a row that sees nothing (a pad) yields numbers and not NaN
MOST_CAMERAS = 4
VISION_KINDS = ('siglip', 'conv', 'lite0')
_LARGEST = {'layers': 1000, 'image_size': 4096, 'chunk_steps': 1000, 'action_dim': 100,
            'rope_theta': 1e9}
GROUPS = 8  # of channels that are normalised together
# A released config.json's names of what is asked for here, with PaliGemma-3B's own values.
_TEXT = {'width': ('hidden_size', 2048), 'layers': ('num_hidden_layers', 18),
         'heads': ('num_attention_heads', 8), 'kv_heads': ('num_key_value_heads', 1),
         'head_dim': ('head_dim', 256), 'mlp': ('intermediate_size', 16384),
         'norm_eps': ('rms_norm_eps', 1e-6)}
_VISION = {'width': ('hidden_size', 1152), 'layers': ('num_hidden_layers', 27),
           'heads': ('num_attention_heads', 16), 'mlp': ('intermediate_size', 4304),
           'norm_eps': ('layer_norm_eps', 1e-6)}
_TAGS = {'think': 'think_start_token_index', 'think_end': 'think_end_token_index',
         'action': 'action_start_token_index', 'action_end': 'action_end_token_index',
         'bins_first': 'action_token_begin_idx', 'bins_last': 'action_token_end_idx'}


def _require(good: bool, message: str) -> None:
    if not good:
        raise UserError(f'policy config: {message}')


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value, most = getattr(owner, name), _LARGEST.get(name, 2 ** 20)
        _require(0 < value <= most, f'{name} must be positive, at most {most}, got {value}')


class Lite0Stage(NamedTuple):
    """A stage of EfficientNet-Lite0: blocks, the first of which has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


LITE0_FIRST = 32  # channels of the convolution before the stages, whose stride is 2
# Those whose grid has at least a sixteenth of the image's side.
LITE0_STAGES = (Lite0Stage(1, 3, 1, 1, 16), Lite0Stage(2, 3, 2, 6, 24), Lite0Stage(2, 5, 2, 6, 40),
                Lite0Stage(3, 3, 2, 6, 80), Lite0Stage(3, 5, 1, 6, 112))


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Geometry of the Gemma decoder."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    rope_theta: float = 1e4
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        require_types(self)
        _positive(self, *(f.name for f in fields(self)))
        _require(self.heads % self.kv_heads == 0,
                 f'heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})')
        _require(self.head_dim % 2 == 0, f'head_dim must be even for RoPE, got {self.head_dim}')


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Cameras in their order, and the tower that turns an image into tokens.

    ``kind`` 'siglip' uses ``width, layers, heads, mlp, patch`` (one tower for every camera);
    'conv' uses ``channels``, 'lite0' ``layers``, the number of EfficientNet-Lite0's stages (one
    stem per camera, ``tokens`` a square number, each).
    """

    kind: str
    cameras: tuple[str, ...]
    tokens: tuple[int, ...]
    image_size: int
    width: int = 0
    layers: int = 0
    heads: int = 0
    mlp: int = 0
    patch: int = 0
    channels: tuple[int, ...] = ()
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        require_types(self)
        _require(self.kind in VISION_KINDS,
                 f'vision kind must be one of {VISION_KINDS}, got {self.kind!r}')
        _require(0 < len(set(self.cameras)) == len(self.cameras) == len(self.tokens),
                 f'cameras {self.cameras} must be different, each with its tokens {self.tokens}')
        _require(len(self.cameras) <= MOST_CAMERAS, f'at most {MOST_CAMERAS} cameras, got '
                 f'{len(self.cameras)}')
        _positive(self, 'image_size')
        _require(all(0 < count <= 2 ** 16 for count in self.tokens),
                 f'tokens must be positive, got {self.tokens}')
        if self.kind == 'siglip':
            _positive(self, 'width', 'layers', 'heads', 'mlp', 'patch')
            side = self.image_size // self.patch
            _require(set(self.tokens) == {side * side},
                     f'siglip gives {side * side} tokens per camera, tokens says {self.tokens}')
        elif self.kind == 'lite0':
            _require(0 < self.layers <= len(LITE0_STAGES),
                     f'layers must be 1 to {len(LITE0_STAGES)} stages, got {self.layers}')
            stride = 2 * math.prod(stage.stride for stage in LITE0_STAGES[:self.layers])
            grid, rest = divmod(self.image_size, stride)
            _require(grid > 0 and rest == 0, f'image_size must be a multiple of {stride} for '
                     f'{self.layers} stages, got {self.image_size}')
            for count in self.tokens:
                side = math.isqrt(count)
                _require(side * side == count and grid % side == 0, f'lite0 tokens must be the '
                         f'square of a divisor of {grid}, got {count}')
        else:
            _require(len(self.channels) > 1, f'channels needs two stages, got {self.channels}')
            _require(all(0 < n <= 2 ** 14 and n % GROUPS == 0 for n in self.channels),
                     f'channels must be multiples of {GROUPS}, got {self.channels}')
            for count in self.tokens:
                stride = self.image_size / max(count, 1) ** 0.5
                _require(stride >= 8 and math.log2(stride).is_integer(),
                         f'conv tokens must be (image_size / 2^k)^2 with 2^k >= 8, got {count}')


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Token ids with a meaning; ``semicolon, newline`` is the pair that ends the prompt.

    Action ids ``bins_first .. bins_last`` are contiguous, in reversed order of value.
    """

    pad: int
    eos: int
    bos: int
    semicolon: int
    newline: int
    image: int
    think: int
    think_end: int
    action: int
    action_end: int
    bins_first: int
    bins_last: int

    def __post_init__(self) -> None:
        require_types(self)

    @property
    def bins(self) -> int:
        """Number of action bins."""
        return self.bins_last - self.bins_first + 1


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Everything the network's shape depends on.

    ``slot_codes``: add a learned position code to each action slot. The released model has
    none: its slots are zero and told apart by their rotary positions alone.
    """

    text: TextConfig
    vision: VisionConfig
    ids: SpecialIds
    chunk_steps: int = 10
    action_dim: int = 7
    slot_codes: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        _positive(self, 'chunk_steps', 'action_dim')
        first, last = self.ids.bins_first, self.ids.bins_last
        _require(self.ids.bins >= 2, f'action ids {first}..{last} hold no bins')
        for name, value in asdict(self.ids).items():
            _require(0 <= value < self.text.vocabulary,
                     f'id {name}={value} is outside the vocabulary of {self.text.vocabulary}')
            _require(name.startswith('bins_') or not first <= value <= last,
                     f'id {name}={value} lies among the action ids')

    @property
    def slots(self) -> int:
        """Action tokens per decision, T * D."""
        return self.chunk_steps * self.action_dim

    @property
    def image_tokens(self) -> int:
        """Rows of all images."""
        return sum(self.vision.tokens)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DecoderConfig:
        """Read what ``asdict`` makes of it; a missing or unknown key is named in the error."""
        try:
            vision: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v
                                      for k, v in data['vision'].items()}
            return cls(**{**data, 'text': TextConfig(**data['text']),
                          'vision': VisionConfig(**vision), 'ids': SpecialIds(**data['ids'])})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f'policy config: {error}; export the policy again') from None

    @classmethod
    def from_huggingface(cls, data: Mapping[str, Any],
                         cameras: tuple[str, ...] = CAMERAS) -> DecoderConfig:
        """Read a released checkpoint's ``config.json``.

        Such files omit what equals PaliGemma's own defaults, so the defaults here are
        PaliGemma-3B's (Gemma-2B, SigLIP So400m/14). The prompt-end pair is not in the file:
        unless ``ids`` stand beside ``config``, it is Gemma's (';', newline).
        """
        root, extra = data.get('config', data), data.get('ids', {})
        if data.get('auto_map') or root.get('auto_map'):
            raise UserError('config.json asks for remote code (auto_map), which is never run; '
                            'remove the key if the weights are a plain DeepThinkVLA')
        text, vision = root.get('text_config', {}), root.get('vision_config', {})
        theta = text.get('rope_theta', (text.get('rope_parameters') or {}).get('rope_theta', 1e4))
        try:
            ids = SpecialIds(
                pad=root.get('pad_token_id', 0), eos=root.get('eos_token_id', 1),
                bos=root.get('bos_token_id', 2), semicolon=extra.get('semicolon', 235289),
                newline=extra.get('newline', 108),
                image=root.get('image_token_index', root.get('image_token_id', 257152)),
                **{ours: root[theirs] for ours, theirs in _TAGS.items()})
        except KeyError as error:
            raise UserError(f'config.json has no {error}: not a DeepThinkVLA checkpoint') from None
        size, patch = vision.get('image_size', 224), vision.get('patch_size', 14)
        return cls(
            TextConfig(
                **{ours: text.get(theirs, usual) for ours, (theirs, usual) in _TEXT.items()},
                vocabulary=text.get('vocab_size', root.get('vocab_size', 257216)),
                rope_theta=theta),
            VisionConfig(
                'siglip', cameras, ((size // patch) ** 2,) * len(cameras), size, patch=patch,
                **{ours: vision.get(theirs, usual) for ours, (theirs, usual) in _VISION.items()}),
            ids, data.get('num_actions_chunk', 10), data.get('action_dim', 7))

    @classmethod
    def nano(cls, vocabulary: int, ids: SpecialIds, *, width: int = 192, layers: int = 4,
             image_size: int = 128, tokens: tuple[int, ...] = (64, 16),
             cameras: tuple[str, ...] = CAMERAS, channels: tuple[int, ...] = (32, 64, 128),
             chunk_steps: int = 8, slot_codes: bool = False, stem: str = 'conv',
             stages: int = 0) -> DecoderConfig:
        """Return the small preset: 2.5 million parameters, a tick of a laptop CPU.

        ``stem`` 'conv' uses ``channels``, 'lite0' ``stages``.
        """
        sizes: dict[str, Any] = {'layers': stages} if stem == 'lite0' else {'channels': channels}
        return cls(
            TextConfig(width=width, layers=layers, heads=4, kv_heads=1, head_dim=width // 4,
                       mlp=3 * width, vocabulary=vocabulary),
            VisionConfig(stem, cameras, tokens, image_size, **sizes), ids,
            chunk_steps=chunk_steps, slot_codes=slot_codes)


def visible(rows: Any, columns: Any, prompt_end: Any, action_start: Any) -> Any:
    """Return where ``columns`` may be attended from ``rows`` (bool, broadcast).

    With P the first row after the prompt (``prompt_end``) and A the row of the last ``<action>``
    (``action_start``): rows before A see the whole prompt and, causally, the thought; rows from
    A on see everything. Works on NumPy arrays and torch tensors alike: one formula for training,
    engines, exports.
    """
    return (columns < prompt_end) | (columns <= rows) | (rows >= action_start)
