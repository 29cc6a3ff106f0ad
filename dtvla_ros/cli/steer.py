"""``dtvla steer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from dtvla_ros.cli.arguments import Json, Suite, Tasks, Workers, names

app = typer.Typer()


@app.command()
def steer(
    policy: Annotated[Path, typer.Option(help='Folder of a policy (its manifest).')] = Path(
        'models/nano'),
    suite: Suite = 'tabletop',
    tasks: Tasks = None,
    episodes: Annotated[int, typer.Option(min=1, help='Start states per task.')] = 10,
    starts: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Start distribution. [default: the suite's first]")] = None,
    workers: Workers = 2,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help='First seed. [default: the first evaluation seed]')] = None,
    json_file: Json = None,
) -> None:
    """Measure whether the arm does as its thought says.

    Everything but the thought stays as it is. First it thinks what it would think of another
    task in the same scene: is that one done, or the one it was told? Then the words for where
    the hand should go are turned round: do the actions turn too? A policy whose thought is
    decoration ignores both.

    **Example**

    `dtvla steer --policy models/nano --episodes 20 --json out/steer.json`
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import track

    from dtvla_ros import files
    from dtvla_ros.evaluation import steering
    from dtvla_ros.evaluation.command import look_at
    from dtvla_ros.evaluation.pool import run_jobs
    from dtvla_ros.evaluation.report import versions
    from dtvla_ros.evaluation.seeds import evaluation_seed
    from dtvla_ros.evaluation.setup import PolicySetup, SceneSetup, task_of
    from dtvla_ros.policy.manifest import PolicyManifest
    from dtvla_ros.share import find

    if json_file is not None:
        files.require_writable(json_file)
    folder, first = find(policy), evaluation_seed(seed)
    manifest = PolicyManifest.read(folder)
    scene = look_at(SceneSetup(suite, starts), names(tasks))
    setup = PolicySetup(SceneSetup(suite, starts), str(folder), 'onnx', 'full')
    wanted = [(task, k) for task in scene.tasks for k in range(first, first + episodes)]
    done = dict(track(
        run_jobs(wanted, steering.make_steering_worker, (setup,), workers, task_of),
        f'{suite}, steered', len(wanted), console=Console(stderr=True)))
    results = [done[job] for job in wanted]
    summary = steering.summarise(results)
    Console().print(steering.table(f'{suite}: steered by the thought', summary))
    if json_file is not None:
        files.write_json(json_file, {
            'suite': suite, 'starts': scene.starts, 'policy': str(policy),
            'files': dict(manifest.files), 'seeds': [first, first + episodes - 1],
            'flags': dict(scene.flags), 'versions': versions(), **summary,
            'episodes': [asdict(result) for result in results]})
