"""LoRA adapters (peft's files), merged into the weights they were trained on.

W becomes W + scale * B A, with scale = alpha / r, or alpha / sqrt(r) for rank-stabilised ones
(Hu et al. 2021; Kalajdzievski 2023). peft's own merge would need the whole model in memory, and
its rank and alpha patterns are regexes over the released names, not this package's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json
from dtvla_ros.policy import checkpoint
from dtvla_ros.policy.checkpoint import EMBEDDING, HEADS, Stored, our_name

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
OTHERS = 'non_lora_state_dict.safetensors'  # weights trained whole beside the adapter
PREFIX = 'base_model.model.'
_FACTOR = re.compile(r'^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])'
                     r'(?:\.(?!bias$)\w+)??(?:\.weight)?$')
_WRAPPER = re.compile(r'\.(?:base_layer|modules_to_save(?:\.\w+)??)(?=\.(?:weight|bias)$)')
# Kinds that are no plain W + BA, or whose training changed W itself.
_UNSUPPORTED = ('use_dora', 'lora_bias', 'use_qalora', 'layer_replication', 'target_parameters',
                'trainable_token_indices', 'alora_invocation_tokens', 'arrow_config')
_CHANGES_BASE = ('pissa', 'olora', 'corda', 'loftq')


class LowRank(NamedTuple):
    """One weight's update; ``a`` [r, in...] and ``b`` [out, r...] as peft stores them.

    An embedding's factors are the transposed ones: ``a`` [r, rows], ``b`` [width, r].
    """

    a: Tensor
    b: Tensor
    scale: float
    embedding: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that the factors update."""
        rows, columns = self.b.shape[:1], self.a.shape[1:]
        return (*columns, *rows) if self.embedding else (*rows, *columns)

    def delta(self) -> Tensor:
        """Return the update in float32, in the shape of the weight."""
        product = self.b.float().flatten(1) @ self.a.float().flatten(1)  # [out, in...]
        return self.scale * (product.T if self.embedding else product).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Adapter:
    """Updates and wholly trained weights, by this package's names."""

    folder: Path
    updates: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor]

    def check(self, base: Mapping[str, Stored]) -> None:
        """Raise unless everything in the adapter has its place in a base checkpoint."""
        shapes = {our_name(name): stored.shape for name, stored in base.items()
                  if name not in HEADS}
        for name, shape in [(name, tuple(value.shape)) for part in (self.updates, self.replaced)
                            for name, value in part.items()]:
            if shape != shapes.get(name):
                raise UserError(
                    f'{self.folder}: weights {shape} do not fit {name} {shapes.get(name)} of the '
                    'base; give the base checkpoint the adapter was trained on')

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """Return a base weight (any layout's name) with its update, in its own type.

        The tied head, where it is stored, follows the embedding.
        """
        ours = EMBEDDING if name in HEADS else our_name(name)
        new = self.replaced.get(ours, weight)
        if ours in self.updates:
            new = new.float() + self.updates[ours].delta()
        return new.to(weight.dtype)


def read_adapter(folder: Path | str) -> Adapter:
    """Read a peft adapter folder.

    Raises ``UserError`` for pickle files (unread), kinds other than plain LoRA, unknown or
    half-present factors, and changes to the head apart from the embedding it is tied to.
    ``fan_in_fan_out`` changes nothing here: peft heeds it for GPT-2's Conv1D alone.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    checkpoint.refuse_pickles(folder)
    path = folder / WEIGHTS
    tensors = checkpoint.read_tensors(path)
    if (folder / OTHERS).exists():
        tensors |= checkpoint.read_tensors(folder / OTHERS)
    factors: dict[tuple[str, bool], dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module = name.removeprefix(PREFIX)
        if found := _FACTOR.match(module):
            key = found['module'], bool(found['embedding'])
            factors.setdefault(key, {})[found['side']] = tensor
        elif '.lora_' in module:
            raise UserError(f'{path}: {name} is no factor of a plain LoRA; merge this adapter '
                            'with peft and convert the result')
        elif '.original_module.' not in module:  # the base's own copy
            whole[our_name(_WRAPPER.sub('', module))] = tensor
    updates = {}
    for (module, embedding), pair in factors.items():
        if set(pair) != {'A', 'B'}:
            raise UserError(f'{path}: {module} has only the factor {next(iter(pair))}; '
                            'copy the adapter again')
        rank = _by_pattern(config.get('rank_pattern'), module, config['r'])
        ranks = len(pair['A']), pair['B'].flatten(1).shape[1]
        if ranks != (rank, rank):
            raise UserError(f'{path}: {module} has rank {max(ranks)}, {CONFIG} says {rank}; '
                            'they belong to different adapters')
        alpha = _by_pattern(config.get('alpha_pattern'), module, config['lora_alpha'])
        updates[our_name(f'{module}.weight')] = LowRank(
            pair['A'], pair['B'], alpha / (rank ** 0.5 if config.get('use_rslora') else rank),
            embedding)
    _settle_head(updates, whole, path)
    if not updates and not whole:
        raise UserError(f'{path}: holds no LoRA factors; copy the adapter again')
    return Adapter(folder, updates, whole)


def local_base(adapter: Path) -> Path:
    """Return the base checkpoint an adapter names, if it is a folder here."""
    named = read_config(adapter / CONFIG).get('base_model_name_or_path') or ''
    if not named or not Path(named).is_dir():
        raise UserError(f'{adapter}: its base checkpoint {named!r} is no folder here; name it: '
                        f'dtvla convert BASE --adapter {adapter} --out FOLDER')
    return Path(named)


def read_config(path: Path) -> dict[str, Any]:
    """Read an ``adapter_config.json``; anything but a plain LoRA is refused."""
    config = read_json(path)
    if (config.get('auto_mapping') or {}).get('auto_map'):
        raise UserError(f'{path}: asks for remote code (auto_map), which is never run')
    odd = [] if config.get('peft_type') == 'LORA' else ['peft_type']
    odd += [key for key in _UNSUPPORTED if config.get(key)]
    if str(config.get('init_lora_weights')).lower().startswith(_CHANGES_BASE):
        odd.append('init_lora_weights')
    if odd:
        raise UserError(f'{path}: {odd[0]} is {json.dumps(config.get(odd[0]))}, only a plain LoRA '
                        'is merged; merge this adapter with peft and convert the result')
    for key in ('r', 'lora_alpha'):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f'{path}: {key} is {value!r}, expected a positive number; '
                            'copy the adapter again')
    return config


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    return next((value for pattern, value in (patterns or {}).items()
                 if re.match(rf'(?:.*\.)?(?:{pattern})$', module)), default)


def _settle_head(updates: dict[str, LowRank], whole: dict[str, Tensor], path: Path) -> None:
    """Drop what leaves the head equal to the embedding; refuse what would part them."""
    for name in HEADS:
        update, head = updates.pop(name, None), whole.pop(name, None)
        if ((update is not None and update.b.count_nonzero() and update.a.count_nonzero())
                or (head is not None and not (
                    EMBEDDING in whole and torch.equal(head, whole[EMBEDDING])))):
            raise UserError(f'{path}: {name} was trained apart from the embedding, to which it is '
                            'tied here; train without lm_head, or save both with the same values')
