"""``dtvla train grpo`` and ``dtvla train dagger``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dtvla_ros.cli import arguments as args
from dtvla_ros.cli.arguments import group, names

app = group()


@app.command('grpo')
def train_grpo(
    init: Annotated[Path, typer.Option(file_okay=False,
        help='What to begin with: a training run or a policy.')],
    out: args.RunFolder,
    config: args.Config = Path('config/train/grpo.yaml'),
    changes: args.Changes = None,
    iterations: Annotated[int | None, typer.Option(min=1,
        help='Iterations in all (or give --minutes).')] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01,
        help='Time from now (or give --iterations).')] = None,
    suite: args.Suite = 'tabletop',
    tasks: args.Tasks = None,
    starts: args.Starts = None,
    replan: args.Replan = None,
    workers: Annotated[int | None, typer.Option(min=1,
        help='Simulators. [default: as the config says]')] = None,
    threads: args.CpuThreads = None,
    ray: args.Ray = None,
    estimate: Annotated[bool, typer.Option('--estimate',
        help='Only say what an iteration takes.')] = False,
) -> None:
    """Let a policy practise: reward what succeeds more often than its like.

    Plays groups of episodes from training starts, learns from how much better than its group
    each was, and evaluates on held-out starts. Leaves `report.html` with curves and thoughts.
    Stop or kill it at any time and repeat the command to go on. Under `accelerate launch` every
    process plays and learns its share.

    **Examples**

    `dtvla train grpo --init runs/nano --out runs/grpo --iterations 20`

    `dtvla train grpo --init models/nano --out runs/grpo --iterations 1 --estimate`

    `dtvla train grpo --config config/train/grpo-decisions.yaml --init runs/few --out runs/better
    --iterations 20` compares the samples of every decision instead of whole episodes
    """
    from dtvla_ros.training.grpo.config import GrpoConfig
    from dtvla_ros.training.grpo.train import GrpoRun
    from dtvla_ros.training.grpo.train import train_grpo as run

    settings = GrpoConfig.read(config, changes or ())
    if workers is not None:
        settings = replace(settings, num_envs=workers)
    run(settings, GrpoRun(
        init=init, out=out, iterations=iterations, minutes=minutes, suite=suite,
        tasks=names(tasks), starts=starts, replan_steps=replan, threads=threads, ray=ray),
        estimate)
    if not estimate:
        print(f'{out / "report.html"}: what became of it; next: dtvla export {out} --out POLICY')


@app.command('dagger')
def train_dagger(
    init: Annotated[Path, typer.Option(file_okay=False,
        help='The policy that drives: a training run or a policy.')],
    out: args.NewDataset,
    episodes: Annotated[int, typer.Option(min=1, help='Episodes, over all tasks.')] = 240,
    suite: args.Suite = 'tabletop',
    tasks: args.Tasks = None,
    starts: args.Starts = None,
    seed: Annotated[int, typer.Option(min=0, max=9,
        help='Which block of start states; another one for every round.')] = 7,
    camera_every: args.CameraEvery = 4,
    replan: args.Replan = None,
    workers: args.Workers = 2,
    ray: args.Ray = None,
    antialiasing: args.Antialiasing = True,
) -> None:
    """Let a policy drive and the scripted expert say what it should have done and thought.

    Writes a LeRobot v3.0 dataset of the states that the policy gets itself into; the expert
    takes over after a while and finishes. `dtvla train sft --init` goes on with it, beside the
    demonstrations. Repeat the command to go on where it stopped.

    **Example**, a round

    `dtvla train dagger --init runs/nano --out data/round1 --seed 7`

    `dtvla train sft --init runs/nano --data data/tabletop --data data/round1 --out runs/round1
    --minutes 10`
    """
    from dtvla_ros.training.dagger import DaggerOptions, relabel

    info = relabel(init, out, DaggerOptions(
        suite=suite, tasks=names(tasks), starts=starts, episodes=episodes, seed=seed,
        camera_every=camera_every, antialiasing=antialiasing), workers, replan, ray)
    print(f'{out}: {info["total_episodes"]} episodes, {info["total_frames"]} frames, '
          f'{info["total_tasks"]} tasks')
