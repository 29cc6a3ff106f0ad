"""Turns finished episodes into rates with intervals, tables and comparisons."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dtvla_ros.errors import UserError
from dtvla_ros.files import write_between, write_text
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_sim import EVAL_SEED_START, LIBERO_SUITES, SUITES

PACKAGES = (
    'dtvla_ros', 'numpy', 'mujoco', 'robosuite', 'hf-libero', 'bddl', 'gymnasium', 'onnxruntime',
    'tokenizers', 'torch', 'transformers', 'ros-rclpy', 'rosbags',
)
BEGIN, END = '<!-- success table, written by dtvla report -->', '<!-- end of success table -->'
STARTS = ('benchmark', 'random', 'jitter', 'shuffle')
COLUMNS = {
    'full': 'thinks', 'masked': 'empty thought', 'random': 'random thought',
    'swapped': "another task's thought", 'frozen': 'thought kept', 'replay': 'open-loop replay',
}
Results = dict[str, dict[str, Any]]  # by mode
Row = tuple[str, str]  # suite and start distribution


def evaluation_seed(seed: int | None) -> int:
    """Return ``seed``, or the first evaluation seed for None.

    Raises
    ------
    UserError
        If demonstrations may have begun from it.

    """
    first = EVAL_SEED_START
    if seed is None:
        return first
    if seed < first:
        raise UserError(f'seed {seed}: start states below {first} belong to the demonstrations; '
                        f'use {first} or more')
    return seed


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a success rate, (0, 1) for n = 0.

    Raises
    ------
    ValueError
        If not ``0 <= successes <= n``.

    """
    from scipy.stats import binomtest

    if not 0 <= successes <= n:
        raise ValueError(f'{successes} successes of {n} episodes')
    if n == 0:
        return 0.0, 1.0
    low, high = binomtest(successes, n).proportion_ci(method='wilson')
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Rate:
    """A success rate and how well it is known."""

    successes: int
    n: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Rate:
        """Return the rate of some episodes' outcomes."""
        outcomes = list(outcomes)
        return cls(sum(outcomes), len(outcomes))

    @property
    def value(self) -> float:
        """The rate, not a number where there are no episodes."""
        return self.successes / self.n if self.n else math.nan

    def __str__(self) -> str:
        if not self.n:
            return '-'
        low, high = wilson(self.successes, self.n)
        return f'{self.value:.0%} ({self.successes}/{self.n}, {low:.0%} - {high:.0%})'

    def to_dict(self) -> dict[str, float | int | list[float]]:
        """Return what a result's JSON holds of it: both counts, the rate, Wilson's interval."""
        low, high = wilson(self.successes, self.n)
        return {
            'successes': self.successes, 'n': self.n,
            'rate': round(self.value, 4) if self.n else 0.0,
            'wilson95': [round(low, 4), round(high, 4)],
        }


