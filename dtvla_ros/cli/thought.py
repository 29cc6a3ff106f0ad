"""``dtvla steer`` and ``dtvla recover``: what the thought is good for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dtvla_ros.cli import arguments as args
from dtvla_ros.cli.arguments import group, names

app = group()

@app.command()
def steer(
    policy: args.Policy = args.NANO,
    suite: args.Suite = 'tabletop',
    tasks: args.Tasks = None,
    episodes: Annotated[int, typer.Option(min=1, help='Start states per task.')] = 10,
    starts: args.Starts = None,
    workers: args.Workers = 2,
    seed: args.Seed = None,
    json_file: args.Json = None,
) -> None:
    """Measure whether the arm does as its thought says.

    Everything but the thought stays as it is. First it thinks what it would think of another
    task in the same scene: is that one done, or the one it was told? Then the words for where
    the hand should go are turned round: do the actions turn too? A policy whose thought is
    decoration ignores both.

    **Example**

    `dtvla steer --policy models/nano --episodes 20 --json out/steer.json`
    """
    from rich.console import Console

    from dtvla_ros.evaluation import steering

    def report(results: Sequence[steering.Steering]) -> dict[str, Any]:
        summary = steering.summarise(results)
        Console().print(steering.table(f'{suite}: steered by the thought', summary))
        return summary

    _measure(policy, suite, tasks, episodes, starts, workers, seed, json_file, 'steered',
             steering.make_steering_worker, [()], report)


@app.command()
def recover(
    policy: args.Policy = args.NANO,
    suite: args.Suite = 'tabletop',
    tasks: args.Tasks = None,
    episodes: Annotated[int, typer.Option(min=1, help='Start states per task and mode.')] = 17,
    starts: args.Starts = None,
    workers: args.Workers = 2,
    seed: args.Seed = None,
    shown: Annotated[int, typer.Option(min=0, help='Recoveries told thought by thought.')] = 2,
    json_file: args.Json = None,
) -> None:
    """Knock the object out of the gripper once in every episode; count who succeeds anyway.

    With the policy's own thought and with an empty one, on the same start states.

    **Example**

    `dtvla recover --policy models/nano --episodes 17 --json out/recover.json`
    """
    from rich.console import Console

    from dtvla_ros.evaluation import recovery

    def report(results: Sequence[recovery.Recovery]) -> dict[str, Any]:
        summary = recovery.summarise(results)
        console = Console()
        console.print(recovery.table(f'{suite}: knocked out of the hand', summary))
        for result in recovery.examples(results, shown):
            console.print(f'{result.task}, seed {result.seed}:')
            for k, thought in enumerate(result.thoughts):
                console.print(f'  {"knocked" if k == result.at else "":>8}  {thought}')
        return summary

    _measure(policy, suite, tasks, episodes, starts, workers, seed, json_file, 'knocked',
             recovery.make_recovery_worker, [(mode,) for mode in recovery.MODES], report)


def _measure(
    policy: Path, suite: str, tasks: str | None, episodes: int, starts: str | None, workers: int,
    seed: int | None, json_file: Path | None, what: str, make_worker: Callable[..., Any],
    variants: Sequence[tuple[str, ...]], report: Callable[[Any], dict[str, Any]],
) -> None:
    """Run (variant, task, seed) jobs in processes, report them, write the JSON."""
    from rich.console import Console
    from rich.progress import track

    from dtvla_ros import files
    from dtvla_ros.evaluation.command import look_at
    from dtvla_ros.evaluation.report import versions
    from dtvla_ros.evaluation.seeds import evaluation_seed
    from dtvla_ros.evaluation.workers import PolicySetup, task_of
    from dtvla_ros.policy.manifest import PolicyManifest
    from dtvla_ros.rollout.env import SceneSetup
    from dtvla_ros.rollout.workers import run_jobs
    from dtvla_ros.share import find

    if json_file is not None:
        files.require_writable(json_file)
    folder, first = find(policy), evaluation_seed(seed)
    manifest = PolicyManifest.read(folder)
    scene = look_at(SceneSetup(suite, starts), names(tasks))
    setup = PolicySetup(SceneSetup(suite, starts), str(folder), 'onnx', 'full')
    wanted = [(*variant, task, k) for task in scene.tasks
              for k in range(first, first + episodes) for variant in variants]
    done = dict(track(run_jobs(wanted, make_worker, (setup,), workers, task_of),
                      f'{suite}, {what}', len(wanted), console=Console(stderr=True)))
    results = [done[job] for job in wanted]
    summary = report(results)
    if json_file is not None:
        files.write_json(json_file, {
            'suite': suite, 'starts': scene.starts, 'policy': str(policy),
            'files': dict(manifest.files), 'seeds': [first, first + episodes - 1],
            'flags': dict(scene.flags), 'versions': versions(), **summary,
            'episodes': [asdict(result) for result in results]})
