"""A training run on disk: safetensors for tensors, JSON for numbers, nothing pickled.

Ours instead of accelerate's ``save_state``, which pickles the optimizer and the random state.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json, write_json, writing
from dtvla_ros.policy.checkpoint import read_tensors
from dtvla_ros.policy.manifest import sentences

WEIGHTS = 'model.safetensors'
CHECKPOINT = 'checkpoint'
TASKS = 'tasks.json'  # the instructions that the run is trained on
ORIGIN = 'origin'  # folder with the manifest of the policy that the run began with
HEAD = 'objective.auxiliary.localisation.'
FORMER_HEADS = re.compile(r'^objective\.(auxiliary\.localisation\.)?head\.')


def write_tasks(run: Path, tasks: Collection[str], names: Collection[str],
                says_done: bool) -> None:
    """Keep what a run is trained on, as its policy's manifest has it."""
    write_json(run / TASKS, {
        'tasks': list(tasks), 'names': list(names), 'says_done': says_done})


def read_tasks(run: Path) -> dict[str, Any]:
    """Return what `write_tasks` kept, nothing where it has not; UserError if it is damaged."""
    path = run / TASKS
    if not path.exists():
        return {}
    kept = read_json(path)
    return {'tasks': sentences(kept.get('tasks'), f'{path}: tasks'),
            'names': sentences(kept.get('names', []), f'{path}: names'),
            'says_done': bool(kept.get('says_done'))}


def gathered(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Return whole tensors, or none unless ``keep``; under FSDP all processes must call this."""
    out = {}
    for name, value in tensors.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            out[name] = (whole.cpu() if isinstance(value, DTensor) else whole).contiguous()
    return out


def _stored(objective: nn.Module, average: nn.Module | None,
            frozen: Collection[str]) -> dict[str, Tensor]:
    """Return tensors by their names in a checkpoint, without ``frozen`` ones of ``objective``."""
    tensors = {f'objective.{k}': v for k, v in objective.state_dict().items() if k not in frozen}
    if average is not None:
        tensors |= {f'average.{k}': v for k, v in average.state_dict().items()
                    if f'model.{k}' not in frozen}
    return tensors


def save_checkpoint(run: Path, objective: nn.Module, average: nn.Module | None,
                    optimizer: torch.optim.Optimizer, state: dict[str, Any],
                    frozen: Collection[str] = (), keep: bool = True) -> None:
    """Write everything a run needs to go on exactly, in one step.

    The optimizer's slots are all tensors (AdamW), named ``optimizer.<slot>.<k>`` for the k-th
    parameter over all groups. Under FSDP every process must call this; one with ``keep`` writes.
    """
    tensors = gathered(_stored(objective, average, frozen) | {
        f'optimizer.{slot}.{k}': value for k, slots in optimizer.state_dict()['state'].items()
        for slot, value in slots.items()}, keep)
    if not keep:
        return
    work, old, final = (run / name for name in (
        f'.{CHECKPOINT}.part', f'.{CHECKPOINT}.old', CHECKPOINT))
    try:
        with writing(final):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            save_file(tensors, work / 'tensors.safetensors')
            write_json(work / 'state.json', state)
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                os.replace(final, old)
            os.replace(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(run: Path, objective: nn.Module, average: nn.Module | None,
                    optimizer: torch.optim.Optimizer,
                    frozen: Collection[str] = ()) -> dict[str, Any] | None:
    """Restore what ``save_checkpoint`` wrote and return its state; None if there is none.

    In the midst of the pre-training stages the slots are those of another optimizer: they are
    returned in the state's ``pretraining``.
    """
    # The old one remains where a run was killed between the two renames.
    folder = next(filter(Path.exists, (run / CHECKPOINT, run / f'.{CHECKPOINT}.old')), None)
    if folder is None:
        return None
    state = read_json(folder / 'state.json', 'use a new --out')
    tensors: dict[str, Tensor] = {}
    slots: dict[int, dict[str, Any]] = {}
    for name, value in read_tensors(folder / 'tensors.safetensors').items():
        if name.startswith('optimizer.'):
            _, slot, k = name.split('.')
            slots.setdefault(int(k), {})[slot] = value
        else:
            tensors[FORMER_HEADS.sub(HEAD, name)] = value
    mine = _stored(objective, average, frozen)
    here, there = ({(k, v.shape) for k, v in found.items()} for found in (mine, tensors))
    if here != there:
        raise UserError(f'{folder}: made for another model ({min(here ^ there)[0]}); use a new '
                        '--out')
    for name, value in mine.items():
        value.copy_(tensors[name])
    if 'pretraining' in state:
        state['pretraining']['slots'] = slots
    else:
        optimizer.load_state_dict(optimizer.state_dict() | {'state': slots})
    return state


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
