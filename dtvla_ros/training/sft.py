"""Supervised fine-tuning: from demonstrations to a policy that thinks and acts.

Reads top to bottom: data, model, optimizer, loop. A sample's way to its loss: ``data`` (tokens
and frames), ``collate`` (a batch), ``trainer`` (a step), ``policy.model`` (the forward pass),
``loss``.
"""

from __future__ import annotations

import copy
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import dtvla_sim
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import ActionContract
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.rollout.batched import BatchedRollouts, successes
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.rollout.workers import open_envs
from dtvla_ros.training.auxiliary.localisation import (
    SMOOTHING,
    AttentionLoss,
    LocalisationLoss,
)
from dtvla_ros.training.checkpoint import load_checkpoint, reshard
from dtvla_ros.training.collate import Collator, prefetch
from dtvla_ros.training.config import SELECTION_SEEDS, SftConfig, SftRun
from dtvla_ros.training.data import (
    concatenate,
    has_points,
    location_spans,
    object_names,
    open_frames,
    tokenize,
)
from dtvla_ros.training.initialisation import copy_weights, initialise
from dtvla_ros.training.lora import add_adapters
from dtvla_ros.training.loss import AuxiliaryLoss, Objective
from dtvla_ros.training.trainer import (
    Trainer,
    check_sharded,
    freeze,
    is_sharded,
    new_optimizer,
    recompute_layers,
)

LOG = logging.getLogger(__name__)
SIMULATORS = 2  # processes that run held-out episodes


def build_trainer(config: SftConfig, run: SftRun) -> Trainer:
    """Return a run at its first step, or where its last checkpoint left it."""
    if run.threads:
        torch.set_num_threads(run.threads)
    accelerator = Accelerator(mixed_precision=config.precision)
    check_sharded(accelerator, config, run)

    readers = [DatasetReader(path) for path in run.data]
    for reader in readers:
        _ = reader.info  # a missing dataset is told before anything is written
    start = initialise(config, run, readers)
    transform = start.transform
    spans = location_spans(transform.tokenizer)
    objects = object_names(readers) if spans else ()
    tokenized = [tokenize(reader, transform, objects) for reader in readers]
    with accelerator.main_process_first():
        frames = [open_frames(reader, transform) for reader in readers]
    batches = Collator(
        concatenate(tokenized, transform.config.ids.pad), frames, transform, config, objects,
        run.weights, config.accumulate * accelerator.num_processes)

    torch.manual_seed(config.seed)
    model = start.model or HybridDecoder(transform.config)
    if config.lora.rank:
        add_adapters(model, config.lora)
    average = model
    if config.ema:
        average = copy.deepcopy(model).requires_grad_(False).eval().to(accelerator.device)
    weights = config.auxiliary
    attending = weights.attention_weight > 0.0 and bool(spans) and _have_points(readers)
    auxiliary: dict[str, AuxiliaryLoss] = {}
    if objects:
        auxiliary['localisation'] = LocalisationLoss(
            weights.localisation_weight, transform.config, len(objects), config.place_sigma)

    def objective_of(model: HybridDecoder) -> Objective:
        attention = {'attention': AttentionLoss(
            weights.attention_weight, spans, model, weights.attention_layer)} if attending else {}
        return Objective(model, config, spans, auxiliary | attention)

    objective = objective_of(model)
    frozen = freeze(objective, config)
    optimizer = new_optimizer(objective, config)
    if config.checkpointing:
        recompute_layers(model)
    state = load_checkpoint(
        run.out, objective, average if config.ema else None, optimizer, frozen)
    if state is not None and SftConfig.from_dict(state['config']) != config:
        raise UserError(f'{run.out}: begun with another config; use a new --out')
    if state is None and run.init is not None and start.model is None:
        copy_weights(model, transform.tokenizer, run.init)
        average.load_state_dict(model.state_dict())
    if run.compile:
        for name in ('run', 'encode_images'):
            setattr(model, name, torch.compile(getattr(model, name), dynamic=False))

    slots = [optimizer.state.get(p, {}) for g in optimizer.param_groups for p in g['params']]
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    if is_sharded(accelerator):
        reshard(optimizer.optimizer, slots)
    return Trainer(
        config, run, accelerator, transform, start.origin, batches, model, average, prepared,
        objective_of(average) if config.ema else accelerator.unwrap_model(prepared), optimizer,
        # A policy that goes on in scenes with words it did not know localises their objects first.
        frozen, fresh=state is None and (run.init is None or start.new_words),
        step=state['step'] if state else 0, seconds=state['seconds'] if state else 0.0)


def _have_points(readers: Sequence[DatasetReader]) -> bool:
    """Return whether any dataset has them; warn of those that do not."""
    lacking = [str(reader.root) for reader in readers if not has_points(reader)]
    if lacking:
        LOG.warning('%s: without %s attention is not supervised; collect again to have it',
                    ', '.join(lacking), layout.POINTS)
    return len(lacking) < len(readers)


