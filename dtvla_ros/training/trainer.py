"""One training step, the average of the weights, validation, and what a run leaves on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import save_tensors
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform, write_transform
from dtvla_ros.training.auxiliary.localisation import pretrain_captioning, pretrain_localisation
from dtvla_ros.training.checkpoint import WEIGHTS, gathered, save_checkpoint, write_origin
from dtvla_ros.training.collate import Batch, Collator
from dtvla_ros.training.config import SftConfig, SftRun, warm_cosine
from dtvla_ros.training.lora import save_adapters
from dtvla_ros.training.loss import Metrics, Objective


@dataclass
class Trainer:
    """One run: model, average, optimizer and the step it is at (see ``sft.build_trainer``).

    ``average`` is the model itself where the config keeps none; ``averaged`` is the objective
    with it. ``objective`` and ``optimizer`` are as accelerate prepared them. ``frozen``: names
    in the objective that are not trained. ``fresh``: whether the pre-training stages are due.
    """

    config: SftConfig
    run: SftRun
    accelerator: Accelerator
    transform: PolicyTransform
    origin: PolicyManifest | None
    batches: Collator
    model: HybridDecoder
    average: HybridDecoder
    objective: Objective
    averaged: Objective
    optimizer: Any
    frozen: frozenset[str]
    fresh: bool
    step: int = 0
    seconds: float = 0.0

    def pretrain(self) -> None:
        """Put a run from scratch through the pre-training stages, and keep their result."""
        if not (self.fresh and self.batches.objects):
            return
        objective = self.accelerator.unwrap_model(self.objective)
        for stage in (pretrain_localisation, pretrain_captioning):
            stage(objective, self.batches, self.config, self.accelerator, self.run.loaders)
        self.average.load_state_dict(self.model.state_dict())
        self.save()

    def draw(self, step: int) -> list[Batch]:
        """Return this process's batches of a step."""
        return [self.batches.train(step, self._first + k) for k in range(self.config.accumulate)]

    @property
    def _first(self) -> int:
        """The number of this process's first batch in every step."""
        return self.accelerator.process_index * self.config.accumulate

    def train_step(self, *batches: Batch) -> Metrics:
        """Take one optimizer step over this process's batches; return everybody's ``loss`` etc."""
        rate = self.config.learning_rate * warm_cosine(
            self.step, self.config.warmup_steps, self.run.progress(self.step, self.seconds),
            self.config.final_rate)
        for group in self.optimizer.param_groups:
            group['lr'] = group['factor'] * rate
        parts = [batch.to(self.accelerator.device) for batch in batches]
        divisor = self._divisor(parts)
        self.optimizer.zero_grad()
        reports: list[Metrics] = []
        for k, part in enumerate(parts):
            if self.config.lora.dropout:  # so that a resumed run drops the same
                torch.manual_seed(hash((self.config.seed, self.step, self._first + k)))
            last = k + 1 == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                loss, metrics = self.objective(part, divisor, 1.0 / len(parts))
                self.accelerator.backward(loss)
            reports.append({'loss': loss.detach(), **metrics})
        self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        if self.config.ema:
            self._update_average()
        return self._merged(reports)

    def _divisor(self, parts: Sequence[Batch]) -> Tensor:
        """Return what the losses of a step's parts are divided by, so that their mean is one."""
        objective = self.accelerator.unwrap_model(self.objective)
        weight = torch.stack([objective.weight(part) for part in parts]).sum()
        # The gradient of several processes is their mean, not their sum.
        return self.accelerator.reduce(weight, 'mean').clamp_min(1.0)

    def _merged(self, reports: Sequence[Metrics]) -> Metrics:
        """Return one report of a step whose batch came in parts, over all processes.

        The parts' losses add up to this process's share; the metrics are averaged.
        """
        values = torch.stack([torch.stack([v.float() for v in report.values()])
                              for report in reports])
        values = torch.cat([values[:, :1].sum(0), values[:, 1:].mean(0)])
        return dict(zip(reports[0], self.accelerator.reduce(values, 'mean'), strict=True))

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average with a decay that warms up: min(ema, (1 + t) / (10 + t)).

        Ours: torch's ``AveragedModel`` copies at its first update, and has no warm-up.
        """
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.model.parameters()), 1.0 - decay)

    @contextmanager
    def evaluating(self) -> Iterator[HybridDecoder]:
        """Give the averaged model, without dropout."""
        self.average.eval()
        yield self.average
        if self.average is self.model:
            self.model.train()

    @torch.no_grad()
    def validate(self, limit: int = 1024) -> dict[str, float]:
        """Return the averaged model's losses over held-out frames, without noise."""
        frames = self.batches.validation
        frames = frames[np.linspace(0, len(frames) - 1, min(limit, len(frames))).astype(int)]
        size = self.config.batch_size
        sums: dict[str, float] = {}
        with self.evaluating():
            for k in range(0, len(frames), size):
                batch = self.batches.plain(frames[k:k + size]).to(self.accelerator.device)
                with self.accelerator.autocast():
                    loss, metrics = self.averaged(batch)
                share = len(batch.action_start) / len(frames)
                for name, value in {'loss': loss, **metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * share
        return {name: value for name, value in sums.items() if not math.isnan(value)}

    def save(self) -> None:
        """Write the checkpoint and, for export, the averaged weights or the adapters."""
        main, out = self.accelerator.is_main_process, self.run.out
        if not main and not is_sharded(self.accelerator):
            return
        tensors = gathered(self.average.state_dict(), main)
        if main:
            write_transform(out, self.transform)
            if self.origin is not None:
                write_origin(out, self.origin)
            if self.config.lora.rank:
                assert self.run.init is not None, 'adapters have a policy that they adapt'
                trained = {name for name in tensors if f'model.{name}' not in self.frozen}
                save_adapters(tensors, trained, out, self.config.lora, self.run.init)
            else:
                save_tensors(tensors, out / WEIGHTS)
        del tensors
        save_checkpoint(
            out, self.accelerator.unwrap_model(self.objective),
            self.average if self.config.ema else None, self.optimizer.optimizer,
            {'step': self.step, 'seconds': self.seconds, 'config': asdict(self.config)},
            self.frozen, main)


# --- distributed


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
                        'here: set ema to 0 in the config, --eval-episodes 0, and no --compile')


