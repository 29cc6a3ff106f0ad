"""Supervised fine-tuning: from demonstrations to a policy that thinks and acts."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dtvla_ros.errors import UserError
from dtvla_ros.training import ranks
from dtvla_ros.training.auxiliary.stages import SMOOTHING
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.data_loader import ahead
from dtvla_ros.training.plan import SftRun, learning_rate
from dtvla_ros.training.rollout import Rollouts
from dtvla_ros.training.trainer import METRICS, Trainer

__all__ = ['SftRun', 'Trainer', 'learning_rate', 'train_sft']


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
    sharded = ranks.is_sharded(trainer.accelerator)
    samples = config.batch_size * config.accumulate * trainer.accelerator.num_processes
    if main:
        tqdm.write(f'{trainer.batches.padding():.1%} of all rows are padding')
    rollouts = Rollouts(trainer.transform, run.suite, run.episodes) if run.episodes else None
    writer = SummaryWriter(run.out / 'tensorboard', purge_step=trainer.step) if main else None
    shown = dict.fromkeys(METRICS, math.nan)
    last: dict[str, float] = {}
    first = trainer.step

    def evaluate() -> dict[str, float]:
        values = trainer.validate() if len(trainer.batches.validation) else {}
        if rollouts is not None:
            with trainer.resting() as policy:
                values['success'] = rollouts.success(policy)
        for name, value in values.items():
            if writer is not None:
                writer.add_scalar(f'validation/{name}', value, trainer.step)
        if main:
            tqdm.write(f'step {trainer.step}, {trainer.seconds / 60:.1f} min: ' + ', '.join(
                f'{name} {value:.3f}' for name, value in values.items()))
        return values

    def shares(every: float) -> int:
        return int(trainer.seconds / (60.0 * every))

    with _asked_to_stop() as asked, tqdm(
            total=1.0, disable=not main, bar_format='{l_bar}{bar}| {elapsed}{postfix}') as bar:
        stop = False
        for batches in ahead(trainer.draw, trainer.step, run.loaders,
                             trainer.accelerator.device):
            if stop or run.progress(trainer.step, trainer.seconds) >= 1.0:
                break
            begun = time.perf_counter()
            evaluated, saved = shares(run.evaluate_every), shares(run.checkpoint_every)
            report = trainer.train_step(*batches)
            for name, value in zip(METRICS, report.numbers(), strict=True):
                blend = SMOOTHING if trainer.step - first > 1 else 0.0
                shown[name] = value if not blend else blend * shown[name] + (1 - blend) * value
            if not math.isfinite(shown['loss']):
                raise UserError(f'the loss is {shown["loss"]} at step {trainer.step}; lower '
                                'learning_rate and start anew')
            # One clock and one will, or the processes would wait for each other for ever.
            spent, stopping = ranks.mean(
                trainer.accelerator, [time.perf_counter() - begun, float(bool(asked))])
            trainer.seconds += spent
            stop = stopping > 0.0
            if main:
                speed = samples * (trainer.step - first)
                bar.n = min(run.progress(trainer.step, trainer.seconds), 1.0)
                bar.set_postfix(
                    step=trainer.step, thought=f'{shown["thought"]:.3f}',
                    action=f'{shown["action"]:.3f}', places=f'{shown["places"]:.2f}',
                    rate=f'{speed / max(bar.format_dict["elapsed"], 1e-9):.3g}/s',
                    **({'success': f'{last["success"]:.0%}'} if 'success' in last else {}))
            if writer is not None and trainer.step % 20 == 0:
                for name, value in shown.items():
                    if not math.isnan(value):
                        writer.add_scalar(f'train/{name}', value, trainer.step)
            if shares(run.evaluate_every) > evaluated and (main or sharded):
                last = evaluate()
            if shares(run.checkpoint_every) > saved:
                trainer.save()
        trainer.save()
        if not stop and (main or sharded):
            last = evaluate()
        trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # gloo may spin for ever in a process that just ends
    if writer is not None:
        writer.close()
    if stop:
        raise KeyboardInterrupt
    return last
