"""Supervised fine-tuning: from demonstrations to a policy that thinks and acts.

Reads top to bottom. A sample's way to its loss: ``data`` (tokens and frames), ``collate`` (a
batch), ``trainer`` (a step), ``policy.model`` (the forward pass), ``loss``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from itertools import takewhile
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import dtvla_sim
from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.files import writing
from dtvla_ros.interrupt import Stop, finishing
from dtvla_ros.rollout.batched import BatchedRollouts, Rollout
from dtvla_ros.rollout.env import SceneSetup, require_contract
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.rollout.workers import open_envs
from dtvla_ros.training.auxiliary.localisation import SMOOTHING
from dtvla_ros.training.collate import prefetch
from dtvla_ros.training.config import SELECTION_SEEDS, SftConfig, SftRun
from dtvla_ros.training.trainer import Trainer

SIMULATORS = 2  # processes that run held-out episodes
VALIDATED = 1024  # held-out frames whose losses are taken, at most
EPISODE_SECONDS = 20.0  # that are kept for each of the last evaluation
EVALUATION_SHARE = 0.2  # of a run's minutes that are kept for it, at most


class HeldOut:
    """Episodes from start states that no demonstration and no report uses."""

    def __init__(self, run: SftRun, trainer: Trainer):
        self._trainer = trainer
        self.envs = open_envs(SceneSetup(
            run.suite, image_size=trainer.transform.config.vision.image_size), SIMULATORS)
        try:
            require_contract(trainer.transform, str(run.out), self.envs.info)
        except UserError as error:
            raise UserError(f'{error}, or --eval-episodes 0') from None
        self.jobs = [EpisodeJob(task, dtvla_sim.EVAL_SEED_START + SELECTION_SEEDS + k,
                                trainer.transform.contract.replan_steps)
                     for task in self.envs.info.tasks for k in range(run.episodes)]

    def success(self, until: float = math.inf) -> dict[str, float]:
        """Return the averaged policy's ``success`` rate; none if it was not even played once.

        Past ``until``, as of ``perf_counter``, nothing more is decided: what counts are the
        first episodes up to one that had not ended.
        """
        sampler = BatchSampler(self._trainer.average.eval(), self._trainer.transform)
        ended: dict[int, bool] = {}

        def infer(*arguments: Any) -> Any:
            if time.perf_counter() > until:
                raise TimeoutError
            return sampler.infer(*arguments)

        rest = iter([Rollout(job, (k,)) for k, job in enumerate(self.jobs)])
        with suppress(TimeoutError):
            BatchedRollouts(self.envs).run(
                SimpleNamespace(infer=infer), lambda: next(rest, None),
                lambda episode, result: ended.update({episode.rollout.key[0]: result.success}))
        whole = [ended[k] for k in takewhile(ended.__contains__, range(len(self.jobs)))]
        return {'success': mean(whole)} if whole else {}


def train_sft(config: SftConfig, run: SftRun) -> dict[str, float]:
    """Train until the time or the steps are over; return the last evaluation.

    The run folder holds the averaged weights and what ``dtvla export`` reads beside them, a
    checkpoint, and TensorBoard logs. Repeating the command goes on. Ctrl-C and SIGTERM let the
    step at hand end and save: KeyboardInterrupt, which says where.
    """
    trainer = Trainer(config, run)
    accelerator, clock = trainer.accelerator, trainer.clock
    main = accelerator.is_main_process
    last: dict[str, float] = {}
    with ExitStack() as stack:
        held_out = None
        if run.episodes and main:
            held_out = HeldOut(run, trainer)
            stack.enter_context(closing(held_out.envs))
        _plan(trainer, held_out)
        with finishing('the running step, then saving') as clock.stop:
            trainer.pretrain()
            if not clock.stopped:
                last = _fine_tune(trainer, held_out, clock.stop)
        accelerator.wait_for_everyone()
    accelerator.end_training()  # gloo may spin for ever in a process that just ends
    if clock.stopped:
        stage = trainer.stages()
        where = f'step {trainer.pretraining.step} of {stage[0].title}' if (
            trainer.pretraining) else f'step {trainer.step}'
        raise KeyboardInterrupt(f'{run.out}: saved at {where}, {clock.seconds / 60.0:.1f} min; '
                                'repeat the command to go on' if main else '')
    return last


def _plan(trainer: Trainer, held_out: HeldOut | None) -> None:
    """Time the run's parts and print the plan."""
    run, accelerator = trainer.run, trainer.accelerator
    trainer.measure()
    batches = -(-min(len(trainer.batches.validation), VALIDATED) // trainer.config.batch_size)
    seconds = batches * trainer.costs[-1] / 3.0  # a forward pass is about a third of a step
    if held_out is not None:
        seconds += min(EPISODE_SECONDS * len(held_out.jobs),
                       EVALUATION_SHARE * 60.0 * (run.minutes or math.inf))
    trainer.reserve = float(accelerator.reduce(torch.tensor(
        seconds * accelerator.is_main_process, device=accelerator.device), 'sum'))
    trainer.clock.lap()
    if accelerator.is_main_process:
        tqdm.write(f'{trainer.batches.padding():.1%} of all rows are padding')
        tqdm.write(describe(trainer, f'losses, and {len(held_out.jobs)} held-out episodes'
                            if held_out is not None else 'losses'))


def describe(trainer: Trainer, evaluation: str = '') -> str:
    """Return the plan of a run whose trainer has measured: parts, steps and minutes.

    ``evaluation``: what its end evaluates; ``trainer.reserve`` is how long that takes.
    """
    run, now = trainer.run, trainer.clock.seconds
    *costs, cost = trainer.costs
    allowed = trainer.stage_seconds(now)
    rows: list[tuple[str, str, float]] = []
    for stage, each, limit in zip(trainer.stages(), costs, allowed, strict=True):
        left = stage.steps - (trainer.pretraining.step if trainer.pretraining and not rows else 0)
        seconds = min(left * each, limit)
        cut = f' of {left}, as much as fits' if seconds < left * each else ''
        rows.append((stage.title, f'{round(seconds / each)} steps{cut}', seconds))
    spent = sum(seconds for *_, seconds in rows)
    if run.steps:
        steps = max(run.steps - trainer.step, 0)
    else:
        rest = 60.0 * (run.minutes or 0.0) - now - spent - trainer.reserve
        steps = max(round(rest / cost), 0)
    rows.append(('fine-tuning', f'{steps} steps', steps * cost))
    if evaluation:
        rows.append(('evaluation', evaluation, trainer.reserve))
    whole = (f'{run.minutes:g} minutes, {now / 60.0:.1f} of them gone' if run.minutes else
             f'about {sum(seconds for *_, seconds in rows) / 60.0:.1f} minutes')
    return '\n'.join([f'{run.out}: {whole}', *(
        f'  {title:20} {what}, about {seconds / 60.0:.1f} min' for title, what, seconds in rows)])


def _fine_tune(trainer: Trainer, held_out: HeldOut | None, asked: Stop) -> dict[str, float]:
    """Train on the demonstrations until the end or a stop, and save; return the evaluation."""
    config, run, clock = trainer.config, trainer.run, trainer.clock
    accelerator, main = trainer.accelerator, trainer.accelerator.is_main_process
    writer = SummaryWriter(run.out / 'tensorboard', purge_step=trainer.step) if main else None
    shown: dict[str, float] = {}
    last: dict[str, float] = {}
    first = trainer.step

    def log(kind: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if writer is not None and not math.isnan(value):
                with writing(run.out):
                    writer.add_scalar(f'{kind}/{name}', value, trainer.step)

    def evaluate(until: float = math.inf) -> dict[str, float]:
        if not (main or trainer.sharded):
            return {}
        values = trainer.validate(VALIDATED) if len(trainer.batches.validation) else {}
        if held_out is not None:
            try:
                with asked.dropping():
                    values |= held_out.success(until)
            except KeyboardInterrupt:
                if asked.count > 1:
                    raise
                return {}
        log('validation', values)
        if main and (values or held_out is not None):
            tqdm.write(f'step {trainer.step}, {clock.seconds / 60:.1f} min: ' + ', '.join(
                f'{name} {value:.3f}' for name, value in values.items()) + (
                    '; no held-out episode ended within --minutes: dtvla eval plays such'
                    if held_out is not None and 'success' not in values else ''))
        return values

    batches = prefetch(trainer.draw, trainer.step, run.loaders, accelerator.device)
    with closing(batches), tqdm(total=1.0, disable=not main,
                                bar_format='{l_bar}{bar}| {elapsed}{postfix}') as bar:
        while not clock.stopped and (trainer.progress < 1.0 or not trainer.step):
            before = clock.seconds // (60.0 * run.evaluate_every)
            metrics = trainer.train_step(*next(batches))
            values = torch.stack([v.float() for v in metrics.values()]).tolist()  # one wait
            for name, value in zip(metrics, values, strict=True):
                shown[name] = SMOOTHING * shown.get(name, value) + (1 - SMOOTHING) * value
            if not math.isfinite(shown['loss']):
                raise UserError(f'the loss is {shown["loss"]} at step {trainer.step}; lower '
                                'learning_rate and start anew')
            trainer.tick()
            if main:
                speed = (trainer.step - first) * config.batch_size * config.accumulate
                speed *= accelerator.num_processes / max(bar.format_dict['elapsed'], 1e-9)
                bar.n = min(trainer.progress, 1.0)
                bar.set_postfix(
                    step=trainer.step, rate=f'{speed:.3g}/s',
                    **{k: f'{shown[k]:.3f}' for k in ('thought', 'action', 'locations')},
                    **{k: f'{v:.0%}' for k, v in last.items() if k == 'success'})
            if trainer.step % 20 == 0:
                log('train', shown)
            if clock.seconds // (60.0 * run.evaluate_every) > before and not clock.stopped:
                last = evaluate()
        trainer.save()
        if not clock.stopped:
            last = evaluate(math.inf if run.minutes is None else time.perf_counter() + max(
                60.0 * run.minutes - clock.seconds, 0.0))
            clock.lap()
    if writer is not None:
        with writing(run.out):
            writer.close()
    return last
