"""Runs ``dtvla eval``, ``dtvla robustness`` and ``dtvla experts``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import dtvla_sim
from dtvla_ros import files
from dtvla_ros.engine.engine import MODES as NODE_MODES
from dtvla_ros.engine.load import DEVICES, ENGINES
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import results, workers
from dtvla_ros.evaluation.ablations import MODES
from dtvla_ros.evaluation.journal import Journal, Source, finish
from dtvla_ros.evaluation.report import write_html
from dtvla_ros.evaluation.results import Rate, evaluation_seed, wilson
from dtvla_ros.evaluation.workers import Job, PolicySetup, task_of
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_ros.rollout.workers import run_jobs

GPU_PROVIDERS = {'cuda': 'CUDAExecutionProvider', 'tensorrt': 'TensorrtExecutionProvider'}
VIAS = ('inprocess', 'ros')

# (setup, real time, jobs): episodes run elsewhere than in this package's own worker processes.
Graph = Callable[
    [PolicySetup, bool, Sequence[Job]], Generator[tuple[Job, EpisodeResult], None, None]]


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """Options of an evaluation; None: as the policy or the suite says, or no such file.

    Those that `SceneSetup` and `PolicySetup` have, too, are explained there. ``ray``: address of
    the cluster whose machines run the episodes, None for this machine alone.
    """

    policy: Path
    suite: str = 'tabletop'
    tasks: Sequence[str] = ()
    episodes: int = 50
    mode: str = 'full'
    engine: str = 'onnx'
    workers: int = 2
    ray: str | None = None
    seed: int | None = None
    device: str = 'cpu'
    threads: int = 1
    replan_steps: int | None = None
    starts: str | None = None
    perturb: tuple[str, ...] = ()
    antialiasing: bool = True
    shadows: bool = True
    max_steps: int | None = None
    via: str = 'inprocess'
    realtime: bool = False
    videos: Path | None = None
    journal: Path | None = None
    html: Path | None = None
    json_file: Path | None = None

    def scene(self) -> SceneSetup:
        """Return the scene that is asked for."""
        return SceneSetup(
            self.suite, self.starts, self.perturb, antialiasing=self.antialiasing,
            shadows=self.shadows, max_steps=self.max_steps)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a suite says of itself: tasks in order, start distribution, flags."""

    tasks: tuple[str, ...]
    starts: str
    flags: Mapping[str, Any]


def evaluate_policy(options: EvalOptions, graph: Graph | None = None) -> dict[str, Any]:
    """Print the success table of a policy, or of the open-loop replay; return what is written.

    ``graph`` runs the episodes of ``via='ros'``.

    Raises
    ------
    UserError
        For anything unknown or impossible together, a seed that was trained on, or a policy that
        does not load.

    """
    _check(options)
    seed = evaluation_seed(options.seed)
    scene = inspect_scene(options.scene(), options.tasks)
    settings: dict[str, Any] = {
        'suite': options.suite, 'mode': options.mode, 'starts': scene.starts,
        'perturb': list(options.perturb), 'via': options.via, 'realtime': options.realtime,
        'flags': dict(scene.flags)}
    setup = replace(options.scene(), image_size=scene.flags.get('image_size'))
    with _stills(options) as stills:
        source: Source
        if options.mode == 'replay':
            source = _processes(options.workers, options.ray, workers.make_replay_worker, setup)
        else:
            manifest, policy = identify(options, setup, stills)
            settings |= policy_settings(options, manifest, policy)
            if options.via == 'ros':
                assert graph is not None
                source = _over(graph, policy, options.realtime)
            else:
                source = _policy_episodes(options, policy)
        summary = _run(
            f'{options.suite}, {options.mode}', settings, scene.tasks,
            range(seed, seed + options.episodes), source, options.journal)
        summary['workers'] = options.workers if options.via == 'inprocess' else 1
        title = _title(summary)
        if options.html is not None:
            write_html(options.html, title, summary, stills, options.videos)
    _finish(title, summary, options.json_file)
    return summary


