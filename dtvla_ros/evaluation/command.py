"""Runs ``dtvla eval``, ``dtvla robustness`` and ``dtvla experts``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

import dtvla_sim
from dtvla_ros import files
from dtvla_ros.conventions import DEVICES, ENGINES
from dtvla_ros.conventions import MODES as NODE_MODES
from dtvla_ros.engine.providers import PROVIDERS
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation import results, workers
from dtvla_ros.evaluation.ablations import MODES
from dtvla_ros.evaluation.announcing import announced, require_calibrated, told_announced
from dtvla_ros.evaluation.report import RateTable, write_html, write_rates
from dtvla_ros.evaluation.results import Rate, evaluation_seed
from dtvla_ros.evaluation.wordings import Meanings, Source, Trial, Wordings, meanings, tables
from dtvla_ros.evaluation.workers import EvalOptions, task_of
from dtvla_ros.interrupt import resumable
from dtvla_ros.policy.completion import after_success
from dtvla_ros.policy.manifest import PROOF, PolicyManifest
from dtvla_ros.policy.understanding import understanding_of
from dtvla_ros.rollout.env import SceneSetup, require_tasks
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_ros.rollout.workers import run_jobs

VIAS = ('inprocess', 'ros')

Job = tuple[Any, ...]  # task and seed, or a perturbation and those


def evaluate_policy(options: EvalOptions) -> dict[str, Any]:
    """Print the success table of a policy, or of the open-loop replay; return what is written.

    With ``options.instructions`` every wording in it is told, ``episodes`` times, and what must be
    refused, too. Raises UserError for anything unknown or impossible together, a seed that was
    trained on, and a policy that does not load.
    """
    _check(options, (*MODES, 'replay'))
    seed, trial = evaluation_seed(options.seed), None
    tasks, settings = inspect_scene(options.scene, options.tasks)
    settings |= {'mode': options.mode, 'perturb': list(options.scene.perturb),
                 'via': options.via, 'realtime': options.realtime}
    if options.instructions is not None:
        trial = _trial(options, options.instructions)
        tasks = tuple(trial.wordings.tasks)
        options = replace(options, said=trial.wordings.episodes(seed, options.episodes))
        settings |= {'instructions': str(options.instructions), 'wordings': trial.wordings.digest,
                     'episodes_per_wording': options.episodes}
    with _stills(options) as stills:
        options = replace(options, stills=stills, scene=replace(
            options.scene, image_size=settings['flags'].get('image_size')))
        if options.mode == 'replay':
            source = _processes(options, workers.make_replay_worker, options.scene)
        else:
            how, options = identify(options)
            settings |= how
            source = partial(_policy_episodes, options)
            meant: Meanings = partial(meanings, understanding_of(
                options.policy, PolicyManifest.read(options.policy)))
            if options.via == 'ros':
                from dtvla_ros.evaluation import ros_runner

                source = partial(ros_runner.run_over_ros, options)
                meant = partial(ros_runner.meanings, options)
        summary = _evaluate(options, settings, tasks, [*options.said] or _jobs(
            tasks, seed, options.episodes), trial.judged(source) if trial else source,
            (lambda summary: trial.complete(summary, meant)) if trial else None,
            workers=options.workers if options.via == 'inprocess' else 1)
        if options.html is not None:
            write_html(options.html, _title(summary), summary, stills, options.videos)
    if options.videos is not None:
        print(f'{options.videos}: films of {len([*options.videos.glob("*.mp4")])} failures')
    return summary


def evaluate_experts(options: EvalOptions, noise: bool = False) -> dict[str, Any]:
    """Print the success table of the scripted experts; return what is written.

    ``seed`` None: 0, or the first evaluation seed where the benchmark's own initial states are
    asked for. Raises UserError for anything unknown, a suite without experts, and the benchmark's
    states at seeds that have none.
    """
    _check(options)
    tasks, settings = inspect_scene(options.scene, options.tasks)
    asked, kind, first = options.scene.starts, settings['starts'], dtvla_sim.EVAL_SEED_START
    seed = options.seed
    if seed is None:
        seed = first if asked == 'benchmark' else 0
    if kind == 'benchmark' and seed < first:
        if asked:
            raise UserError(f'--starts benchmark: seed {seed} has no recorded state, only those '
                            f'from {first} on have; leave out --seed, or use --starts random')
        kind = 'random'  # what such seeds have always begun from
    source = _processes(
        options, workers.make_expert_worker, replace(options.scene, starts=kind or None), noise)
    return _evaluate(options, {**settings, 'experts': True, 'noise': noise, 'starts': kind}, tasks,
                     _jobs(tasks, seed, options.episodes), source)


class Disturbed(NamedTuple):
    """Episodes by cell, 'family:strength', '' the undisturbed one; how they were made."""

    options: EvalOptions
    settings: dict[str, Any]
    tasks: tuple[str, ...]
    families: tuple[str, ...]
    cells: dict[str, list[EpisodeResult]]


def run_disturbed(options: EvalOptions, families: Sequence[str], strengths: Sequence[str],
                  seed: int) -> Disturbed:
    """Run the same tasks and seeds undisturbed, and under families (none: all) at strengths.

    ``options.journal`` is a folder here. Errors as of ``evaluate_policy``.
    """
    from dtvla_sim.perturbation import FAMILIES, STRENGTHS

    for what, named, known in (('family', families, FAMILIES), ('strength', strengths, STRENGTHS)):
        for value in named:
            one_of(what, value, [*map(str, known)])
    families = tuple(families) or tuple(FAMILIES)
    cells = ['', *(f'{family}:{k}' for family in families for k in strengths)]
    if len(set(cells)) < len(cells):
        raise UserError('a family or strength is named twice')
    _check(options)
    tasks, settings = inspect_scene(options.scene, options.tasks)
    how, options = identify(options)
    settings |= {'mode': options.mode, **how}
    found = run_episodes(
        f'{options.scene.suite}, {len(cells)} cells', settings,
        _jobs(tasks, seed, options.episodes), partial(_policy_episodes, options),
        options.journal, [(cell,) for cell in cells])
    return Disturbed(options, settings | {'seeds': [seed, seed + options.episodes - 1]}, tasks,
                     families, dict(zip(cells, found, strict=True)))


def evaluate_robustness(options: EvalOptions, families: Sequence[str] = (),
                        strengths: Sequence[str] = ('1', '2', '3'),
                        confidence: bool = False) -> dict[str, Any]:
    """Print success by family (default: all) and strength; return what is written.

    ``options.journal`` is a folder here. Every cell has the same tasks and seeds. With
    ``confidence`` it also says which failures were announced. Errors as of ``evaluate_policy``,
    and with ``confidence`` for a policy that is not calibrated.
    """
    seed = evaluation_seed(options.seed)
    calibration = require_calibrated(options) if confidence else None
    options, settings, tasks, families, found = run_disturbed(options, families, strengths, seed)
    rows = {cell: _cell(episodes, tasks) for cell, episodes in found.items()}
    summary = {
        **settings, 'versions': results.versions(),
        'strengths': list(strengths), 'undisturbed': rows[''], 'families': {
            family: {k: rows[f'{family}:{k}'] for k in strengths} for family in families}}
    title, sentence = f'{options.scene.suite}: success under disturbances', weakness(rows)
    if calibration is not None:
        summary['confidence'] = announced(found, calibration, settings['replan_steps'])
        sentence += f' {told_announced(summary["confidence"])}'
    Console().print(robustness_table(title, summary))
    print(sentence)
    cells_of = {name: [] for name in ('', *families)}  # type: dict[str, list[Any]]
    for cell, row in rows.items():
        family, _, strength = cell.partition(':')
        cells_of[family].append(((strength or '-',), row))
    write_rates(options.html, title, sentence, [
        RateTable(name or 'undisturbed', ('strength',), mine) for name, mine in cells_of.items()],
        {key: value for key, value in summary.items()
         if key not in ('undisturbed', 'families', 'confidence')})
    files.write_json(options.json_file, summary)
    return summary


def inspect_scene(setup: SceneSetup,
                  tasks: Sequence[str] = ()) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the tasks, and a result's suite, starts and flags; UserError for unknown ones."""
    with closing(setup.make()) as env:
        require_tasks(tasks, env.tasks, setup.suite)
        limit = {'max_steps': setup.max_steps} if setup.max_steps else {}
        return tuple(tasks) or tuple(env.tasks), {
            'suite': setup.suite, 'starts': env.starts, 'flags': {**env.flags, **limit}}


