"""Supervised fine-tuning: from demonstrations to a policy that thinks and acts.

Reads top to bottom. A sample's way to its loss: ``data`` (tokens and frames), ``collate`` (a
batch), ``trainer`` (a step), ``policy.model`` (the forward pass), ``loss``.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import mean

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import dtvla_sim
from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import ActionContract
from dtvla_ros.rollout.batched import BatchedRollouts, successes
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.rollout.workers import open_envs
from dtvla_ros.training.auxiliary.localisation import SMOOTHING
from dtvla_ros.training.collate import prefetch
from dtvla_ros.training.config import SELECTION_SEEDS, SftConfig, SftRun
from dtvla_ros.training.trainer import Trainer

SIMULATORS = 2  # processes that run held-out episodes


def train_sft(config: SftConfig, run: SftRun) -> dict[str, float]:
    """Train until the time or the steps are over; return the last evaluation.

    The run folder holds the averaged weights and what ``dtvla export`` reads beside them, a
    checkpoint, and TensorBoard logs. Repeating the command goes on. Ctrl-C saves first.
    """
    trainer = Trainer(config, run)
    trainer.pretrain()
    accelerator = trainer.accelerator
    main = accelerator.is_main_process
    if main:
        tqdm.write(f'{trainer.batches.padding():.1%} of all rows are padding')
    if run.episodes:
        envs = open_envs(SceneSetup(
            run.suite, image_size=trainer.transform.config.vision.image_size), SIMULATORS)
        # Start states that no demonstration and no report uses.
        jobs = [EpisodeJob(task, dtvla_sim.EVAL_SEED_START + SELECTION_SEEDS + k,
                           ActionContract().replan_steps)
                for task in envs.info.tasks for k in range(run.episodes)]
    writer = SummaryWriter(run.out / 'tensorboard', purge_step=trainer.step) if main else None
    shown: dict[str, float] = {}
    last: dict[str, float] = {}
    first, before, stop = trainer.step, 0.0, False

    def log(kind: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if writer is not None and not math.isnan(value):
                writer.add_scalar(f'{kind}/{name}', value, trainer.step)

    def evaluate() -> dict[str, float]:
        if not (main or trainer.sharded):
            return {}
        values = trainer.validate() if len(trainer.batches.validation) else {}
        if run.episodes:
            sampler = BatchSampler(trainer.average.eval(), trainer.transform)
            values['success'] = mean(successes(BatchedRollouts(envs), sampler, jobs))
        log('validation', values)
        if main:
            tqdm.write(f'step {trainer.step}, {trainer.seconds / 60:.1f} min: ' + ', '.join(
                f'{name} {value:.3f}' for name, value in values.items()))
        return values

    def due(minutes: float) -> bool:
        return trainer.seconds // (60.0 * minutes) > before // (60.0 * minutes)

    with _stop_signals() as received, tqdm(
            total=1.0, disable=not main, bar_format='{l_bar}{bar}| {elapsed}{postfix}') as bar:
        for batches in prefetch(trainer.draw, trainer.step, run.loaders, accelerator.device):
            if stop or run.progress(trainer.step, trainer.seconds) >= 1.0:
                break
            begun, before = time.perf_counter(), trainer.seconds
            metrics = trainer.train_step(*batches)
            values = torch.stack([v.float() for v in metrics.values()]).tolist()  # one wait
            for name, value in zip(metrics, values, strict=True):
                shown[name] = SMOOTHING * shown.get(name, value) + (1 - SMOOTHING) * value
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
                speed = (trainer.step - first) * config.batch_size * config.accumulate
                speed *= accelerator.num_processes / max(bar.format_dict['elapsed'], 1e-9)
                bar.n = min(run.progress(trainer.step, trainer.seconds), 1.0)
                bar.set_postfix(
                    step=trainer.step, rate=f'{speed:.3g}/s',
                    **{k: f'{shown[k]:.3f}' for k in ('thought', 'action', 'locations')},
                    **{k: f'{v:.0%}' for k, v in last.items() if k == 'success'})
            if trainer.step % 20 == 0:
                log('train', shown)
            if due(run.evaluate_every):
                last = evaluate()
            if due(run.checkpoint_every):
                trainer.save()
        trainer.save()
        if not stop:
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