def train_sft(config: SftConfig, run: SftRun) -> dict[str, float]:
    """Train until the time or the steps are over; return the last evaluation.

    The run folder holds the averaged weights with config, tokenizer and statistics (what
    ``dtvla export`` reads), a checkpoint to go on from, and TensorBoard logs. Repeating the
    command goes on. Ctrl-C saves first.
    """
    trainer = build_trainer(config, run)
    trainer.pretrain()
    accelerator = trainer.accelerator
    main, sharded = accelerator.is_main_process, is_sharded(accelerator)
    samples = config.batch_size * config.accumulate * accelerator.num_processes
    if main:
        tqdm.write(f'{trainer.batches.padding():.1%} of all rows are padding')
    success = held_out_success(trainer.transform, run) if run.episodes else None
    writer = SummaryWriter(run.out / 'tensorboard', purge_step=trainer.step) if main else None
    shown: dict[str, float] = {}
    last: dict[str, float] = {}
    first = trainer.step

    def evaluate() -> dict[str, float]:
        values = trainer.validate() if len(trainer.batches.validation) else {}
        if success is not None:
            with trainer.evaluating() as model:
                values['success'] = success(model)
        for name, value in values.items():
            if writer is not None:
                writer.add_scalar(f'validation/{name}', value, trainer.step)
        if main:
            tqdm.write(f'step {trainer.step}, {trainer.seconds / 60:.1f} min: ' + ', '.join(
                f'{name} {value:.3f}' for name, value in values.items()))
        return values

    def periods(minutes: float) -> int:
        return int(trainer.seconds / (60.0 * minutes))

    with _stop_signals() as received, tqdm(
            total=1.0, disable=not main, bar_format='{l_bar}{bar}| {elapsed}{postfix}') as bar:
        stop = False
        for batches in prefetch(trainer.draw, trainer.step, run.loaders, accelerator.device):
            if stop or run.progress(trainer.step, trainer.seconds) >= 1.0:
                break
            begun = time.perf_counter()
            evaluated, saved = periods(run.evaluate_every), periods(run.checkpoint_every)
            metrics = trainer.train_step(*batches)
            values = torch.stack([v.float() for v in metrics.values()]).tolist()  # one wait
            for name, value in zip(metrics, values, strict=True):
                blend = SMOOTHING if trainer.step - first > 1 else 0.0
                shown[name] = value if not blend else blend * shown[name] + (1 - blend) * value
            if not math.isfinite(shown['loss']):
                raise UserError(f'the loss is {shown["loss"]} at step {trainer.step}; lower '
                                'learning_rate and start anew')
            # All processes must agree on time and stop, or their collectives deadlock.
            spent, stopping = accelerator.reduce(torch.tensor(
                [time.perf_counter() - begun, float(bool(received))],
                device=accelerator.device), 'mean').tolist()
            trainer.seconds += spent
            stop = stopping > 0.0
            if main:
                speed = samples * (trainer.step - first)
                bar.n = min(run.progress(trainer.step, trainer.seconds), 1.0)
                bar.set_postfix(
                    step=trainer.step, thought=f'{shown["thought"]:.3f}',
                    action=f'{shown["action"]:.3f}', locations=f'{shown["locations"]:.2f}',
                    rate=f'{speed / max(bar.format_dict["elapsed"], 1e-9):.3g}/s',
                    **({'success': f'{last["success"]:.0%}'} if 'success' in last else {}))
            if writer is not None and trainer.step % 20 == 0:
                for name, value in shown.items():
                    if not math.isnan(value):
                        writer.add_scalar(f'train/{name}', value, trainer.step)
            if periods(run.evaluate_every) > evaluated and (main or sharded):
                last = evaluate()
            if periods(run.checkpoint_every) > saved:
                trainer.save()
        trainer.save()
        if not stop and (main or sharded):
            last = evaluate()
        accelerator.wait_for_everyone()
    accelerator.end_training()  # gloo may spin for ever in a process that just ends
    if writer is not None:
        writer.close()
    if stop:
        raise KeyboardInterrupt
    return last


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them, so that the state is saved."""
    received: list[int] = []
    before = {s: signal.signal(s, lambda number, _: received.append(number))
              for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def held_out_success(
    transform: PolicyTransform, run: SftRun,
) -> Callable[[HybridDecoder], float]:
    """Return a function that runs ``run.episodes`` per task and returns the share of successes.

    On start states no demonstration and no report uses, in simulators that live as long as the
    training.
    """
    envs = open_envs(SceneSetup(
        run.suite, image_size=transform.config.vision.image_size), SIMULATORS)
    first = dtvla_sim.EVAL_SEED_START + SELECTION_SEEDS
    jobs = [EpisodeJob(task, first + k, ActionContract().replan_steps)
            for task in envs.info.tasks for k in range(run.episodes)]

    def success(model: HybridDecoder) -> float:
        found = successes(BatchedRollouts(envs), BatchSampler(model, transform), jobs)
        return sum(found) / len(found)

    return success
