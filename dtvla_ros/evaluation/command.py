"""``dtvla eval`` and ``dtvla experts``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import dtvla_sim
from dtvla_ros import files, share
from dtvla_ros.engine.engine import MODES
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import PolicyManifest

from . import report, workers
from .journal import Journal
from .pool import run_jobs
from .seeds import evaluation_seed
from .statistics import Rate

ENGINES = ('onnx', 'torch')


def evaluate_policy(
    policy: Path, suite: str, tasks: Sequence[str], episodes: int, mode: str, engine: str,
    workers_count: int, seed: int | None = None, replan_steps: int | None = None,
    video: Path | None = None, journal: Path | None = None, json_file: Path | None = None,
) -> dict[str, Any]:
    """Print the success table of a policy, or of the blind replay; return what is written.

    Raises
    ------
    UserError
        For an unknown suite, task, mode or engine, a seed that was trained on, or a policy that
        does not load.

    """
    if json_file is not None:
        files.require_writable(json_file)
    _one_of('mode', mode, (*MODES, 'replay'))
    _one_of('engine', engine, ENGINES)
    seed = evaluation_seed(seed)
    settings: dict[str, Any] = {'suite': suite, 'mode': mode}
    if mode == 'replay':
        make_worker: Callable[..., Any] = workers.make_replay_worker
        setup: tuple[Any, ...] = (suite,)
    else:
        folder = share.find(policy)
        manifest = PolicyManifest.read(folder)
        for name in manifest.files:
            manifest.verified(folder, name)
        settings |= {
            'policy': str(policy), 'engine': engine, 'files': dict(manifest.files),
            'replan_steps': replan_steps or manifest.action.replan_steps,
        }
        make_worker = workers.make_policy_worker
        setup = (workers.PolicySetup(
            suite, str(folder), engine, mode, replan_steps, str(video) if video else None),)
    names = _known_tasks(suite, tasks)
    summary = _run(
        f'{suite}, {mode}', settings, names, range(seed, seed + episodes), make_worker, setup,
        workers_count, journal)
    _finish(f'{suite}: {"open-loop replay" if mode == "replay" else mode + " thought"}',
            summary, json_file)
    return summary


def evaluate_experts(
    suite: str, tasks: Sequence[str], episodes: int, noise: bool, workers_count: int, seed: int,
    json_file: Path | None,
) -> dict[str, Any]:
    """Print the success table of the scripted experts; return what is written."""
    if json_file is not None:
        files.require_writable(json_file)
    names = _known_tasks(suite, tasks)
    summary = _run(
        f'{suite} experts', {'suite': suite, 'experts': True, 'noise': noise}, names,
        range(seed, seed + episodes), workers.make_expert_worker, (suite, noise), workers_count,
        None)
    _finish(f'{suite}: scripted experts{", disturbed" if noise else ""}', summary, json_file)
    return summary


def _one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f'unknown {what} "{value}"; there is: {", ".join(allowed)}')


def _known_tasks(suite: str, tasks: Sequence[str]) -> tuple[str, ...]:
    env = dtvla_sim.make(suite)
    known = tuple(env.tasks)
    env.close()
    for name in tasks:
        _one_of('task', name, known)
    return tuple(tasks) or known


def _run(
    title: str, settings: dict[str, Any], tasks: Sequence[str], seeds: range,
    make_worker: Callable[..., Any], setup: tuple[Any, ...], workers_count: int,
    journal: Path | None,
) -> dict[str, Any]:
    wanted = [(task, seed) for seed in seeds for task in tasks]
    columns = (
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
        TextColumn('{task.fields[rate]}'), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True))
    with Journal(journal, settings) as book, progress as bar:
        def rate() -> str:
            return str(Rate.of(book.done[j].success for j in wanted if j in book.done))

        jobs = [job for job in wanted if job not in book.done]
        line = bar.add_task(title, total=len(wanted), completed=len(wanted) - len(jobs), rate='')
        for _, result in run_jobs(jobs, make_worker, setup, workers_count):
            book.add(result)
            bar.update(line, advance=1, rate=rate())
        results = [book.done[job] for job in wanted]
    return {
        **settings, 'seeds': [seeds.start, seeds.stop - 1], 'versions': report.versions(),
        **report.summarise(results, tasks),
    }


def _finish(title: str, summary: dict[str, Any], json_file: Path | None) -> None:
    console = Console()
    console.print(report.table(title, summary))
    for phase, row in summary['latency'].items():
        console.print(f'{phase:>10}  {row["p50_ms"]:7.1f} ms median {row["p99_ms"]:7.1f} ms p99')
    if json_file is not None:
        files.write_json(json_file, summary)
