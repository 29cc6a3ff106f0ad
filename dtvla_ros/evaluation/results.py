"""Turns finished episodes into rates with intervals, tables and comparisons."""

from __future__ import annotations

import json
import math
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.report import MISHEARD, RateTable, write_rates
from dtvla_ros.files import write_between, write_text
from dtvla_ros.policy.completion import AFTER_SUCCESS
from dtvla_ros.policy.confidence import Calibration
from dtvla_ros.policy.manifest import MANIFEST, PROOF, PolicyManifest
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_sim import CALIBRATION_SEED_START, EVAL_SEED_START, LIBERO_SUITES, SUITES

PACKAGES = ('dtvla_ros', 'numpy', 'mujoco', 'robosuite', 'hf-libero', 'bddl', 'gymnasium',
            'onnxruntime', 'tokenizers', 'torch', 'transformers', 'ros-rclpy', 'rosbags')
BEGIN, END = '<!-- success table, written by dtvla report -->', '<!-- end of success table -->'
STARTS = ('benchmark', 'random', 'jitter', 'shuffle')
COLUMNS = {'full': 'thinks', 'masked': 'empty thought', 'random': 'random thought',
           'swapped': "another task's thought", 'frozen': 'thought kept',
           'replay': 'open-loop replay'}
SAID = {'full': 'with its own thought', 'masked': 'with an empty one',
        'random': 'with a random one', 'swapped': "with another task's",
        'frozen': 'with one that is kept', 'replay': 'by repeating a recording'}
Results = dict[str, dict[str, Any]]  # by mode
Row = tuple[str, str]  # suite and start distribution


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


def read_results(files: Sequence[Path]) -> dict[Row, Results]:
    """Return results of ``dtvla eval`` by suite and starts, then by mode.

    Raises UserError for a file that is none, two of one kind, and where policies or the way of
    measuring differ.
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
    same = [('policy', [r['files'] for r in everything if 'files' in r]),
            ('perturb', [r.get('perturb') for r in everything]),
            ('wordings', [r.get('wordings') for r in everything])]
    for row in rows.values():  # fewer episodes are the first ones of more
        same.append(('seeds', [r['seeds'][0] for r in row.values()]))
    for suite in {suite for suite, _ in rows}:
        mine = [r for r in everything if r['suite'] == suite]
        same += [('flags', [r.get('flags') for r in mine]),
                 ('tasks', [list(r['tasks']) for r in mine])]
    for what, values in same:
        if any(value != values[0] for value in values):
            raise UserError(f'the results differ in {what}; they are not comparable: evaluate '
                            'all modes again')
    return rows


def markdown(rows: Mapping[Row, Results]) -> str:
    """Return a table: tasks by modes of one suite and start distribution, or those by modes.

    Cells of tasks have an interval in the first mode alone, totals by suite always.
    """
    modes = [mode for mode in COLUMNS if any(mode in row for row in rows.values())]
    if len(rows) == 1:
        what, (results,) = 'task', rows.values()
        cells = {task.replace('_', ' '): [results[m]['tasks'][task] for m in modes]
                 for task in results[modes[0]]['tasks']}
        cells['**all**'] = [results[m]['total'] for m in modes]
    else:
        what = 'suite, starts'
        cells = {', '.join(row): [rows[row][m]['total'] if m in rows[row] else None
                                  for m in modes] for row in sorted(rows, key=_order)}
    lines = [(what, *(COLUMNS[m] for m in modes))]
    lines += [(label, *('-' if row is None else Rate(row['successes'], row['n']).counts
                        if k == 0 or len(rows) > 1 else f'{row["successes"]}/{row["n"]}'
                        for k, row in enumerate(found))) for label, found in cells.items()]
    head, *body = [f'| {" | ".join(line)} |' for line in lines]
    return '\n'.join([head, '|---|' + '---:|' * len(modes), *body, '', _footnote(rows, modes[0])])


def _order(row: Row) -> tuple[int, int, Row]:
    """Return the sort key of a row: easy starts first, what is unknown last."""
    suite, starts = row
    return (*SUITES, suite).index(suite), (*STARTS, starts).index(starts), row


def _footnote(rows: Mapping[Row, Results], mode: str) -> str:
    """Return seeds, versions, how LIBERO was rendered, and the latency of one decision."""
    first = next(row[mode] for row in rows.values() if mode in row)
    results = [r for row in rows.values() for r in row.values()]
    spans = sorted({tuple(r['seeds']) for r in results})
    seeds = (' to '.join(map(str, spans[0])) if len(spans) == 1 else
             ' and '.join(f'from {low} on' for low in dict(spans)))
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
    threads, workers, device = (result.get(key, default) for key, default in (
        ('threads', 1), ('workers', 1), ('device', 'cpu')))
    text = f'on {device}' if device != 'cpu' else (
        'one thread' if threads == 1 else f'{threads} threads')
    return text + (f', while {workers} episodes ran side by side' if workers > 1 else '')


def write_manifest(policy: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Put success and simulator versions into a policy's manifest; UserError if not its own."""
    manifest = PolicyManifest.read(policy)
    files = {name: digest for name, digest in manifest.files.items() if name != PROOF}
    for mode, result in results.items():
        if result.get('files', files) != files:
            raise UserError(f'the result of mode {mode} is of another policy than {policy}')
    success = {mode: {'seeds': r['seeds'], 'total': r['total'], 'tasks': {
        task: [row['successes'], row['n']] for task, row in r['tasks'].items()}}
        for mode, r in results.items()}
    versions = next(iter(results.values()))['versions']
    simulator = {k: versions[k] for k in ('mujoco', 'robosuite') if k in versions}
    write_text(policy / MANIFEST, replace(
        manifest, success=success, simulator=simulator).to_json())


def compare(files: Sequence[Path], into: Path | None, policy: Path | None,
            html: Path | None = None) -> None:
    """Print the table of ``files``; write it into a document, a manifest, a page if asked to."""
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
    sentence = comparison(rows)
    print(f'\n{sentence}')
    first = next(result for row in rows.values() for result in row.values())
    write_rates(html, 'Success by thought', sentence, [
        RateTable(heading, ('thought',), cells) for heading, cells in _by_mode(rows)],
        {'files': [str(file) for file in files], 'seeds': first['seeds'],
         'versions': first['versions']})


def comparison(rows: Mapping[Row, Results]) -> str:
    """Return the sentence that says how often the policy succeeds in every mode."""
    totals = {mode: [row[mode]['total'] for row in rows.values() if mode in row]
              for mode in COLUMNS}
    told = [f'in {sum(t["successes"] for t in mine)} of {sum(t["n"] for t in mine)} episodes '
            f'{SAID[mode]}' for mode, mine in totals.items() if mine]
    return f'The policy succeeds {", ".join(told)}.'


def _by_mode(rows: Mapping[Row, Results]) -> Iterable[tuple[str, list[Any]]]:
    """Yield totals of every suite and start distribution; of a single one its tasks, too."""
    for row in sorted(rows, key=_order):
        found = {mode: rows[row][mode] for mode in COLUMNS if mode in rows[row]}
        yield ', '.join(row), [((COLUMNS[m],), r['total']) for m, r in found.items()]
        if len(rows) == 1:
            for task in next(iter(found.values()))['tasks']:
                yield task.replace('_', ' '), [
                    ((COLUMNS[m],), r['tasks'][task]) for m, r in found.items()]
