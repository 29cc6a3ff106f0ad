"""A training run on disk: safetensors for tensors, JSON for numbers, nothing pickled.

Ours instead of accelerate's ``save_state``, which pickles the optimizer and the random state.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json, write_json, write_text
from dtvla_ros.policy.checkpoint import read_tensors
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest

WEIGHTS = 'model.safetensors'
CHECKPOINT = 'checkpoint'
ORIGIN = 'origin'  # folder with the manifest of the policy that the run began with
HEAD = 'objective.auxiliary.localisation.head.'
FORMER_HEAD = 'objective.head.'  # as checkpoints of earlier versions hold it


def write_origin(folder: Path, manifest: PolicyManifest) -> None:
    """Keep what a policy that the run began with promises, besides its files and successes."""
    write_text(folder / ORIGIN / MANIFEST, replace(manifest, files={}, success={}).to_json())


def read_origin(folder: Path) -> PolicyManifest | None:
    """Read what ``write_origin`` wrote; None if the run was begun from scratch."""
    origin = folder / ORIGIN
    return PolicyManifest.read(origin) if (origin / MANIFEST).exists() else None


def gathered(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Return whole tensors, those that FSDP shards on the CPU; nothing unless ``keep``.

    Every process must call this: a tensor is put together by all that hold a part of it.
    """
    out = {}
    for name, value in tensors.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            out[name] = (whole.cpu() if isinstance(value, DTensor) else whole).contiguous()
    return out


def save_checkpoint(
    run: Path, objective: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer,
    state: dict[str, Any], frozen: Collection[str] = (), keep: bool = True,
) -> None:
    """Write everything a run needs to go on exactly, in one step.

    The optimizer's slots are all tensors (AdamW), named ``optimizer.<slot>.<k>`` for the k-th
    parameter over all groups.
    ``frozen``: names in ``objective`` that are not stored. Where FSDP shards the model every
    process must call this; only the one with ``keep`` writes.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in (('objective', objective), ('average', average)):
        if module is not None:
            tensors |= {f'{prefix}.{k}': v for k, v in module.state_dict().items()
                        if not _is_frozen(prefix, k, frozen)}
    for k, slots in optimizer.state_dict()['state'].items():
        tensors |= {f'optimizer.{slot}.{k}': value for slot, value in slots.items()}
    tensors = gathered(tensors, keep)
    if not keep:
        return
    work, old, final = (run / name for name in (
        f'.{CHECKPOINT}.part', f'.{CHECKPOINT}.old', CHECKPOINT))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    save_file(tensors, work / 'tensors.safetensors')
    write_json(work / 'state.json', state)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(work, final)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    run: Path, objective: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer,
    frozen: Collection[str] = (),
) -> dict[str, Any] | None:
    """Restore what ``save_checkpoint`` wrote and return its state; None if there is none."""
    folder = run / CHECKPOINT
    if not folder.exists():
        folder = run / f'.{CHECKPOINT}.old'  # killed between the two renames
        if not folder.exists():
            return None
    state = read_json(folder / 'state.json', 'use a new --out')
    tensors = {name.replace(FORMER_HEAD, HEAD): value for name, value
               in read_tensors(folder / 'tensors.safetensors').items()}
    slots: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith('optimizer.'):
            _, slot, k = name.split('.')
            slots.setdefault(int(k), {})[slot] = value
    try:
        for prefix, module in (('objective', objective), ('average', average)):
            if module is None:
                continue
            kept = {k: v for k, v in module.state_dict().items() if _is_frozen(prefix, k, frozen)}
            module.load_state_dict(kept | {
                k.removeprefix(f'{prefix}.'): v for k, v in tensors.items()
                if k.startswith(f'{prefix}.')})
        groups = optimizer.state_dict()['param_groups']
        optimizer.load_state_dict({'state': slots, 'param_groups': groups})
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{folder}: made for another model ({str(error).splitlines()[0]}); '
                        'use a new --out') from error
    return state


def _is_frozen(prefix: str, name: str, frozen: Collection[str]) -> bool:
    """Return whether a tensor is frozen; the average's names are those of ``objective.model``."""
    return (name if prefix == 'objective' else f'model.{name}') in frozen


def reshard(optimizer: torch.optim.Optimizer, states: list[dict[str, Any]]) -> None:
    """Give the k-th parameter over all groups its state [k], in the shards FSDP made of it."""
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    optimizer.state.clear()  # kept under the parameters that FSDP replaced
    for parameter, slots in zip(parameters, states, strict=True):
        for slot, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[slot] = distribute_tensor(
                    value.to(parameter.device), parameter.device_mesh, parameter.placements)
        if slots:
            optimizer.state[parameter] = slots