def evaluate_experts(
    suite: str, tasks: Sequence[str], episodes: int, noise: bool, workers_count: int,
    seed: int | None, starts: str | None, json_file: Path | None, ray: str | None = None,
) -> dict[str, Any]:
    """Print the success table of the scripted experts; return what is written.

    ``starts`` None: as the suite does. ``seed`` None: 0, or the first evaluation seed where the
    benchmark's own initial states are asked for.

    Raises
    ------
    UserError
        For anything unknown, a suite without experts, or the benchmark's states at seeds that
        have none.

    """
    if json_file is not None:
        files.require_writable(json_file)
    scene = inspect_scene(SceneSetup(suite, starts), tasks)
    first = dtvla_sim.EVAL_SEED_START
    if seed is None:
        seed = first if starts == 'benchmark' else 0
    kind = scene.starts
    if kind == 'benchmark' and seed < first:
        if starts:
            raise UserError(f'--starts benchmark: seed {seed} has no recorded state, only those '
                            f'from {first} on have; leave out --seed, or use --starts random')
        kind = 'random'  # what such seeds have always begun from
    setup = SceneSetup(suite, kind or None)
    summary = _run(
        f'{suite} experts',
        {'suite': suite, 'experts': True, 'noise': noise, 'starts': kind,
         'flags': dict(scene.flags)},
        scene.tasks, range(seed, seed + episodes),
        _processes(workers_count, ray, workers.make_expert_worker, setup, noise), None)
    _finish(f'{suite}: scripted experts{f", {kind} starts" if kind else ""}'
            f'{", disturbed" if noise else ""}', summary, json_file)
    return summary


def evaluate_robustness(
    options: EvalOptions, families: Sequence[str] = (), strengths: Sequence[str] = ('1', '2', '3'),
) -> dict[str, Any]:
    """Print success by family (default: all) and strength; return what is written.

    ``options.journal`` is a folder here. Every cell has the same tasks and seeds.

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
    scene = inspect_scene(options.scene(), options.tasks)
    manifest, setup = identify(options, options.scene())
    settings: dict[str, Any] = {
        'suite': options.suite, 'mode': options.mode, 'starts': scene.starts,
        'flags': dict(scene.flags), **policy_settings(options, manifest, setup)}
    wanted = [(cell, task, s) for task in scene.tasks for s in seeds for cell in cells]
    with ExitStack() as stack:
        journals = {cell: stack.enter_context(Journal(
            options.journal / f'{cell.replace(":", "-") or "undisturbed"}.jsonl'
            if options.journal else None, {**settings, 'perturb': cell})) for cell in cells}
        done = {(cell, *job): result for cell, journal in journals.items()
                for job, result in journal.done.items()}

        def keep(job: tuple[str, str, int], result: EpisodeResult) -> None:
            journals[job[0]].add(result)
            done[job] = result

        finish(f'{options.suite}, {len(cells)} cells', wanted, done, keep,
               _policy_episodes(options, setup))
    found = {cell: [done[job] for job in wanted if job[0] == cell] for cell in cells}
    summary = {
        **settings, 'seeds': [seeds.start, seeds.stop - 1], 'versions': results.versions(),
        'strengths': list(strengths), 'undisturbed': _cell(found[''], scene.tasks),
        'families': {
            family: {k: _cell(found[f'{family}:{k}'], scene.tasks) for k in strengths}
            for family in families},
    }
    Console().print(robustness_table(f'{options.suite}: success under disturbances', summary))
    if options.json_file is not None:
        files.write_json(options.json_file, summary)
    return summary


def inspect_scene(setup: SceneSetup, tasks: Sequence[str]) -> Scene:
    """Return what the suite is like under these choices.

    Raises
    ------
    UserError
        If the suite, a task, the start distribution or a perturbation is unknown.

    """
    env = setup.make()
    try:
        for name in tasks:
            one_of('task', name, tuple(env.tasks))
        limit = {'max_steps': setup.max_steps} if setup.max_steps else {}
        return Scene(tuple(tasks) or tuple(env.tasks), env.starts, {**env.flags, **limit})
    finally:
        env.close()


def available_device(engine: str, device: str) -> str:
    """Return the device an engine will run on, 'auto' decided.

    Raises
    ------
    UserError
        If the device is not there: a node may go on with the CPU, a result may not.

    """
    one_of('device', device, DEVICES)
    if device == 'cpu':
        return device
    if engine == 'torch':
        import torch

        available = ['cuda'] if torch.cuda.is_available() else []
    else:
        import onnxruntime

        found = onnxruntime.get_available_providers()
        available = [name for name, provider in GPU_PROVIDERS.items() if provider in found]
    if device == 'auto':
        return 'cuda' if 'cuda' in available else 'cpu'
    if device not in available:
        raise UserError(f'--device {device}: the engine {engine} has no such device here; it has: '
                        f'{", ".join(["cpu", *available])}')
    return device


def identify(
    options: EvalOptions, scene: SceneSetup, stills: Path | None = None,
) -> tuple[PolicyManifest, PolicySetup]:
    """Return the policy's manifest, its files verified, and how it is run."""
    folder = files.find_shared(options.policy)
    manifest = PolicyManifest.read(folder)
    for name in manifest.files:
        manifest.verified(folder, name)
    return manifest, PolicySetup(
        scene, str(folder.resolve()), options.engine, options.mode, options.replan_steps,
        available_device(options.engine, options.device), options.threads,
        str(options.videos) if options.videos else None, str(stills) if stills else None)


