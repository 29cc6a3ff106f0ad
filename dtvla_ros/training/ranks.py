"""What the processes of one run agree upon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from accelerate import Accelerator, DistributedType

from dtvla_ros.errors import UserError
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.loss import LossReport
from dtvla_ros.training.plan import SftRun


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether each process holds a part of the model only (FSDP)."""
    return accelerator.distributed_type == DistributedType.FSDP


def check_sharded(accelerator: Accelerator, config: SftConfig, run: SftRun) -> None:
    """Raise where a run asks for what a model in shards can not give."""
    if not is_sharded(accelerator):
        return
    if not accelerator.is_fsdp2:
        raise UserError('this is FSDP1; launch with --fsdp_version 2')
    if config.ema or run.episodes or run.compile:
        raise UserError('FSDP holds no second model, drives no simulator and is not compiled '
                        'here: set ema to 0 in the recipe, --eval-episodes 0, and no --compile')


def mean(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """Return each value's mean over all processes."""
    if accelerator.num_processes == 1:
        return list(values)
    mine = torch.tensor(values, dtype=torch.float32, device=accelerator.device)
    return accelerator.reduce(mine, 'mean').tolist()


def merged(accelerator: Accelerator, reports: Sequence[LossReport]) -> LossReport:
    """Return one report of a step whose batch came in parts, over all processes.

    The parts' losses add up to this process's share; what else they tell is averaged.
    """
    if len(reports) == accelerator.num_processes == 1:
        return reports[0]
    values = torch.stack([torch.stack([getattr(report, f.name).detach().float()
                                       for f in fields(LossReport)]) for report in reports])
    values = torch.cat([values[:, :1].sum(0), values[:, 1:].mean(0)])
    return LossReport(*accelerator.reduce(values, 'mean'))
