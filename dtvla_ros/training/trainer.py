"""Builds a run; its training step, validation, and what it leaves on disk."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.utils.checkpoint
from accelerate import Accelerator, DistributedType
from accelerate.utils import send_to_device
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dtvla_ros.errors import UserError
from dtvla_ros.files import require_folder, write_text, writing
from dtvla_ros.policy import adapters
from dtvla_ros.policy.checkpoint import save_tensors
from dtvla_ros.policy.manifest import MANIFEST, PROOF
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import write_transform
from dtvla_ros.training import checkpoint, data
from dtvla_ros.training.auxiliary.localisation import (
    AttentionLoss,
    LocalisationLoss,
    Pretraining,
    Stage,
    pretrain,
    stages,
)
from dtvla_ros.training.clock import Clock, step_seconds
from dtvla_ros.training.collate import Batch, Collator
from dtvla_ros.training.config import AdapterConfig, SftConfig, SftRun, warm_cosine
from dtvla_ros.training.initialisation import (
    copy_stem,
    copy_weights,
    freeze_stages,
    initialise,
    require_contract,
)
from dtvla_ros.training.loss import Metrics, Objective
from dtvla_ros.training.observations import observations_for

ADAPTER = 'default'  # what peft calls an adapter that was given no name


class Trainer:
    """One run: model, average, optimizer and the step it is at.

    ``average`` is the model itself where the config keeps none; ``averaged`` is the objective with
    it. ``wrapped`` and ``optimizer`` are as accelerate prepared them. ``tasks``: the instructions
    of its data. ``origin``: manifest of the released policy that it began with. ``frozen``: names
    in the objective that stay as that policy has them. ``pretraining``: where the pre-training
    stages are, None when none are due. ``costs``: seconds of a step of each stage that is due, and
    of the fine-tuning, once ``measure`` was called. ``begun``: when the fine-tuning began on the
    ``clock``; ``reserve``: seconds kept for what follows it. ``sharded``: by FSDP.
    """

    def __init__(self, config: SftConfig, run: SftRun) -> None:
        """Build a run at its first step, or where its last checkpoint left it."""
        if run.threads:
            torch.set_num_threads(run.threads)
        self.config, self.run = config, run
        self.accelerator = accelerator = Accelerator(mixed_precision=config.precision)
        self.clock = Clock(accelerator, run.checkpoint_every)
        self._first = accelerator.process_index * config.accumulate  # batch of a step that is here
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        if self.sharded and (
                config.ema or run.episodes or run.compile or not accelerator.is_fsdp2):
            raise UserError('FSDP holds no second model, drives no simulator and is not compiled '
                            'here: launch with --fsdp_version 2, set ema to 0 in the config, '
                            '--eval-episodes 0, and no --compile')

        readers = [data.open_demonstrations(path) for path in run.data]
        if accelerator.is_main_process:
            require_folder(run.out)
        start = initialise(config, run, readers)
        self.origin, self.transform = start.origin, start.transform
        transform = start.transform
        require_contract(readers, transform.config, transform.contract)
        spans = data.location_spans(transform.tokenizer)
        objects = data.object_names(readers) if spans else ()
        rows = data.tokenize(readers, transform, objects)
        with accelerator.main_process_first():
            frames = [data.open_frames(reader, transform) for reader in readers]
        self.tasks = dict.fromkeys(reader.tasks[task] for reader in readers
                                   for task in sorted(set(reader.column('task_index'))))
        self.names = sorted(set().union(*(data.thing_names(reader) for reader in readers)))
        self.says_done = any(data.says_done(reader) for reader in readers)
        self.observations = observations_for(
            run.out, readers, transform) if accelerator.is_main_process else None
        self.batches = Collator(rows, frames, transform, config, objects, run.weights,
                                config.accumulate * accelerator.num_processes)

        torch.manual_seed(config.seed)
        self.model = self.average = model = start.model or HybridDecoder(transform.config)
        if config.lora.rank:
            add_adapters(model, config.lora)
        if config.frozen_stages:
            freeze_stages(model, config.frozen_stages)
        if config.ema:
            self.average = copy.deepcopy(model).requires_grad_(False).eval().to(accelerator.device)
        keys = config.auxiliary
        attending = keys.attention_weight > 0.0 and bool(spans) and data.have_points(readers)
        shared: dict[str, nn.Module] = {}
        if objects:
            shared['localisation'] = LocalisationLoss(
                keys.localisation_weight, transform.config, len(objects), config.place_sigma)

        def objective_of(model: HybridDecoder) -> Objective:
            attention = {'attention': AttentionLoss(
                keys.attention_weight, spans, model, keys.attention_layer)} if attending else {}
            return Objective(model, config, spans, shared | attention)

        self.objective = self.averaged = objective_of(model)
        if config.ema:
            self.averaged = objective_of(self.average)
        optimizer = new_optimizer(self.objective, config)
        self.frozen = frozenset(name for name, parameter in self.objective.named_parameters()
                                if config.freezes and not parameter.requires_grad)
        if config.checkpointing:
            recompute_layers(model)
        state = checkpoint.load_checkpoint(
            run.out, self.objective, self.average if config.ema else None, optimizer, self.frozen)
        if state is not None and SftConfig.from_dict(state['config']) != config:
            raise UserError(f'{run.out}: begun with another config; use a new --out')
        if state is None and start.model is None:
            if run.init is not None:
                copy_weights(model, transform.tokenizer, run.init)
            else:
                copy_stem(model)
            self.average.load_state_dict(model.state_dict())
        if run.compile:
            for name in ('run', 'encode_images'):
                setattr(model, name, torch.compile(getattr(model, name), dynamic=False))

        slots = [optimizer.state.get(p, {}) for g in optimizer.param_groups for p in g['params']]
        self.wrapped, self.optimizer = accelerator.prepare(self.objective, optimizer)
        if self.sharded:
            checkpoint.reshard(self.optimizer.optimizer, slots)
        state = state or {}
        self.step: int = state.get('step', 0)
        self.begun: float = state.get('begun', 0.0)
        self.clock.seconds = state.get('seconds', 0.0)
        self.costs: tuple[float, ...] = ()
        self.reserve = 0.0
        wanted = run.init is None if run.pretrain is None else run.pretrain
        self.pretraining = None
        if objects and ('pretraining' in state or (wanted and not state)):
            self.pretraining = Pretraining(**state.get('pretraining', {}))

    @property
    def progress(self) -> float:
        """How much of the fine-tuning is done, 0..1: of its steps, or of the time left for it."""
        if self.run.steps:
            return self.step / self.run.steps
        left = 60.0 * (self.run.minutes or 0.0) - self.reserve - self.begun
        return (self.clock.seconds - self.begun) / left if left > 0.0 else 1.0

    def pretrain(self) -> None:
        """Put a run from scratch through the pre-training stages, and keep their result.

        Those of a run in minutes get half of them, if they need so much. Where the run is stopped
        in their midst, a checkpoint keeps it.
        """
        if self.pretraining is not None:
            pretrain(self.objective, self.batches, self.config, self.accelerator,
                     self.run.loaders, self.pretraining, self._stage_progress, self.tick)
            if not self.clock.stopped:
                self.average.load_state_dict(self.model.state_dict())
                self.pretraining, self.begun = None, self.clock.seconds
            self.save()

    def stages(self) -> tuple[Stage, ...]:
        """Return the pre-training stages that are due."""
        if self.pretraining is None:
            return ()
        return stages(self.objective, self.config)[self.pretraining.number:]

    def stage_seconds(self, begun: float) -> list[float]:
        """Return how long each stage that is due may take, from ``begun`` on the clock."""
        due = self.stages()
        needed = [stage.steps * cost for stage, cost in zip(due, self.costs or [1.0] * len(due))]
        if self.run.minutes is None:
            return needed
        left = max(30.0 * self.run.minutes - begun, 0.0)
        return [left * part / max(sum(needed), 1e-9) for part in needed]

    def _stage_progress(self, at: Pretraining, stage: Stage) -> float:
        if not at.step:
            at.begun = self.clock.seconds
        if self.run.steps:
            return at.progress(stage)
        limit = self.stage_seconds(at.begun)[0]
        spent = (self.clock.seconds - at.begun) / limit if limit > 0.0 else 1.0
        return max(at.progress(stage), min(spent, 1.0))

    def tick(self) -> bool:
        """Count the time, save if it is time to; return whether to stop."""
        self.clock.lap()
        if self.clock.save_due and not self.clock.stopped:
            self.save()
        return self.clock.stopped

    def measure(self) -> None:
        """Time a few steps of each stage and of the fine-tuning that change nothing."""
        accelerator, loaders = self.accelerator, self.run.loaders

        def compute(batches: list[Batch]) -> None:
            self._gradients(batches)

        costs = []
        for stage in self.stages():
            def learn(batch: Batch, stage: Stage = stage) -> None:
                with accelerator.autocast():
                    loss, _ = stage.loss(send_to_device(batch, accelerator.device))
                loss.backward()
            costs.append(step_seconds(partial(self.batches.localisation, 0), learn, loaders,
                                      accelerator.device))
        costs.append(step_seconds(partial(self.draw, self.step), compute, loaders,
                                  accelerator.device))
        self.objective.zero_grad(set_to_none=True)
        self.costs = tuple(accelerator.reduce(
            torch.tensor(costs, device=accelerator.device), 'mean').tolist())

    def draw(self, step: int) -> list[Batch]:
        return [self.batches.train(step, self._first + k) for k in range(self.config.accumulate)]

    def train_step(self, *batches: Batch) -> Metrics:
        """Take one optimizer step over this process's batches; return everybody's ``loss`` etc."""
        config, accelerator = self.config, self.accelerator
        rate = config.learning_rate * warm_cosine(
            self.step, config.warmup_steps, self.progress, config.final_rate)
        for group in self.optimizer.param_groups:
            group['lr'] = group['factor'] * rate
        reports = self._gradients(batches)
        accelerator.clip_grad_norm_(self.objective.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        if config.ema:
            # With a warm-up, which torch's AveragedModel has not.
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.parameters()), list(self.model.parameters()), 1.0 - decay)
        # The parts' losses add up to this process's share; the metrics are averaged.
        values = torch.stack([torch.stack([v.float() for v in r.values()]) for r in reports])
        values = torch.cat([values[:, :1].sum(0), values[:, 1:].mean(0)])
        return dict(zip(reports[0], accelerator.reduce(values, 'mean'), strict=True))

    def _gradients(self, batches: Sequence[Batch]) -> list[Metrics]:
        """Compute the gradients of a step's batches; return each one's ``loss`` etc."""
        config, accelerator = self.config, self.accelerator
        self.model.train()
        parts = send_to_device(list(batches), accelerator.device, non_blocking=True)
        # The gradient of several processes is their mean, not their sum.
        weight = torch.stack([self.objective.weight(part) for part in parts]).sum()
        divisor = accelerator.reduce(weight, 'mean').clamp_min(1.0)
        self.optimizer.zero_grad()
        reports: list[Metrics] = []
        for k, part in enumerate(parts):
            if config.lora.dropout:  # so that a resumed run drops the same
                torch.manual_seed(hash((config.seed, self.step, self._first + k)))
            last = k + 1 == len(parts)
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                loss, metrics = self.wrapped(part, divisor, 1.0 / len(parts))
                accelerator.backward(loss)
            reports.append({'loss': loss.detach(), **metrics})
        return reports

    @torch.no_grad()
    def validate(self, limit: int = 1024) -> dict[str, float]:
        """Return the averaged model's losses over held-out frames, without noise."""
        frames = self.batches.validation
        frames = frames[np.linspace(0, len(frames) - 1, min(limit, len(frames))).astype(int)]
        size = self.config.batch_size
        sums: dict[str, float] = {}
        self.average.eval()
        for k in range(0, len(frames), size):
            batch = send_to_device(self.batches.plain(frames[k:k + size]), self.accelerator.device)
            with self.accelerator.autocast():
                loss, metrics = self.averaged(batch)
            share = len(batch.action_start) / len(frames)
            for name, value in {'loss': loss, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * share
        return {name: value for name, value in sums.items() if not math.isnan(value)}

    def save(self) -> None:
        """Write the checkpoint and, for export, the averaged weights or the adapters.

        In the midst of the pre-training stages there is nothing to export yet.
        """
        with self.clock.saving(), writing(self.run.out):
            self._save()

    def _save(self) -> None:
        main, out = self.accelerator.is_main_process, self.run.out
        if not main and not self.sharded:
            return
        if main:
            write_transform(out, self.transform)
            checkpoint.write_tasks(out, self.tasks, self.names, self.says_done)
            if self.observations is not None:
                self.observations.write(out / PROOF)
                self.observations = None
        state = {'step': self.step, 'seconds': self.clock.seconds, 'begun': self.begun,
                 'config': asdict(self.config)}
        average = self.average if self.config.ema else None
        if self.pretraining is not None and self.pretraining.optimizer is not None:
            checkpoint.save_checkpoint(
                out, self.objective, average, self.pretraining.optimizer,
                state | {'pretraining': self.pretraining.numbers()}, self.frozen, main)
            return
        tensors = checkpoint.gathered(self.average.state_dict(), main)
        if main:
            if self.origin is not None:  # what it promises, besides its files and successes
                write_text(out / checkpoint.ORIGIN / MANIFEST,
                           replace(self.origin, files={}, success={}).to_json())
            if self.config.lora.rank:
                assert self.run.init is not None, 'adapters have a policy that they adapt'
                factors = {adapters.PREFIX + name.replace(f'.{ADAPTER}.', '.'): tensors[name]
                           for name in tensors if '.lora_' in name}
                whole = {name: tensors[name] for name in sorted(tensors)
                         if '.lora_' not in name and f'model.{name}' not in self.frozen}
                for file, part in ((adapters.WEIGHTS, factors), (adapters.OTHERS, whole)):
                    if part:
                        save_tensors(part, out / file)
                _peft_config(self.config.lora, inference_mode=True, base_model_name_or_path=str(
                    self.run.init.resolve())).save_pretrained(str(out))
            else:
                save_tensors(tensors, out / checkpoint.WEIGHTS)
        del tensors
        checkpoint.save_checkpoint(out, self.objective, average, self.optimizer.optimizer, state,
                                   self.frozen, main)


def new_optimizer(objective: nn.Module, config: SftConfig) -> torch.optim.AdamW:
    """Freeze parameters of a rate of 0; return AdamW over the rest, with the rate's ``factor``."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        factor = next(getattr(config.rates, part) for part in ('projector', 'vision', 'decoder')
                      if part == 'decoder' or f'.{part}.' in name)
        parameter.requires_grad_(parameter.requires_grad and factor > 0.0)
        if parameter.requires_grad:
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [{'params': groups[factor, wide], 'weight_decay': config.weight_decay * wide,
          'factor': factor} for factor in dict.fromkeys(factor for factor, _ in groups)
         for wide in (True, False) if (factor, wide) in groups],
        config.learning_rate, betas=config.betas, fused=True)


def recompute_layers(model: nn.Module) -> None:
    """Keep only the inputs of each Gemma and SigLIP layer for the backward pass."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            layer = cast(Any, module)
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(
                torch.utils.checkpoint.checkpoint, use_reentrant=False)


def _peft_config(config: AdapterConfig, **more: Any) -> Any:
    """Return peft's config; its pattern matches the decoder's layers, not SigLIP's."""
    from peft import LoraConfig

    return LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, **more,
                      target_modules=rf'layers\.\d+\.\w+\.(?:{"|".join(config.targets)})')


def add_adapters(model: HybridDecoder, config: AdapterConfig) -> None:
    """Put adapters beside the decoder's linear layers, in place; all else but towers is frozen."""
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(_peft_config(config), model, ADAPTER)
    except ValueError as error:
        raise UserError(f'train config: lora targets {", ".join(config.targets)}: '
                        f'{str(error).splitlines()[0]}') from error
    model.vision.requires_grad_(True)