def policy_settings(
    options: EvalOptions, manifest: PolicyManifest, setup: PolicySetup,
) -> dict[str, Any]:
    """Return which policy ran and how."""
    return {
        'policy': str(options.policy), 'engine': setup.engine, 'device': setup.device,
        'threads': setup.threads, 'files': dict(manifest.files),
        'replan_steps': options.replan_steps or manifest.action.replan_steps,
        'images': {'upright': manifest.images.upright, 'mirrored': manifest.images.mirrored},
    }


def one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is not allowed, by name."""
    if value not in allowed:
        raise UserError(f'unknown {what} "{value}"; there is: {", ".join(allowed)}')


def _processes(
    count: int, ray: str | None, make_worker: Callable[..., Any], *setup: Any,
) -> Source:
    """Return a source of ``count`` processes, each at one task at a time."""
    return lambda jobs: run_jobs(jobs, make_worker, setup, count, task_of, ray)


def _policy_episodes(options: EvalOptions, setup: PolicySetup) -> Source:
    """Return a source of episodes with a policy, whose failures are kept on this machine."""
    def run(jobs: Sequence[Any]) -> Generator[tuple[Any, EpisodeResult], None, None]:
        source = _processes(options.workers, options.ray, workers.make_policy_worker, setup)
        with closing(source(jobs)) as evaluated:
            for job, episode in evaluated:
                yield job, episode.keep(setup)

    return run


def _over(graph: Graph, setup: PolicySetup, realtime: bool) -> Source:
    """Return a source of episodes that run elsewhere, one after another."""
    return lambda jobs: graph(setup, realtime, jobs)


def _check(options: EvalOptions) -> None:
    """Refuse options that are unknown or impossible together, before anything runs."""
    for path in (options.json_file, options.html):
        if path is not None:
            files.require_writable(path)
    one_of('mode', options.mode, (*MODES, 'replay'))
    one_of('engine', options.engine, ENGINES)
    one_of('via', options.via, VIAS)
    if options.via != 'ros':
        if options.realtime:
            raise UserError('--realtime needs --via ros: in process time waits for the policy')
        return
    if options.ray is not None:
        raise UserError('--ray runs episodes in process; leave out --via ros')
    if options.mode == 'replay':
        raise UserError('--mode replay runs no policy; leave out --via ros')
    if options.mode not in NODE_MODES:
        raise UserError(f'--mode {options.mode} works in process only: the policy node knows '
                        f'{" and ".join(NODE_MODES)}; leave out --via ros')
    if any(p.partition(':')[0] == 'language' for p in options.perturb):
        raise UserError('--perturb language works in process only, where a sentence that the '
                        'policy refuses is counted; leave out --via ros')


@contextmanager
def _stills(options: EvalOptions) -> Iterator[Path | None]:
    """Give a folder for stills of failures: kept beside the journal, so that it goes on too."""
    if options.html is None:
        yield None
    elif options.journal is not None:
        yield options.journal.with_suffix('.stills')
    else:
        with tempfile.TemporaryDirectory(prefix='dtvla-stills-') as folder:
            yield Path(folder)


def _title(summary: Mapping[str, Any]) -> str:
    """Return the heading of table and page: what was evaluated, and under what."""
    mode = 'open-loop replay' if summary['mode'] == 'replay' else f'{summary["mode"]} thought'
    parts = [f'{summary["suite"]}: {mode}']
    if summary['starts']:
        parts.append(f'{summary["starts"]} starts')
    parts += summary['perturb']
    if summary['via'] == 'ros':
        parts.append('over ROS in ' + ('real time' if summary['realtime'] else 'lock-step'))
    return ', '.join(parts)


def _run(
    title: str, settings: dict[str, Any], tasks: Sequence[str], seeds: range, source: Source,
    journal: Path | None,
) -> dict[str, Any]:
    """Run every task from every seed, those in the journal excepted; return the summary."""
    wanted = [(task, seed) for task in tasks for seed in seeds]
    with Journal(journal, settings) as book:
        finish(title, wanted, book.done, lambda _, result: book.add(result), source)
        found = [book.done[job] for job in wanted]
    return {
        **settings, 'seeds': [seeds.start, seeds.stop - 1], 'versions': results.versions(),
        **results.summarise(found, tasks),
    }


def _finish(title: str, summary: dict[str, Any], json_file: Path | None) -> None:
    """Print the success table and the latencies; write the JSON."""
    console = Console()
    console.print(results.table(title, summary))
    if summary['refused']:
        console.print(f'{summary["refused"]} failed because the policy refused the sentence')
    for phase, row in summary['latency'].items():
        console.print(f'{phase:>10}  {row["p50_ms"]:7.1f} ms median {row["p99_ms"]:7.1f} ms p99')
    if json_file is not None:
        files.write_json(json_file, summary)


def _cell(found: Sequence[EpisodeResult], tasks: Sequence[str]) -> dict[str, Any]:
    """Return success in total and by task, and how often the policy refused the sentence."""
    return {
        **Rate.of(r.success for r in found).to_dict(), 'refused': results.refused(found),
        'tasks': {task: [sum(r.success for r in found if r.task == task),
                         sum(r.task == task for r in found)] for task in tasks},
    }


def robustness_table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return families by strengths as rich prints it."""
    def text(rows: Sequence[Mapping[str, Any]]) -> str:
        successes, n = (sum(row[key] for row in rows) for key in ('successes', 'n'))
        low, high = wilson(successes, n)
        return f'{successes}/{n} ({low:.0%} - {high:.0%})'

    view = Table(title=title, title_justify='left')
    view.add_column('family')
    for strength in summary['strengths']:
        view.add_column(f'strength {strength}', justify='right')
    rows = list(summary['families'].values())
    for family, row in summary['families'].items():
        view.add_row(family, *(text([cell]) for cell in row.values()))
    view.add_section()
    view.add_row('all', *(text([row[k] for row in rows]) for k in summary['strengths']))
    view.caption = f'undisturbed {text([summary["undisturbed"]])}; in brackets Wilson 95 %'
    refused = sum(cell['refused'] for row in rows for cell in row.values())
    if refused:
        view.caption += f'\n{refused} failed because the policy refused the sentence'
    return view