def available_device(engine: str, device: str) -> str:
    """Return the device an engine will run on, 'auto' decided; UserError if it is not there."""
    one_of('device', device, DEVICES)
    if device == 'cpu':
        return device
    if engine == 'torch':
        import torch

        available = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
    else:
        import onnxruntime

        found = onnxruntime.get_available_providers()
        available = [name for name, provider in PROVIDERS.items() if provider in found]
    if device == 'auto':
        return 'cuda' if 'cuda' in available else 'cpu'
    one_of(f'device of the engine {engine} here', device, available)
    return device


def identify(options: EvalOptions) -> tuple[dict[str, Any], EvalOptions]:
    """Return which policy runs and how, its files verified, and the options with that decided."""
    folder = files.find_shared(options.policy)
    manifest = PolicyManifest.read(folder)
    for name in manifest.files:
        manifest.verified(folder, name)
    decided = replace(
        options, policy=folder.resolve(), device=available_device(options.engine, options.device),
        after_success=after_success(manifest, options.mode),
        calibration=manifest.calibration)
    return {
        'policy': str(options.policy), 'engine': options.engine, 'device': decided.device,
        'threads': options.threads,
        'files': {name: digest for name, digest in manifest.files.items() if name != PROOF},
        'replan_steps': options.replan_steps or manifest.action.replan_steps,
        # Left out where there is none, so that evaluations begun before it can go on.
        **({'done_margin': manifest.done_margin} if manifest.done_margin else {}),
        'images': {'upright': manifest.images.upright, 'mirrored': manifest.images.mirrored},
    }, decided


