"""Weights in and out: safetensors only, every Hugging Face layout of the released model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dtvla_ros.errors import UserError
from dtvla_ros.policy.decoder import HybridDecoder

PICKLES = ('.pt', '.pth', '.bin', '.pkl', '.pickle', '.ckpt', '.joblib', '.npy', '.npz')
_HEADS = ('lm_head.weight', 'language_model.lm_head.weight', 'model.lm_head.weight')
# Old layout: vision_tower.vision_model.*, language_model.model.*; transformers 4.52 and later
# put "model." in front and drop the inner names one by one.
_RENAMES = (
    (re.compile(r'^(?:model\.)?vision_tower\.(?:vision_model\.)?'), 'vision.tower.'),
    (re.compile(r'^(?:model\.)?multi_modal_projector\.linear\.'), 'vision.projector.'),
    (re.compile(r'^(?:model\.)?language_model\.(?:model\.)?'), ''),
)


def our_name(name: str) -> str:
    """Return this package's name of a Hugging Face parameter (ours stay as they are)."""
    for pattern, ours in _RENAMES:
        renamed, count = pattern.subn(ours, name)
        if count:
            return renamed
    return name


def released_name(name: str) -> str:
    """Return a parameter's name in the released (old Hugging Face) layout."""
    for ours, theirs in (('vision.tower.', 'vision_tower.vision_model.'),
                         ('vision.projector.', 'multi_modal_projector.linear.')):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return f'language_model.model.{name}'


def refuse_pickle(path: Path) -> None:
    """Raise unless ``path`` is a safetensors file by name; nothing of it is read."""
    if path.suffix.lower() in PICKLES:
        raise UserError(f'{path}: pickle-like weights are refused unread; '
                        'convert them to safetensors first')
    if path.suffix.lower() != '.safetensors':
        raise UserError(f'{path}: weights must be a .safetensors file')


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read one safetensors file, or all shards of a checkpoint folder."""
    if path.is_dir():
        index = path / 'model.safetensors.index.json'
        if not index.exists():
            return read_tensors(path / 'model.safetensors')
        shards = sorted(set(json.loads(index.read_text())['weight_map'].values()))
        if any(Path(shard).name != shard for shard in shards):
            raise UserError(f'{index}: a shard lies outside the checkpoint folder')
        return {k: v for shard in shards for k, v in read_tensors(path / shard).items()}
    refuse_pickle(path)
    if not path.exists():
        raise UserError(f'{path}: no such weights file')
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f'{path}: not a whole safetensors file ({error}); copy it again') from None


def load_weights(model: HybridDecoder, path: Path | str) -> None:
    """Load weights of any layout into ``model``; every name and shape must fit.

    A stored language-model head is accepted only if it equals the embedding it is tied to.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    head: Tensor | None = None
    for name, tensor in read_tensors(path).items():
        if name in _HEADS:
            head = tensor
        else:
            tensors[our_name(name)] = tensor
    wanted = model.state_dict()
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise UserError(f'{path}: {len(missing)} weights missing, first {missing[0]}; '
                        'does config.json belong to these weights?')
    if extra := sorted(tensors.keys() - wanted.keys()):
        raise UserError(f'{path}: {len(extra)} unknown weights, first {extra[0]}; '
                        'does config.json belong to these weights?')
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(f'{path}: {name} is {tuple(tensor.shape)}, the config says '
                            f'{tuple(wanted[name].shape)}')
    if head is not None and not torch.equal(head, tensors['embed_tokens.weight']):
        raise UserError(f'{path}: the head differs from the embedding it should be tied to')
    model.load_state_dict(tensors)


def save_weights(model: HybridDecoder, path: Path | str) -> None:
    """Write ``model`` as safetensors under this package's names, in one step."""
    path = Path(path)
    refuse_pickle(path)
    part = path.with_name(path.name + '.part')
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part)
    part.chmod(0o644)  # the library makes it private
    part.replace(path)
