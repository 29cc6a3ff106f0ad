"""Supervised fine-tuning: from demonstrations to a policy that thinks and acts."""

from __future__ import annotations

import copy
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import load_weights, save_weights
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.decoder import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import ordinal_groups, special_ids
from dtvla_ros.training import run_state
from dtvla_ros.training.batches import Batch, BatchMaker
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.dataset import layout
from dtvla_ros.training.dataset.reader import DatasetReader
from dtvla_ros.training.finish import read_source
from dtvla_ros.training.frame_cache import open_frames
from dtvla_ros.training.grounding import thing_names
from dtvla_ros.training.lessons import SMOOTHING, teach_eye, teach_telling
from dtvla_ros.training.losses import LossReport
from dtvla_ros.training.objective import Objective
from dtvla_ros.training.pointing import can_point
from dtvla_ros.training.rollout import Rollouts
from dtvla_ros.training.samples import build_samples, join
from dtvla_ros.training.schedule import warm_cosine
from dtvla_ros.training.warm_start import begin_with, dataset_words, grown, vocabulary_for

METRICS = tuple(f.name for f in fields(LossReport))
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SftRun:
    """Where and how long. Give ``minutes`` (of training time) or ``steps``.

    ``evaluate_every`` and ``checkpoint_every`` are in minutes of training time;
    ``episodes``: held-out episodes per task at each evaluation (0: losses only).
    ``compile``: fuse the network with TorchInductor (needs a C++ compiler). ``weights``: each
    dataset's share of the draws; none: by its number of frames.
    """

    data: tuple[Path, ...]
    out: Path
    init: Path | None = None
    minutes: float | None = None
    steps: int | None = None
    evaluate_every: float = 5.0
    checkpoint_every: float = 3.0
    episodes: int = 0
    suite: str = 'tabletop'
    threads: int | None = None
    compile: bool = False
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise UserError('give either --minutes or --steps')
        if not self.data:
            raise UserError('--data: no dataset given; run dtvla collect first')
        if self.weights and (len(self.weights) != len(self.data) or min(self.weights) <= 0):
            raise UserError(f'--weight: {len(self.weights)} for {len(self.data)} datasets; give '
                            'each one a positive share, or none')

    def progress(self, step: int, seconds: float) -> float:
        """Return how much of the run is done, 0..1."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None
        return seconds / (60.0 * self.minutes)


def learning_rate(config: SftConfig, step: int, progress: float) -> float:
    """Linear warm-up by steps, then a cosine over the run down to ``final_rate`` of the peak."""
    return config.learning_rate * warm_cosine(
        step, config.warmup_steps, progress, config.final_rate)


def new_transform(config: SftConfig, readers: Sequence[DatasetReader]) -> PolicyTransform:
    """Return the transform of a small policy made from scratch for these datasets."""
    tokenizer = vocabulary_for(dataset_words(readers))
    m = config.model
    decoder = DecoderConfig.nano(
        tokenizer.get_vocab_size(), special_ids(tokenizer), width=m.width, layers=m.layers,
        image_size=m.image_size, tokens=m.tokens, cameras=m.cameras, channels=m.channels,
        chunk_steps=m.chunk_steps)
    actions = np.concatenate([np.asarray(r.column(layout.ACTION)) for r in readers])
    low, high = np.quantile(actions.astype(np.float64), (0.01, 0.99), axis=0)
    return PolicyTransform(decoder, tokenizer, ActionStatistics(tuple(low), tuple(high)))


def _optimizer(model: nn.Module, config: SftConfig) -> torch.optim.AdamW:
    named = [p for p in model.parameters() if p.requires_grad]
    groups = [{'params': [p for p in named if p.ndim > 1], 'weight_decay': config.weight_decay},
              {'params': [p for p in named if p.ndim <= 1], 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, config.learning_rate, betas=config.betas, fused=True)


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
        readers = [DatasetReader(path) for path in run.data]
        for reader in readers:
            _ = reader.info  # a missing dataset is told before anything is written
        before = None
        if (run.out / 'config.json').exists():
            self.transform = run_state.read_transform(run.out)
        elif run.init is not None and run.init.is_dir():
            before = read_source(run.init)[1]
            self.transform = grown(before, dataset_words(readers))
        else:
            self.transform = new_transform(config, readers)
        things = thing_names(readers)
        samples = [build_samples(reader, self.transform, things) for reader in readers]
        self.batches = BatchMaker(
            join(samples, self.transform.config.ids.pad),
            [open_frames(reader, self.transform) for reader in readers], self.transform, config,
            things, run.weights)
        torch.manual_seed(config.seed)
        self.model = HybridDecoder(self.transform.config)
        spans = ordinal_groups(self.transform.tokenizer)
        pointing = config.pointing_weight > 0.0 and _some_can_point(readers)
        objective = Objective(self.model, config, spans, len(self.batches.things), pointing)
        optimizer = _optimizer(objective, config)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.average.to(self.accelerator.device)
        self.step, self.seconds = 0, 0.0
        state = run_state.load_checkpoint(run.out, objective, self.average, optimizer)
        if state is not None:
            self.step, self.seconds = state['step'], state['seconds']
            if SftConfig.from_dict(state['config']) != config:
                raise UserError(f'{run.out}: begun with another config; use a new --out')
        elif run.init is not None:
            if run.init.is_dir():
                begin_with(self.model, self.transform.tokenizer, run.init)
            else:
                load_weights(self.model, run.init)
            self.average.load_state_dict(self.model.state_dict())
        # A policy that goes on in scenes with words it did not know must look at them first.
        self.fresh = state is None and (
            run.init is None or (before is not None and before is not self.transform))
        if run.compile:
            for name in ('run', 'run_watched', 'encode_images'):
                setattr(self.model, name, torch.compile(getattr(self.model, name), dynamic=False))
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self._averaged = Objective(self.average, config, spans, pointing=pointing)
        self._averaged.head = objective.head

    def prepare(self) -> None:
        """Give a run from scratch its first lessons, and keep their result."""
        if self.fresh and self.batches.things:
            objective = self.accelerator.unwrap_model(self.objective)
            teach_eye(objective, self.batches, self.config, self.accelerator)
            teach_telling(objective, self.batches, self.config, self.accelerator)
            self.average.load_state_dict(self.model.state_dict())
            self.save()

    def train_step(self, batch: Batch) -> LossReport:
        """Take one optimizer step and return its losses."""
        progress = self.run.progress(self.step, self.seconds)
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(self.config, self.step, progress)
        report = self.objective(batch.to(self.accelerator.device))
        self.optimizer.zero_grad()
        self.accelerator.backward(report.loss)
        self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        # A young average follows closely; without this the first one is the initialisation.
        keep = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1.0 - keep)
        return report

    @torch.no_grad()
    def validate(self, limit: int = 1024) -> dict[str, float]:
        """Return the averaged model's losses over held-out frames, without noise."""
        frames = self.batches.validation
        frames = frames[np.linspace(0, len(frames) - 1, min(limit, len(frames))).astype(int)]
        size = self.config.batch_size
        sums = dict.fromkeys(METRICS, 0.0)
        for k in range(0, len(frames), size):
            batch = self.batches.plain(frames[k:k + size]).to(self.accelerator.device)
            with self.accelerator.autocast():
                report = self._averaged(batch)
            for name in METRICS:
                sums[name] += float(getattr(report, name)) * len(batch.action_start) / len(frames)
        return {name: value for name, value in sums.items() if not math.isnan(value)}

    def save(self) -> None:
        """Write the checkpoint and, for export, the averaged weights."""
        if not self.accelerator.is_main_process:
            return
        run_state.write_transform(self.run.out, self.transform)
        save_weights(self.average, self.run.out / run_state.WEIGHTS)
        run_state.save_checkpoint(
            self.run.out, self.accelerator.unwrap_model(self.objective), self.average,
            self.optimizer.optimizer,
            {'step': self.step, 'seconds': self.seconds, 'config': self.config.to_dict()})


