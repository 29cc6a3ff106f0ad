"""A training run on disk: safetensors for tensors, JSON for numbers, nothing pickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import read_tensors
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import load_tokenizer

WEIGHTS = 'model.safetensors'
CHECKPOINT = 'checkpoint'


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(path.name + '.part')
    part.write_text(json.dumps(value, indent=1))
    part.replace(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f'{path}: missing; is this the folder of a training run?') from error
    except ValueError as error:
        raise UserError(f'{path}: malformed JSON ({error})') from error


def write_transform(folder: Path, transform: PolicyTransform) -> None:
    """Write ``config.json``, ``tokenizer.json``, ``statistics.json`` and ``prompt.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / 'config.json', transform.config.to_dict())
    transform.tokenizer.save(str(folder / 'tokenizer.json'))
    _write_json(folder / 'statistics.json', transform.statistics.to_dict())
    _write_json(folder / 'prompt.json', {
        'state_in_prompt': transform.state_in_prompt, 'preamble': transform.preamble})


def read_transform(folder: Path) -> PolicyTransform:
    """Read what ``write_transform`` wrote."""
    config = DecoderConfig.from_dict(_read_json(folder / 'config.json'))
    tokenizer: Tokenizer = load_tokenizer(folder / 'tokenizer.json')
    statistics = ActionStatistics.from_dict(
        _read_json(folder / 'statistics.json'), config.action_dim)
    return PolicyTransform(config, tokenizer, statistics, **_read_json(folder / 'prompt.json'))


def save_checkpoint(
    run: Path, objective: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write everything a run needs to go on exactly, in one step.

    Optimizer tensors are named ``optimizer.<slot>.<k>`` for the k-th parameter over all groups.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in (('objective', objective), ('average', average)):
        tensors |= {f'{prefix}.{k}': v.contiguous() for k, v in module.state_dict().items()}
    numbers: dict[str, Any] = {}
    for k, slots in optimizer.state_dict()['state'].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f'optimizer.{slot}.{k}'] = value.contiguous()
            else:
                numbers[f'{slot}.{k}'] = value
    work = run / f'.{CHECKPOINT}.part'
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    save_file(tensors, work / 'tensors.safetensors')
    _write_json(work / 'state.json', state | {'optimizer': numbers})
    old = run / f'.{CHECKPOINT}.old'
    shutil.rmtree(old, ignore_errors=True)
    final = run / CHECKPOINT
    if final.exists():
        os.replace(final, old)
    os.replace(work, final)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    run: Path, objective: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer,
) -> dict[str, Any] | None:
    """Restore what ``save_checkpoint`` wrote and return its state; None if there is none."""
    folder = run / CHECKPOINT
    if not folder.exists():
        folder = run / f'.{CHECKPOINT}.old'  # killed between the two renames
        if not folder.exists():
            return None
    state = _read_json(folder / 'state.json')
    tensors = read_tensors(folder / 'tensors.safetensors')
    slots: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith('optimizer.'):
            _, slot, k = name.split('.')
            slots.setdefault(int(k), {})[slot] = value
    for name, value in state.pop('optimizer').items():
        slot, k = name.rsplit('.', 1)
        slots.setdefault(int(k), {})[slot] = value
    try:
        for prefix, module in (('objective', objective), ('average', average)):
            module.load_state_dict({k.removeprefix(f'{prefix}.'): v for k, v in tensors.items()
                                    if k.startswith(f'{prefix}.')})
        groups = optimizer.state_dict()['param_groups']
        optimizer.load_state_dict({'state': slots, 'param_groups': groups})
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{folder}: made for another model ({str(error).splitlines()[0]}); '
                        'use a new --out') from error
    return state
