"""``dtvla robustness``: success by family and strength of what disturbs the scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dtvla_ros import files
from dtvla_ros.engine.load import ENGINES
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.episode import EpisodeResult

from . import report, workers
from .ablations import MODES
from .command import EvalOptions, identify, look_at, one_of, policy_settings, processes
from .journal import Journal
from .progress import finish
from .seeds import evaluation_seed
from .statistics import Rate, wilson

Cell = tuple[str, str, int]  # perturbation ('' for none), task, seed


class Book:
    """Finished episodes of every cell, one journal each in ``folder`` (None: keeps nothing)."""

    def __init__(
        self, folder: Path | None, cells: Sequence[str], settings: Mapping[str, Any],
        stack: ExitStack,
    ):
        self._journals = {
            cell: stack.enter_context(Journal(
                folder / f'{cell.replace(":", "-") or "undisturbed"}.jsonl' if folder else None,
                {**settings, 'perturb': cell}))
            for cell in cells}
        self.done: dict[Cell, EpisodeResult] = {
            (cell, *job): result for cell, journal in self._journals.items()
            for job, result in journal.done.items()}

    def add(self, job: Cell, result: EpisodeResult) -> None:
        """Keep a result; it is on disk when this returns."""
        self._journals[job[0]].add(result)
        self.done[job] = result


def evaluate_robustness(
    options: EvalOptions, families: Sequence[str] = (), strengths: Sequence[str] = ('1', '2', '3'),
) -> dict[str, Any]:
    """Print success by family (default: all) and strength; return what is written.

    ``options.journal`` is a folder here. Every cell meets the same tasks and seeds.

    Raises
    ------
    UserError
        For an unknown family, strength, suite, task, mode or engine, a seed that was trained on,
        or a policy that does not load.

    """
    from dtvla_sim.perturbation import FAMILIES, STRENGTHS, Perturbation

    families = tuple(families) or tuple(FAMILIES)
    for strength in strengths:
        one_of('strength', strength, tuple(map(str, STRENGTHS)))
    one_of('mode', options.mode, MODES)
    one_of('engine', options.engine, ENGINES)
    cells = ['', *(f'{family}:{k}' for family in families for k in strengths)]
    if len(set(cells)) < len(cells):
        raise UserError('a family or strength is named twice')
    for cell in cells[1:]:
        Perturbation.parse(cell)
    if options.json_file is not None:
        files.require_writable(options.json_file)
    seed = evaluation_seed(options.seed)
    seeds = range(seed, seed + options.episodes)
    scene = look_at(options.scene(), options.tasks)
    manifest, setup = identify(options, options.scene())
    settings: dict[str, Any] = {
        'suite': options.suite, 'mode': options.mode, 'starts': scene.starts,
        'flags': dict(scene.flags), **policy_settings(options, manifest, setup)}
    wanted = [(cell, task, s) for task in scene.tasks for s in seeds for cell in cells]
    with ExitStack() as stack:
        book = Book(options.journal, cells, settings, stack)
        finish(f'{options.suite}, {len(cells)} cells', wanted, book.done, book.add,
               processes(workers.make_robustness_worker, options.workers, setup))
        results = {cell: [book.done[job] for job in wanted if job[0] == cell] for cell in cells}
    summary = {
        **settings, 'seeds': [seeds.start, seeds.stop - 1], 'versions': report.versions(),
        'strengths': list(strengths), 'undisturbed': _row(results[''], scene.tasks),
        'families': {
            family: {k: _row(results[f'{family}:{k}'], scene.tasks) for k in strengths}
            for family in families},
    }
    Console().print(table(f'{options.suite}: success under disturbances', summary))
    if options.json_file is not None:
        files.write_json(options.json_file, summary)
    return summary


def _row(results: Sequence[EpisodeResult], tasks: Sequence[str]) -> dict[str, Any]:
    return {
        **Rate.of(r.success for r in results).to_dict(), 'refused': report.refused(results),
        'tasks': {task: [sum(r.success for r in results if r.task == task),
                         sum(r.task == task for r in results)] for task in tasks},
    }


def table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return families by strengths as rich prints it."""
    view = Table(title=title, title_justify='left')
    view.add_column('family')
    for strength in summary['strengths']:
        view.add_column(f'strength {strength}', justify='right')
    for family, row in summary['families'].items():
        view.add_row(family, *(_cell([r]) for r in row.values()))
    view.add_section()
    cells = [r for row in summary['families'].values() for r in row.values()]
    view.add_row('all', *(
        _cell([row[k] for row in summary['families'].values()]) for k in summary['strengths']))
    quiet = summary['undisturbed']
    view.caption = f'undisturbed {_cell([quiet])}; in brackets Wilson 95 %'
    refused = sum(r['refused'] for r in cells)
    if refused:
        view.caption += f'\n{refused} failed because the policy refused the sentence'
    return view


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    successes, n = (sum(row[key] for row in rows) for key in ('successes', 'n'))
    low, high = wilson(successes, n)
    return f'{successes}/{n} ({low:.0%} - {high:.0%})'