def _drawn(trainer: Trainer) -> Iterator[Batch]:
    """Yield the batches from the present step on, each made while the one before is learnt."""
    rank = trainer.accelerator.process_index
    with ThreadPoolExecutor(1) as pool:
        step = trainer.step
        coming = pool.submit(trainer.batches.train, step, rank)
        while True:
            step += 1
            batch, coming = coming.result(), pool.submit(trainer.batches.train, step, rank)
            yield batch


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them, so that the state is saved."""
    asked: list[int] = []
    before = {s: signal.signal(s, lambda number, _: asked.append(number))
              for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_sft(config: SftConfig, run: SftRun) -> dict[str, Any]:
    """Train until the time or the steps are over; return the last evaluation.

    The run folder holds the averaged weights with config, tokenizer and statistics (what
    ``dtvla export`` reads), a checkpoint to go on from, and TensorBoard logs. Repeating the
    command goes on. Ctrl-C saves first.
    """
    trainer = Trainer(config, run)
    trainer.prepare()
    main = trainer.accelerator.is_main_process
    rollouts = Rollouts(trainer.transform, run.suite, run.episodes) if run.episodes else None
    writer = SummaryWriter(run.out / 'tensorboard', purge_step=trainer.step) if main else None
    shown = dict.fromkeys(METRICS, math.nan)
    last: dict[str, float] = {}
    first = trainer.step

    def evaluate() -> dict[str, float]:
        values = trainer.validate() if len(trainer.batches.validation) else {}
        if rollouts is not None:
            values['success'] = rollouts.success(trainer.average)
        for name, value in values.items():
            if writer is not None:
                writer.add_scalar(f'validation/{name}', value, trainer.step)
        tqdm.write(f'step {trainer.step}, {trainer.seconds / 60:.1f} min: ' + ', '.join(
            f'{name} {value:.3f}' for name, value in values.items()))
        return values

    def shares(every: float) -> int:
        return int(trainer.seconds / (60.0 * every))

    with _asked_to_stop() as asked, tqdm(
            total=1.0, disable=not main, bar_format='{l_bar}{bar}| {elapsed}{postfix}') as bar:
        for batch in _drawn(trainer):
            if asked or run.progress(trainer.step, trainer.seconds) >= 1.0:
                break
            begun = time.perf_counter()
            evaluated, saved = shares(run.evaluate_every), shares(run.checkpoint_every)
            report = trainer.train_step(batch)
            for name in METRICS:
                value = float(getattr(report, name).detach())
                blend = SMOOTHING if trainer.step - first > 1 else 0.0
                shown[name] = value if not blend else blend * shown[name] + (1 - blend) * value
            if not math.isfinite(shown['loss']):
                raise UserError(f'the loss is {shown["loss"]} at step {trainer.step}; lower '
                                'learning_rate and start anew')
            trainer.seconds += time.perf_counter() - begun
            if not main:
                continue
            speed = config.batch_size * (trainer.step - first)
            bar.n = min(run.progress(trainer.step, trainer.seconds), 1.0)
            bar.set_postfix(
                step=trainer.step, thought=f'{shown["thought"]:.3f}',
                action=f'{shown["action"]:.3f}', places=f'{shown["places"]:.2f}',
                rate=f'{speed / max(bar.format_dict["elapsed"], 1e-9):.0f}/s',
                **({'success': f'{last["success"]:.0%}'} if 'success' in last else {}))
            if writer is not None and trainer.step % 20 == 0:
                for name, value in shown.items():
                    if not math.isnan(value):
                        writer.add_scalar(f'train/{name}', value, trainer.step)
            if shares(run.evaluate_every) > evaluated:
                last = evaluate()
            if shares(run.checkpoint_every) > saved:
                trainer.save()
        trainer.save()
        if main and not asked:
            last = evaluate()
    if writer is not None:
        writer.close()
    if asked:
        raise KeyboardInterrupt
    return last