def one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is not allowed, by name."""
    if value not in allowed:
        raise UserError(f'unknown {what} "{value}"; there is: {", ".join(allowed)}')


def _processes(options: EvalOptions, make_worker: Callable[..., Any], *setup: Any) -> Source:
    """Return a source of episodes in processes, each at one task at a time."""
    return lambda jobs: run_jobs(jobs, make_worker, setup, options.workers, task_of, options.ray)


def _policy_episodes(options: EvalOptions,
                     jobs: Sequence[Any]) -> Generator[tuple[Any, EpisodeResult], None, None]:
    """Yield episodes with a policy; what is kept of failures is kept on this machine."""
    with closing(_processes(options, workers.make_policy_worker, options)(jobs)) as evaluated:
        for job, episode in evaluated:
            workers.keep(options, *episode)
            yield job, episode[0]


def _jobs(tasks: Sequence[str], seed: int, episodes: int) -> list[Job]:
    return [(task, seed + k) for task in tasks for k in range(episodes)]


def _trial(options: EvalOptions, path: Path) -> Trial:
    """Return the wordings in a file, as the policy knows their tasks; UserError as of the file."""
    if any(p.startswith('language') for p in options.scene.perturb):
        raise UserError('--perturb language rewords what --instructions says; give one of them')
    with closing(options.scene.make()) as env:
        sentences = dict(env.instructions)
    wordings = Wordings.read(path, sentences)
    if not wordings.tasks:
        raise UserError(f'{path}: no wordings of a task; write some, or try what must be refused '
                        'alone with --understand-only')
    return Trial.of(wordings.only(options.tasks or tuple(wordings.tasks)), sentences,
                    PolicyManifest.read(files.find_shared(options.policy)).tasks)


def _check(options: EvalOptions, modes: Sequence[str] = MODES) -> None:
    """Refuse options that are unknown or impossible together, before anything runs."""
    files.require_writable(options.json_file, options.html)
    one_of('mode', options.mode, modes)
    one_of('engine', options.engine, ENGINES)
    one_of('via', options.via, VIAS)
    if options.mode == 'replay' and options.instructions is not None:
        raise UserError('--mode replay hears nothing; leave out --instructions')
    if options.via != 'ros':
        if options.realtime:
            raise UserError('--realtime needs --via ros: in process time waits for the policy')
        return
    for wrong, given in (
            (options.ray is not None, '--ray'),
            (options.mode not in NODE_MODES, f'--mode {options.mode}'),
            (any(p.startswith('language') for p in options.scene.perturb), '--perturb language')):
        if wrong:
            raise UserError(f'{given} works in process only; leave out --via ros')


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


def _title(settings: Mapping[str, Any]) -> str:
    """Return the heading of table and page: what was evaluated, and under what."""
    mode = settings.get('mode')
    what = ('scripted experts' if mode is None else 'open-loop replay' if mode == 'replay' else
            f'{mode} thought')
    parts = [f'{settings["suite"]}: {what}', f'{settings["starts"]} starts',
             *settings.get('perturb', ()), *(['disturbed'] if settings.get('noise') else ())]
    if 'instructions' in settings:
        parts.append(f'told as in {settings["instructions"]}')
    if settings.get('via') == 'ros':
        parts.append('over ROS in ' + ('real time' if settings['realtime'] else 'lock-step'))
    return ', '.join(parts)


def _evaluate(options: EvalOptions, settings: dict[str, Any], tasks: Sequence[str],
              jobs: Sequence[Job], source: Source,
              complete: Callable[[dict[str, Any]], None] | None = None,
              **more: Any) -> dict[str, Any]:
    """Run the episodes (task and seed); ``complete``, print and write the summary."""
    title, console = _title(settings), Console()
    found, = run_episodes(title, settings, jobs, source, options.journal)
    summary = {
        **settings, 'seeds': [end(seed for _, seed in jobs) for end in (min, max)],
        'versions': results.versions(),
        **results.summarise(found, tasks, options.calibration), **more}
    if options.after_success:
        summary['done'] = results.said_done(found)
    if complete is not None:
        complete(summary)
    console.print(results.table(title, summary))
    for table in tables(summary) if complete is not None else ():
        console.print(table)
    if 'done' in summary:
        console.print(results.told_done(summary['done']))
    if summary['refused']:
        console.print(f'{summary["refused"]} failed because the policy refused the sentence')
    for phase, row in summary['latency'].items():
        console.print(f'{phase:>10}  {row["p50_ms"]:7.1f} ms median {row["p99_ms"]:7.1f} ms p99')
    files.write_json(options.json_file, summary)
    return summary


def run_episodes(title: str, settings: Mapping[str, Any], jobs: Sequence[Job],
                 source: Source, journal: Path | None,
                 cells: Sequence[tuple[str, ...]] = ((),)) -> list[list[EpisodeResult]]:
    """Run every task and seed in every cell, those in a journal excepted.

    A cell is what stands before task and seed in a job: nothing, or a perturbation, '' for none;
    then ``journal`` is a folder with a file of each. Result: the episodes of each cell.
    """
    wanted = [(*cell, *job) for job in jobs for cell in cells]
    done: dict[Job, EpisodeResult] = {}
    journals: dict[Job, files.Journal] = {}

    def kept() -> str:
        return (f'{journal}: {len(done)} of {len(wanted)} episodes are kept; repeat the command '
                'to go on' if journals else
                'interrupted, and nothing is kept; with --resume finished episodes are')

    with resumable(kept), ExitStack() as stack:
        if journal is not None:
            for cell in cells:
                name = f'{cell[0].replace(":", "-") or "undisturbed"}.jsonl' if cell else ''
                journals[cell] = stack.enter_context(files.Journal(
                    journal / name, {**settings, **({'perturb': cell[0]} if cell else {})},
                    itemgetter('task', 'seed'),
                    told=('policy',)))  # where it lies; its files' hashes say which it is
                done |= {(*cell, *key): EpisodeResult.from_dict(row)
                         for key, row in journals[cell].done.items()}
        missing = [job for job in wanted if job not in done]
        bar = stack.enter_context(Progress(
            *Progress.get_default_columns(), TextColumn('{task.fields[rate]}'),
            console=Console(stderr=True)))
        line = bar.add_task(title, total=len(wanted), completed=len(wanted) - len(missing),
                            rate=standing(wanted, done))
        # The processes end here, however this ends.
        for job, result in stack.enter_context(closing(source(missing))):
            done[job] = result
            if journals:
                journals[job[:-2]].add(asdict(result))
            bar.update(line, advance=1, rate=standing(wanted, done))
    return [[done[job] for job in wanted if job[:-2] == cell] for cell in cells]


def standing(wanted: Sequence[Job], done: Mapping[Job, EpisodeResult]) -> str:
    """Return the success so far, and of how many of the tasks: they come one after another."""
    have = [job for job in wanted if job in done]
    rate = str(Rate.of(done[job].success for job in have))
    if len(have) == len(wanted):
        return rate
    begun, tasks = (len({task_of(job) for job in jobs}) for jobs in (have, wanted))
    return f'{begun}/{tasks} tasks: {rate}'


def _cell(found: Sequence[EpisodeResult], tasks: Sequence[str]) -> dict[str, Any]:
    """Return success in total and by task, and how often the policy refused the sentence."""
    return {**Rate.of(r.success for r in found).to_dict(), 'refused': results.refused(found),
            'tasks': {task: [sum(r.success for r in found if r.task == task),
                             sum(r.task == task for r in found)] for task in tasks}}


def weakness(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sentence that names the cell with the lowest success; '' is the undisturbed."""
    worst = min((cell for cell in rows if cell), key=lambda cell: rows[cell]['rate'])
    family, _, strength = worst.partition(':')
    return (f'Undisturbed the policy succeeds in {results.counted(rows[""])} episodes; what '
            f'disturbs it most is {family} at strength {strength}: '
            f'{results.counted(rows[worst])}.')


def robustness_table(title: str, summary: Mapping[str, Any]) -> Table:
    """Return families by strengths as rich prints it."""
    def text(*rows: Mapping[str, Any]) -> str:
        return Rate(*(sum(row[key] for row in rows) for key in ('successes', 'n'))).counts

    strengths, rows = summary['strengths'], summary['families']
    view = results.plain_table(
        title, ['family', *(f'strength {k}' for k in strengths)],
        [(family, *map(text, row.values())) for family, row in rows.items()],
        ('all', *(text(*(row[k] for row in rows.values())) for k in strengths)))
    view.caption = f'undisturbed {text(summary["undisturbed"])}; in brackets Wilson 95 %'
    refused = sum(cell['refused'] for row in rows.values() for cell in row.values())
    if refused:
        view.caption += f'\n{refused} failed because the policy refused the sentence'
    return view