def latency_summary(samples: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return median, p95 and p99 [ms] of the samples [s] of every phase."""
    return {
        phase: {
            'p50_ms': round(float(np.percentile(values, 50)) * 1e3, 3),
            'p95_ms': round(float(np.percentile(values, 95)) * 1e3, 3),
            'p99_ms': round(float(np.percentile(values, 99)) * 1e3, 3),
            'n': len(values),
        }
        for phase, values in samples.items() if len(values)
    }


def versions() -> dict[str, str]:
    """Return what produced a result: Python, machine and the packages that are installed."""
    found = {'python': platform.python_version(), 'machine': platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def summarise(results: Sequence[EpisodeResult], tasks: Sequence[str]) -> dict[str, Any]:
    """Return success by task and in total, latency by phase and how many were truncated."""
    by_task: dict[str, Any] = {}
    for task in tasks:
        mine = [r for r in results if r.task == task]
        steps = [r.steps for r in mine if r.success]
        by_task[task] = Rate.of(r.success for r in mine).to_dict()
        by_task[task]['mean_steps_of_successes'] = (
            round(sum(steps) / len(steps), 1) if steps else None)
    latency: dict[str, list[float]] = {}
    for result in results:
        for phase, values in result.latency.items():
            latency.setdefault(phase, []).extend(values)
    return {
        'tasks': by_task,
        'total': Rate.of(r.success for r in results).to_dict(),
        'latency': latency_summary(latency),
        'decisions': sum(r.decisions for r in results),
        'refused': refused(results),
        'cut_thoughts': sum(r.truncated for r in results),
        'episodes': [
            {'task': r.task, 'seed': r.seed, 'success': r.success, 'steps': r.steps,
             'commands': r.commands}
            for r in sorted(results, key=lambda r: (tasks.index(r.task), r.seed))
        ],
    }


def refused(results: Sequence[EpisodeResult]) -> int:
    """Return how many episodes the policy began with nothing: it did not take the sentence."""
    return sum(not r.steps for r in results)


def table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return the success table as rich prints it."""
    view = Table(title=title, title_justify='left')
    view.add_column('task', overflow='fold')
    for column in ('success', 'n', 'Wilson 95 %', 'steps'):
        view.add_column(column, justify='right')
    for name, row in [*summary['tasks'].items(), ('total', summary['total'])]:
        low, high = row['wilson95']
        steps = row.get('mean_steps_of_successes')
        if name == 'total':
            view.add_section()
        view.add_row(
            name, f'{row["rate"]:.0%}', str(row['n']), f'{low:.0%} - {high:.0%}',
            f'{steps:.0f}' if steps else '')
    return view


def read_results(files: Sequence[Path]) -> dict[Row, Results]:
    """Return results of ``dtvla eval`` by suite and starts, then by mode.

    Raises
    ------
    UserError
        If a file is no such result, two are of one kind, or they are of different policies or
        were measured in different ways.

    """
    rows: dict[Row, Results] = {}
    for file in files:
        try:
            result = json.loads(file.read_text())
            mode = result['mode']
            assert mode in COLUMNS and result['suite'] and result['tasks'] and result['total']
            assert len(result['seeds']) == 2
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f'{file} is not a result of dtvla eval --json') from error
        row = rows.setdefault((result['suite'], str(result.get('starts', ''))), {})
        if mode in row:
            raise UserError(f'{file}: a result of mode {mode} is already there; give one of each')
        row[mode] = result
    everything = [result for row in rows.values() for result in row.values()]
    hashes = [r['files'] for r in everything if 'files' in r]
    if any(h != hashes[0] for h in hashes):
        raise UserError('the results are of different policies; evaluate all modes again')
    _require_same(everything, ('perturb',))
    for row in rows.values():  # fewer episodes are the first ones of more
        _require_same([{'seeds': r['seeds'][0]} for r in row.values()], ('seeds',))
    for suite in {suite for suite, _ in rows}:
        mine = [r for r in everything if r['suite'] == suite]
        _require_same(mine, ('flags',))
        if len({tuple(r['tasks']) for r in mine}) > 1:
            raise UserError(f'the results of {suite} differ in tasks; they are not comparable')
    return rows


