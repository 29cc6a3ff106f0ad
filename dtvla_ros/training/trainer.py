"""Builds a run; its training step, validation, and what it leaves on disk."""

from __future__ import annotations

import copy
import math
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
from dtvla_ros.files import write_text
from dtvla_ros.policy import adapters
from dtvla_ros.policy.checkpoint import save_tensors
from dtvla_ros.policy.manifest import MANIFEST
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import write_transform
from dtvla_ros.training import checkpoint, data
from dtvla_ros.training.auxiliary.localisation import AttentionLoss, LocalisationLoss, pretrain
from dtvla_ros.training.collate import Batch, Collator
from dtvla_ros.training.config import AdapterConfig, SftConfig, SftRun, warm_cosine
from dtvla_ros.training.initialisation import copy_weights, initialise
from dtvla_ros.training.loss import Metrics, Objective

ADAPTER = 'default'  # what peft calls an adapter that was given no name


class Trainer:
    """One run: model, average, optimizer and the step it is at.

    ``average`` is the model itself where the config keeps none; ``averaged`` is the objective with
    it. ``wrapped`` and ``optimizer`` are as accelerate prepared them. ``tasks``: the instructions
    of its data. ``origin``: manifest of the released policy that it began with. ``frozen``: names
    in the objective that are not trained. ``fresh``: whether the pre-training stages are due.
    ``sharded``: by FSDP.
    """

    def __init__(self, config: SftConfig, run: SftRun) -> None:
        """Build a run at its first step, or where its last checkpoint left it."""
        if run.threads:
            torch.set_num_threads(run.threads)
        self.config, self.run = config, run
        self.accelerator = accelerator = Accelerator(mixed_precision=config.precision)
        self._first = accelerator.process_index * config.accumulate  # batch of a step that is here
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        if self.sharded and (
                config.ema or run.episodes or run.compile or not accelerator.is_fsdp2):
            raise UserError('FSDP holds no second model, drives no simulator and is not compiled '
                            'here: launch with --fsdp_version 2, set ema to 0 in the config, '
                            '--eval-episodes 0, and no --compile')

        readers = [data.open_demonstrations(path) for path in run.data]
        start = initialise(config, run, readers)
        self.origin, self.transform = start.origin, start.transform
        transform = start.transform
        spans = data.location_spans(transform.tokenizer)
        objects = data.object_names(readers) if spans else ()
        rows = data.tokenize(readers, transform, objects)
        with accelerator.main_process_first():
            frames = [data.open_frames(reader, transform) for reader in readers]
        self.tasks = dict.fromkeys(reader.tasks[task] for reader in readers
                                   for task in sorted(set(reader.column('task_index'))))
        self.batches = Collator(rows, frames, transform, config, objects, run.weights,
                                config.accumulate * accelerator.num_processes)

        torch.manual_seed(config.seed)
        self.model = self.average = model = start.model or HybridDecoder(transform.config)
        if config.lora.rank:
            add_adapters(model, config.lora)
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
                                if not parameter.requires_grad)
        if config.checkpointing:
            recompute_layers(model)
        state = checkpoint.load_checkpoint(
            run.out, self.objective, self.average if config.ema else None, optimizer, self.frozen)
        if state is not None and SftConfig.from_dict(state['config']) != config:
            raise UserError(f'{run.out}: begun with another config; use a new --out')
        if state is None and run.init is not None and start.model is None:
            copy_weights(model, transform.tokenizer, run.init)
            self.average.load_state_dict(model.state_dict())
        if run.compile:
            for name in ('run', 'encode_images'):
                setattr(model, name, torch.compile(getattr(model, name), dynamic=False))

        slots = [optimizer.state.get(p, {}) for g in optimizer.param_groups for p in g['params']]
        self.wrapped, self.optimizer = accelerator.prepare(self.objective, optimizer)
        if self.sharded:
            checkpoint.reshard(self.optimizer.optimizer, slots)
        # A policy that goes on in scenes with words it did not know localises their objects first.
        self.fresh = state is None and (run.init is None or start.new_words)
        self.step: int = state['step'] if state else 0
        self.seconds: float = state['seconds'] if state else 0.0

    def pretrain(self) -> None:
        """Put a run from scratch through the pre-training stages, and keep their result."""
        if self.fresh and self.batches.objects:
            pretrain(self.objective, self.batches, self.config, self.accelerator, self.run.loaders)
            self.average.load_state_dict(self.model.state_dict())
            self.save()

    def draw(self, step: int) -> list[Batch]:
        return [self.batches.train(step, self._first + k) for k in range(self.config.accumulate)]

    def train_step(self, *batches: Batch) -> Metrics:
        """Take one optimizer step over this process's batches; return everybody's ``loss`` etc."""
        config, accelerator = self.config, self.accelerator
        rate = config.learning_rate * warm_cosine(
            self.step, config.warmup_steps, self.run.progress(self.step, self.seconds),
            config.final_rate)
        for group in self.optimizer.param_groups:
            group['lr'] = group['factor'] * rate
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
        """Write the checkpoint and, for export, the averaged weights or the adapters."""
        main, out = self.accelerator.is_main_process, self.run.out
        if not main and not self.sharded:
            return
        tensors = checkpoint.gathered(self.average.state_dict(), main)
        if main:
            write_transform(out, self.transform)
            checkpoint.write_tasks(out, self.tasks)
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
        checkpoint.save_checkpoint(
            out, self.objective, self.average if self.config.ema else None,
            self.optimizer.optimizer, {'step': self.step, 'seconds': self.seconds,
                                       'config': asdict(self.config)}, self.frozen, main)


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
