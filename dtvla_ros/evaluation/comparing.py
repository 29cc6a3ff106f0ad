"""Puts results side by side: modes of one policy, and two policies on the same start states."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import pairing
from dtvla_ros.evaluation.pairing import COLUMNS, Results, Row
from dtvla_ros.evaluation.report import RateTable, write_rates
from dtvla_ros.evaluation.results import Rate
from dtvla_ros.files import write_between, write_text
from dtvla_ros.policy.manifest import MANIFEST, PROOF, PolicyManifest
from dtvla_sim import LIBERO_SUITES, SUITES

BEGIN, END = '<!-- success table, written by dtvla report -->', '<!-- end of success table -->'
STARTS = ('benchmark', 'random', 'jitter', 'shuffle')
SAID = {'full': 'with its own thought', 'masked': 'with an empty one',
        'random': 'with a random one', 'swapped': "with another task's",
        'frozen': 'with one that is kept', 'replay': 'by repeating a recording'}


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
    thinking = [r for r in everything if 'files' in r]
    same = [('policy', [r['files'] for r in thinking]),
            ('done_margin', [r.get('done_margin') for r in thinking]),
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
            html: Path | None = None, against: Sequence[Path] = ()) -> None:
    """Print the table of ``files``; write it into a document, a manifest, a page if asked to.

    ``against``: results of another policy, compared with episode by episode.
    """
    rows = read_results(files)
    pairs = pairing.pair(rows, read_results(against)) if against else {}
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
    tables = [RateTable(heading, ('thought',), cells) for heading, cells in _by_mode(rows)]
    if pairs:
        print()
        Console().print(pairing.table(pairs))
        tables.append(pairing.rates(pairs))
    first = next(result for row in rows.values() for result in row.values())
    write_rates(html, 'Success by thought', sentence, tables,
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
