"""``dtvla eval`` and ``dtvla experts``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import dtvla_sim
from dtvla_ros import files, share
from dtvla_ros.engine.engine import MODES as NODE_MODES
from dtvla_ros.engine.load import DEVICES, ENGINES
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_ros.rollout.workers import run_jobs

from . import report, workers
from .ablations import MODES
from .html import write_html
from .journal import Journal
from .progress import Source, finish
from .seeds import evaluation_seed
from .workers import Job, PolicySetup, task_of

GPU_PROVIDERS = {'cuda': 'CUDAExecutionProvider', 'tensorrt': 'TensorrtExecutionProvider'}
VIAS = ('inprocess', 'ros')

# (setup, real time, jobs): episodes run elsewhere than in this package's own worker processes.
Graph = Callable[
    [PolicySetup, bool, Sequence[Job]], Generator[tuple[Job, EpisodeResult], None, None]]


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What ``dtvla eval`` is asked for; None: as the policy or the suite says, or no such file.

    What `SceneSetup` and `PolicySetup` have, too, is explained there.
    """

    policy: Path
    suite: str = 'tabletop'
    tasks: Sequence[str] = ()
    episodes: int = 50
    mode: str = 'full'
    engine: str = 'onnx'
    workers: int = 2
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
    """Print the success table of a policy, or of the blind replay; return what is written.

    ``graph`` runs the episodes of ``via='ros'``.

    Raises
    ------
    UserError
        For anything unknown or impossible together, a seed that was trained on, or a policy that
        does not load.

    """
    _check(options)
    seed = evaluation_seed(options.seed)
    scene = look_at(options.scene(), options.tasks)
    settings: dict[str, Any] = {
        'suite': options.suite, 'mode': options.mode, 'starts': scene.starts,
        'perturb': list(options.perturb), 'via': options.via, 'realtime': options.realtime,
        'flags': dict(scene.flags)}
    setup = replace(options.scene(), image_size=scene.flags.get('image_size'))
    with _stills(options) as stills:
        if options.mode == 'replay':
            source = processes(workers.make_replay_worker, options.workers, setup)
        else:
            manifest, policy = identify(options, setup, stills)
            settings |= policy_settings(options, manifest, policy)
            source = processes(workers.make_policy_worker, options.workers, policy)
            if options.via == 'ros':
                assert graph is not None
                source = _over(graph, policy, options.realtime)
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
    seed: int | None, starts: str | None, json_file: Path | None,
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
    scene = look_at(SceneSetup(suite, starts), tasks)
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
        processes(workers.make_expert_worker, workers_count, setup, noise),
        None)
    _finish(f'{suite}: scripted experts{f", {kind} starts" if kind else ""}'
            f'{", disturbed" if noise else ""}', summary, json_file)
    return summary


def look_at(setup: SceneSetup, tasks: Sequence[str]) -> Scene:
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


def device_there(engine: str, device: str) -> str:
    """Return where an engine will run, 'auto' decided.

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

        there = ['cuda'] if torch.cuda.is_available() else []
    else:
        import onnxruntime

        found = onnxruntime.get_available_providers()
        there = [name for name, provider in GPU_PROVIDERS.items() if provider in found]
    if device == 'auto':
        return 'cuda' if 'cuda' in there else 'cpu'
    if device not in there:
        raise UserError(f'--device {device}: the engine {engine} has no such device here; it has: '
                        f'{", ".join(["cpu", *there])}')
    return device


def identify(
    options: EvalOptions, scene: SceneSetup, stills: Path | None = None,
) -> tuple[PolicyManifest, PolicySetup]:
    """Return the policy's manifest, its files verified, and how it is run."""
    folder = share.find(options.policy)
    manifest = PolicyManifest.read(folder)
    for name in manifest.files:
        manifest.verified(folder, name)
    return manifest, PolicySetup(
        scene, str(folder), options.engine, options.mode, options.replan_steps,
        device_there(options.engine, options.device), options.threads,
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


def processes(make_worker: Callable[..., Any], count: int, *setup: Any) -> Source:
    """Return a source that works in ``count`` processes, each at one task at a time."""
    return lambda jobs: run_jobs(jobs, make_worker, setup, count, task_of)


def _over(graph: Graph, setup: PolicySetup, realtime: bool) -> Source:
    return lambda jobs: graph(setup, realtime, jobs)


def _check(options: EvalOptions) -> None:
    for path in (options.json_file, options.html):
        if path is not None:
            files.require_writable(path)
    one_of('mode', options.mode, (*MODES, 'replay'))
    one_of('engine', options.engine, ENGINES)
    one_of('via', options.via, VIAS)
    if options.realtime and options.via != 'ros':
        raise UserError('--realtime needs --via ros: in process time waits for the policy')
    if options.via == 'ros' and options.mode == 'replay':
        raise UserError('--mode replay runs no policy; leave out --via ros')
    if options.via == 'ros' and options.mode not in NODE_MODES:
        raise UserError(f'--mode {options.mode} works in process only: the policy node knows '
                        f'{" and ".join(NODE_MODES)}; leave out --via ros')
    if options.via == 'ros' and any(p.partition(':')[0] == 'language' for p in options.perturb):
        raise UserError('--perturb language works in process only, where a sentence that the '
                        'policy refuses is counted; leave out --via ros')


def one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is not allowed, by name."""
    if value not in allowed:
        raise UserError(f'unknown {what} "{value}"; there is: {", ".join(allowed)}')


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
    wanted = [(task, seed) for task in tasks for seed in seeds]
    with Journal(journal, settings) as book:
        finish(title, wanted, book.done, lambda _, result: book.add(result), source)
        results = [book.done[job] for job in wanted]
    return {
        **settings, 'seeds': [seeds.start, seeds.stop - 1], 'versions': report.versions(),
        **report.summarise(results, tasks),
    }


def _finish(title: str, summary: dict[str, Any], json_file: Path | None) -> None:
    console = Console()
    console.print(report.table(title, summary))
    if summary['refused']:
        console.print(f'{summary["refused"]} failed because the policy refused the sentence')
    for phase, row in summary['latency'].items():
        console.print(f'{phase:>10}  {row["p50_ms"]:7.1f} ms median {row["p99_ms"]:7.1f} ms p99')
    if json_file is not None:
        files.write_json(json_file, summary)