# --- parameter groups


def group_of(name: str) -> str:
    """Return which of ``Rates`` a parameter of an ``Objective`` belongs to."""
    if name.startswith('model.vision.projector.'):
        return 'projector'
    return 'vision' if name.startswith('model.vision.') else 'decoder'


def freeze(objective: nn.Module, config: SftConfig) -> frozenset[str]:
    """Freeze the groups whose rate is 0; return the names of all that is frozen."""
    for name, parameter in objective.named_parameters():
        if getattr(config.rates, group_of(name)) == 0.0:
            parameter.requires_grad_(False)
    return frozenset(name for name, parameter in objective.named_parameters()
                     if not parameter.requires_grad)


def new_optimizer(objective: nn.Module, config: SftConfig) -> torch.optim.AdamW:
    """Return AdamW over what is not frozen; a group's ``factor`` scales its learning rate."""
    groups = []
    named = [(getattr(config.rates, group_of(name)), parameter)
             for name, parameter in objective.named_parameters() if parameter.requires_grad]
    for factor in dict.fromkeys(factor for factor, _ in named):
        mine = [parameter for own, parameter in named if own == factor]
        for decay, parameters in (
                (config.weight_decay, [p for p in mine if p.ndim > 1]),
                (0.0, [p for p in mine if p.ndim <= 1])):
            if parameters:
                groups.append({'params': parameters, 'weight_decay': decay, 'factor': factor})
    return torch.optim.AdamW(groups, config.learning_rate, betas=config.betas, fused=True)


def recompute_layers(model: nn.Module) -> None:
    """Keep only the inputs of each Gemma and SigLIP layer for the backward pass."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            layer = cast(Any, module)
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
