"""One fine-tuning run: what it holds, one step of it, and what it leaves on disk."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields

import numpy as np
import torch
from accelerate import Accelerator

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import load_weights, save_tensors
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import write_transform
from dtvla_ros.training import ranks, run_state
from dtvla_ros.training.auxiliary.attention import can_point
from dtvla_ros.training.auxiliary.localisation import thing_names
from dtvla_ros.training.auxiliary.stages import teach_eye, teach_telling
from dtvla_ros.training.collate import Batch, BatchMaker
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.frame_cache import open_frames
from dtvla_ros.training.lora import add_adapters, save_adapters
from dtvla_ros.training.loss import LossReport
from dtvla_ros.training.objective import Objective
from dtvla_ros.training.parts import freeze, new_optimizer, recompute_layers
from dtvla_ros.training.plan import SftRun, learning_rate
from dtvla_ros.training.start import begin
from dtvla_ros.training.tokenized import build_samples, join, place_spans
from dtvla_ros.training.warm_start import begin_with

METRICS = tuple(f.name for f in fields(LossReport))
LOG = logging.getLogger(__name__)


def _some_can_point(readers: Sequence[DatasetReader]) -> bool:
    lacking = [str(reader.root) for reader in readers if not can_point(reader)]
    if lacking:
        LOG.warning('%s: without %s nothing teaches where to look; collect again to have it',
                    ', '.join(lacking), layout.POINTS)
    return len(lacking) < len(readers)


class Trainer:
    """One run: model, average, optimizer and the step it is at."""

    def __init__(self, config: SftConfig, run: SftRun):
        if run.threads:
            torch.set_num_threads(run.threads)
        self.config, self.run = config, run
        self.accelerator = Accelerator(mixed_precision=config.precision)
        ranks.check_sharded(self.accelerator, config, run)
        readers = [DatasetReader(path) for path in run.data]
        for reader in readers:
            _ = reader.info  # a missing dataset is told before anything is written
        start = begin(config, run, readers)
        self.transform, self.origin = start.transform, start.origin
        spans = place_spans(self.transform.tokenizer)
        things = thing_names(readers) if spans else ()
        samples = [build_samples(reader, self.transform, things) for reader in readers]
        with self.accelerator.main_process_first():
            frames = [open_frames(reader, self.transform) for reader in readers]
        self.batches = BatchMaker(
            join(samples, self.transform.config.ids.pad), frames, self.transform, config, things,
            run.weights, config.accumulate * self.accelerator.num_processes)
        torch.manual_seed(config.seed)
        self.model = start.model or HybridDecoder(self.transform.config)
        if config.lora.rank:
            add_adapters(self.model, config.lora)
        self.average = self.model
        if config.ema:
            self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
            self.average.to(self.accelerator.device)
        pointing = config.pointing_weight > 0.0 and bool(spans) and _some_can_point(readers)
        objective = Objective(self.model, config, spans, len(self.batches.things), pointing)
        self.frozen = freeze(objective, config)
        optimizer = new_optimizer(objective, config)
        if config.checkpointing:
            recompute_layers(self.model)
        self.step, self.seconds = 0, 0.0
        state = run_state.load_checkpoint(
            run.out, objective, self.average if config.ema else None, optimizer, self.frozen)
        if state is not None:
            self.step, self.seconds = state['step'], state['seconds']
            if SftConfig.from_dict(state['config']) != config:
                raise UserError(f'{run.out}: begun with another config; use a new --out')
        elif run.init is not None and start.model is None:
            if run.init.is_dir():
                begin_with(self.model, self.transform.tokenizer, run.init)
            else:
                load_weights(self.model, run.init)
            self.average.load_state_dict(self.model.state_dict())
        # A policy that goes on in scenes with words it did not know must look at them first.
        self.fresh = state is None and (run.init is None or start.news)
        if run.compile:
            for name in ('run', 'encode_images'):
                setattr(self.model, name, torch.compile(getattr(self.model, name), dynamic=False))
        kept = [optimizer.state.get(p, {}) for g in optimizer.param_groups for p in g['params']]
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        if ranks.is_sharded(self.accelerator):
            run_state.reshard(self.optimizer.optimizer, kept)
        self._averaged = self.accelerator.unwrap_model(self.objective)
        if config.ema:
            self._averaged = Objective(self.average, config, spans, pointing=pointing)
            self._averaged.head = objective.head

    def prepare(self) -> None:
        """Give a run from scratch its first lessons, and keep their result."""
        if self.fresh and self.batches.things:
            objective = self.accelerator.unwrap_model(self.objective)
            for teach in (teach_eye, teach_telling):
                teach(objective, self.batches, self.config, self.accelerator, self.run.loaders)
            self.average.load_state_dict(self.model.state_dict())
            self.save()

    def train_step(self, *batches: Batch) -> LossReport:
        """Take one optimizer step over this process's batches and return the losses of all."""
        progress = self.run.progress(self.step, self.seconds)
        for group in self.optimizer.param_groups:
            group['lr'] = group['factor'] * learning_rate(self.config, self.step, progress)
        parts = [batch.to(self.accelerator.device) for batch in batches]
        divisor = self._divisor(parts)
        self.optimizer.zero_grad()
        reports = []
        for k, part in enumerate(parts):
            if self.config.lora.dropout:  # so that a resumed run drops the same
                torch.manual_seed(hash((self.config.seed, self.step, self._first + k)))
            last = k + 1 == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                report = self.objective(part, divisor, 1.0 / len(parts))
                self.accelerator.backward(report.loss)
            reports.append(report)
        self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        if self.config.ema:
            self._follow()
        return ranks.merged(self.accelerator, reports)

    def _divisor(self, parts: Sequence[Batch]) -> torch.Tensor | None:
        """Return what the losses of a step's parts are divided by, so that their mean is one."""
        processes = self.accelerator.num_processes
        if len(parts) == processes == 1:
            return None
        objective = self.accelerator.unwrap_model(self.objective)
        weight = torch.stack([objective.weight(part) for part in parts]).sum()
        # The gradient of several processes is their mean, not their sum.
        return self.accelerator.reduce(weight, 'mean').clamp_min(1.0)

    def _follow(self) -> None:
        # A young average follows closely; without this the first one is the initialisation.
        keep = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1.0 - keep)

    @property
    def _first(self) -> int:
        """The number of this process's first batch in every step."""
        return self.accelerator.process_index * self.config.accumulate

    def draw(self, step: int) -> list[Batch]:
        """Return this process's batches of a step."""
        return [self.batches.train(step, self._first + k) for k in range(self.config.accumulate)]

    @contextmanager
    def resting(self) -> Iterator[HybridDecoder]:
        """Give the averaged model to look at, without dropout."""
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
        sums = dict.fromkeys(METRICS, 0.0)
        with self.resting():
            for k in range(0, len(frames), size):
                batch = self.batches.plain(frames[k:k + size]).to(self.accelerator.device)
                with self.accelerator.autocast():
                    report = self._averaged(batch)
                share = len(batch.action_start) / len(frames)
                for name in METRICS:
                    sums[name] += float(getattr(report, name)) * share
        return {name: value for name, value in sums.items() if not math.isnan(value)}

    def save(self) -> None:
        """Write the checkpoint and, for export, the averaged weights or the adapters."""
        main, out = self.accelerator.is_main_process, self.run.out
        if not main and not ranks.is_sharded(self.accelerator):
            return
        tensors = run_state.gathered(self.average.state_dict(), main)
        if main:
            write_transform(out, self.transform)
            if self.origin is not None:
                run_state.write_origin(out, self.origin)
            if self.config.lora.rank:
                assert self.run.init is not None, 'adapters have a policy that they adapt'
                learnt = {name for name in tensors if f'model.{name}' not in self.frozen}
                save_adapters(tensors, learnt, out, self.config.lora, self.run.init)
            else:
                save_tensors(tensors, out / run_state.WEIGHTS)
        del tensors
        run_state.save_checkpoint(
            out, self.accelerator.unwrap_model(self.objective),
            self.average if self.config.ema else None, self.optimizer.optimizer,
            {'step': self.step, 'seconds': self.seconds, 'config': self.config.to_dict()},
            self.frozen, main)
