"""Several results side by side, as the README and the policy's manifest carry them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dtvla_ros.errors import UserError
from dtvla_ros.files import write_between, write_text
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest

from .statistics import wilson

BEGIN, END = '<!-- success table, written by dtvla report -->', '<!-- end of success table -->'
COLUMNS = {
    'full': 'thinks', 'masked': 'empty thought', 'random': 'random thought',
    'swapped': "another frame's thought", 'frozen': 'thought kept', 'replay': 'open-loop replay',
}


def read_results(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return results of ``dtvla eval`` by mode.

    Raises
    ------
    UserError
        If a file is no such result, two are of one mode, of different policies or of different
        start states.

    """
    results: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            result = json.loads(file.read_text())
            mode = result['mode']
            assert mode in COLUMNS and result['tasks'] and result['total']
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f'{file} is not a result of dtvla eval --json') from error
        if mode in results:
            raise UserError(f'{file}: a result of mode {mode} is already there; give one of each')
        results[mode] = result
    hashes = [r['files'] for r in results.values() if 'files' in r]
    if any(h != hashes[0] for h in hashes):
        raise UserError('the results are of different policies; evaluate all modes again')
    for key in ('suite', 'starts', 'perturb'):
        if len({str(r.get(key)) for r in results.values()}) > 1:
            raise UserError(f'the results differ in {key}; they are not comparable')
    return results


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table, tasks by modes, with the 95 % interval of the policy's own thought."""
    modes = [mode for mode in COLUMNS if mode in results]
    first = results[modes[0]]
    lines = [
        f'| task | {" | ".join(COLUMNS[m] for m in modes)} |',
        '|---|' + '---:|' * len(modes),
    ]
    rows = [(f'{t.replace("_", " ")}', t) for t in first['tasks']] + [('**all**', '')]
    for label, task in rows:
        cells = []
        for mode in modes:
            row = results[mode]['tasks'].get(task) if task else results[mode]['total']
            cells.append(_cell(row, interval=mode == modes[0]))
        lines.append(f'| {label} | {" | ".join(cells)} |')
    low, high = first['seeds']
    versions = first['versions']
    lines += ['', (
        f"Seeds {low} to {high} of every task; in brackets Wilson's 95 % interval; mujoco "
        f'{versions["mujoco"]}, robosuite {versions["robosuite"]}, onnxruntime '
        f'{versions.get("onnxruntime", "-")}.')]
    total = first.get('latency', {}).get('total')
    if total:
        lines[-1] += (
            f' One decision, thought included: {total["p50_ms"]:.0f} ms median, '
            f'{total["p95_ms"]:.0f} ms p95, one thread{_beside(first.get("workers", 1))}.')
    return '\n'.join(lines)


def _beside(workers: int) -> str:
    return f', while {workers} episodes ran side by side' if workers > 1 else ''


def _cell(row: Mapping[str, Any] | None, interval: bool) -> str:
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
    results = read_results(files)
    table = markdown(results)
    if policy is not None:
        write_manifest(policy, results)
    if into is not None:
        write_between(into, BEGIN, END, table)
    print(table)