def _require_same(results: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Refuse results that differ in what their numbers depend on."""
    for key in keys:
        if len({str(r.get(key)) for r in results}) > 1:
            raise UserError(f'the results differ in {key}; they are not comparable')


def markdown(rows: Mapping[Row, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return a table: tasks by modes of one suite and start distribution, or those by modes."""
    modes = [mode for mode in COLUMNS if any(mode in row for row in rows.values())]
    if len(rows) == 1:
        lines = _by_task(next(iter(rows.values())), modes)
    else:
        lines = _by_starts(rows, modes)
    return '\n'.join([*lines, '', _footnote(rows, modes[0])])


def _by_task(results: Mapping[str, Mapping[str, Any]], modes: Sequence[str]) -> list[str]:
    """Return tasks by modes and the total, intervals for the first mode alone."""
    lines = _head('task', modes)
    tasks = results[modes[0]]['tasks']
    for label, task in [*((t.replace('_', ' '), t) for t in tasks), ('**all**', '')]:
        found = [results[m]['tasks'].get(task) if task else results[m]['total'] for m in modes]
        lines.append(_line(label, [
            _cell(row, interval=k == 0) for k, row in enumerate(found)]))
    return lines


def _by_starts(
    rows: Mapping[Row, Mapping[str, Mapping[str, Any]]], modes: Sequence[str],
) -> list[str]:
    """Return suites and start distributions by modes, totals with intervals in the cells."""
    lines = _head('suite, starts', modes)
    for suite, starts in sorted(rows, key=_order):
        results = rows[suite, starts]
        lines.append(_line(f'{suite}, {starts}', [
            _cell(results[m]['total'] if m in results else None, interval=True) for m in modes]))
    return lines


def _order(row: Row) -> tuple[int, int, Row]:
    """Return the sort key of a row: easy starts first."""
    suite, starts = row
    return (SUITES.index(suite) if suite in SUITES else len(SUITES),
            STARTS.index(starts) if starts in STARTS else len(STARTS), row)


def _head(what: str, modes: Sequence[str]) -> list[str]:
    return [_line(what, [COLUMNS[m] for m in modes]), '|---|' + '---:|' * len(modes)]


def _line(label: str, cells: Sequence[str]) -> str:
    return f'| {label} | {" | ".join(cells)} |'


def _footnote(rows: Mapping[Row, Mapping[str, Mapping[str, Any]]], mode: str) -> str:
    """Return seeds, versions, how LIBERO was rendered, and the latency of one decision."""
    first = next(row[mode] for row in rows.values() if mode in row)
    results = [r for row in rows.values() for r in row.values()]
    spans = {tuple(r['seeds']) for r in results}
    if len(spans) == 1:
        seeds = ' to '.join(map(str, results[0]['seeds']))
    else:
        seeds = ' and '.join(f'from {low} on' for low in sorted({low for low, _ in spans}))
    versions = first['versions']
    text = (f"Seeds {seeds} of every task; in brackets Wilson's 95 % interval; mujoco "
            f'{versions["mujoco"]}, robosuite {versions["robosuite"]}, onnxruntime '
            f'{versions.get("onnxruntime", "-")}.')
    if any(r['suite'] in LIBERO_SUITES
           and r.get('flags', {}).get('msaa_samples') == 0 for r in results):
        text += ' LIBERO drawn without antialiasing.'
    total = first.get('latency', {}).get('total')
    if total:
        text += (f' One decision, thought included: {total["p50_ms"]:.0f} ms median, '
                 f'{total["p95_ms"]:.0f} ms p95, {_where(first)}.')
    return text


def _where(result: Mapping[str, Any]) -> str:
    """Return the device of a result, and how many episodes ran side by side."""
    threads, workers = result.get('threads', 1), result.get('workers', 1)
    device = result.get('device', 'cpu')
    text = f'on {device}' if device != 'cpu' else (
        'one thread' if threads == 1 else f'{threads} threads')
    return text + (f', while {workers} episodes ran side by side' if workers > 1 else '')


def _cell(row: Mapping[str, Any] | None, interval: bool) -> str:
    """Return successes and episodes, with Wilson's interval if asked for."""
    if row is None:
        return '-'
    text = f'{row["successes"]}/{row["n"]}'
    if interval:
        low, high = wilson(row['successes'], row['n'])
        text += f' ({low:.0%} - {high:.0%})'
    return text


def write_manifest(policy: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Put success and simulator versions into the policy's manifest.

    Raises
    ------
    UserError
        If the results are of another policy than this one.

    """
    manifest = PolicyManifest.read(policy)
    for mode, result in results.items():
        if result.get('files', manifest.files) != dict(manifest.files):
            raise UserError(f'the result of mode {mode} is of another policy than {policy}')
    success = {
        mode: {
            'seeds': r['seeds'], 'total': r['total'],
            'tasks': {t: [row['successes'], row['n']] for t, row in r['tasks'].items()},
        } for mode, r in results.items()
    }
    versions = next(iter(results.values()))['versions']
    simulator = {k: versions[k] for k in ('mujoco', 'robosuite') if k in versions}
    whole = replace(manifest, success=success, simulator=simulator)
    write_text(policy / MANIFEST, whole.to_json())


def compare(files: Sequence[Path], into: Path | None, policy: Path | None) -> None:
    """Print the table of ``files``; write it into a document and a manifest if asked to."""
    rows = read_results(files)
    table = markdown(rows)
    if policy is not None:
        if len(rows) > 1:
            raise UserError('--policy: a manifest holds the success of one suite and start '
                            'distribution; give the results of one')
        write_manifest(policy, next(iter(rows.values())))
    if into is not None:
        write_between(into, BEGIN, END, table)
    print(table)
