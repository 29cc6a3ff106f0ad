"""Turns finished episodes into rates with intervals, and tables."""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from rich.table import Table

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.report import MISHEARD
from dtvla_ros.policy.completion import AFTER_SUCCESS
from dtvla_ros.policy.confidence import Calibration
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_sim import CALIBRATION_SEED_START, EVAL_SEED_START

PACKAGES = ('dtvla_ros', 'numpy', 'mujoco', 'robosuite', 'hf-libero', 'bddl', 'gymnasium',
            'onnxruntime', 'tokenizers', 'torch', 'transformers', 'ros-rclpy', 'rosbags')


def evaluation_seed(seed: int | None) -> int:
    """Return ``seed``, None: the first for evaluation; raises UserError for others' seeds."""
    if seed is None:
        return EVAL_SEED_START
    if seed < EVAL_SEED_START:
        raise UserError(f'seed {seed}: start states below {EVAL_SEED_START} belong to the '
                        f'demonstrations; use {EVAL_SEED_START} or more')
    if seed >= CALIBRATION_SEED_START:
        raise UserError(f'seed {seed}: start states from {CALIBRATION_SEED_START} on are kept for '
                        f'dtvla calibrate; use {EVAL_SEED_START} or more')
    return seed


@dataclass(frozen=True, slots=True)
class Rate:
    """A success rate and how well it is known."""

    successes: int
    n: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Rate:
        outcomes = list(outcomes)
        return cls(sum(outcomes), len(outcomes))

    @property
    def value(self) -> float:
        """The rate, not a number where there are no episodes."""
        return self.successes / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval, (0, 1) for n = 0; ValueError for impossible counts."""
        from scipy.stats import binomtest

        if self.n == 0:
            return 0.0, 1.0
        low, high = binomtest(self.successes, self.n).proportion_ci(method='wilson')
        return float(low), float(high)

    @property
    def counts(self) -> str:
        """Both counts, in brackets Wilson's interval."""
        low, high = self.interval
        return f'{self.successes}/{self.n} ({low:.0%} - {high:.0%})'

    def __str__(self) -> str:
        counts, _, interval = self.counts.partition(' (')
        return f'{self.value:.0%} ({counts}, {interval}' if self.n else '-'

    def to_dict(self) -> dict[str, float | int | list[float]]:
        return {'successes': self.successes, 'n': self.n,
                'rate': round(self.value, 4) if self.n else 0.0,
                'wilson95': [round(end, 4) for end in self.interval]}


def latency_summary(samples: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return median, p95 and p99 [ms] of the samples [s] of every phase."""
    return {phase: {**{f'p{q}_ms': round(float(np.percentile(values, q)) * 1e3, 3)
                       for q in (50, 95, 99)}, 'n': len(values)}
            for phase, values in samples.items() if len(values)}


def versions() -> dict[str, str]:
    """Return what produced a result: Python, machine and the packages that are installed."""
    found = {'python': platform.python_version(), 'machine': platform.machine()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def summarise(results: Sequence[EpisodeResult], tasks: Sequence[str],
              calibration: Calibration | None = None) -> dict[str, Any]:
    """Return success by task and in total, latency by phase and how many were truncated.

    With the policy's ``calibration`` an episode has the confidence of each decision.
    """
    by_task: dict[str, Any] = {}
    for task in tasks:
        steps = [r.steps for r in results if r.task == task and r.success]
        by_task[task] = Rate.of(r.success for r in results if r.task == task).to_dict() | {
            'mean_steps_of_successes': round(sum(steps) / len(steps), 1) if steps else None}
    latency: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for phase, values in result.latency.items():
            latency[phase] += values
    ordered = sorted(results, key=lambda r: (tasks.index(r.task), r.seed))
    return {'tasks': by_task, 'total': Rate.of(r.success for r in results).to_dict(),
            'latency': latency_summary(latency), 'decisions': sum(r.decisions for r in results),
            'refused': refused(results), 'cut_thoughts': sum(r.truncated for r in results),
            'episodes': [{'task': r.task, 'seed': r.seed, 'success': r.success, 'steps': r.steps,
                          'commands': r.commands, **(
                              {} if r.said_done is None else
                              {'said_done': r.said_done, 'too_early': r.too_early}), **(
                              {} if not r.said else
                              {'said': r.said, 'understood': r.understood, 'refused': r.refused}),
                          **({'confidence': told} if calibration and (
                              told := confidences(r, calibration)) else {})}
                         for r in ordered]}


def confidences(result: EpisodeResult, calibration: Calibration) -> list[float]:
    """Return the confidence of every decision of an episode, [] where its features are unknown."""
    rows = [dict(zip(result.certainty, row)) for row in zip(*result.certainty.values())]
    told = [calibration.confidence(row) for row in rows]
    return [round(value, 4) for value in told if value is not None]


def said_done(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return how often done was said in time, of all successes, and too early, of all episodes.

    Both as [count, n], with Wilson's 95 % interval of each.
    """
    rates = {
        'within_1_s': Rate.of(
            r.said_done is not None and not r.too_early and r.said_done - r.steps <= AFTER_SUCCESS
            for r in results if r.success),
        'without_success': Rate.of(r.too_early for r in results)}
    return {**{name: [rate.successes, rate.n] for name, rate in rates.items()}, 'wilson95': {
        name: rate.to_dict()['wilson95'] for name, rate in rates.items()}}


def told_done(done: Mapping[str, Any]) -> str:
    """Return ``said_done`` as a sentence."""
    in_time, early = (Rate(*done[name]) for name in ('within_1_s', 'without_success'))
    return (f'done was said within 1 s of success in {in_time.counts} successes, without success '
            f'in {early.counts} episodes')


def refused(results: Sequence[EpisodeResult]) -> int:
    """Return how many episodes the policy began with nothing: it did not take the sentence."""
    return sum(not r.steps and r.said_done is None for r in results)


def counted(row: Mapping[str, Any]) -> str:
    """Return both counts of ``Rate.to_dict`` as a sentence has them."""
    return f'{row["successes"]} of {row["n"]}'


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]],
                total: Sequence[str] = (), names: int = 1) -> Table:
    """Return what rich prints: the first ``names`` columns at the left, numbers at the right."""
    view = Table(title=title, title_justify='left')
    for k, column in enumerate(columns):
        view.add_column(column, justify='left' if k < names else 'right', overflow='fold')
    for row in rows:
        view.add_row(*row)
    if total:
        view.add_section()
        view.add_row(*total)
    return view


def rate_cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return share, n and interval of ``Rate.to_dict`` as a table has them."""
    low, high = row['wilson95']
    return f'{row["rate"]:.0%}' if row['n'] else '-', str(row['n']), f'{low:.0%} - {high:.0%}'


def table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return the success table as rich prints it."""
    misheard = [name for name in MISHEARD if name in summary['total']]

    def cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
        steps = row.get('mean_steps_of_successes')
        shown = name.replace('_', ' ') if misheard else name
        return (shown, *rate_cells(row), f'{steps:.0f}' if steps else '',
                *(str(row[outcome]) for outcome in misheard))

    return plain_table(
        title, ('task', 'success', 'n', 'Wilson 95 %', 'steps', *misheard),
        [cells(*item) for item in summary['tasks'].items()], cells('total', summary['total']))
