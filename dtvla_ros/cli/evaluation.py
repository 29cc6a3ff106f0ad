"""``dtvla eval``, ``dtvla robustness``, ``dtvla report`` and ``dtvla experts``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from dtvla_ros.cli.arguments import Antialiasing, Json, Suite, Tasks, Workers, names

app = typer.Typer()

Policy = Annotated[Path, typer.Option(help='Folder of a policy (its manifest).')]
Mode = Annotated[str, typer.Option(
    help="Thought: full, masked, random, swapped (another task's) or frozen; replay: no policy, "
    'eyes closed.')]
EngineName = Annotated[str, typer.Option('--engine', help='onnx or torch.')]
Seed = Annotated[
    Optional[int],  # noqa: UP045 - typer reads this annotation at run time on Python 3.10
    typer.Option(help='First seed. [default: the first evaluation seed]'),
]
Starts = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help='Start states: benchmark, random, jitter or shuffle, as the suite has '
                 "them. [default: the suite's]"),
]
Replan = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help='Actions per decision. [default: as the policy promises]'),
]
Device = Annotated[str, typer.Option(help='Where the policy runs: cpu, cuda, tensorrt or auto.')]
Threads = Annotated[int, typer.Option(
    min=1, help="Of the policy's engine on the CPU, in each process.")]
Shadows = Annotated[bool, typer.Option(
    '--shadows/--no-shadows', help='As LIBERO draws; its own lights throw none.')]
MaxSteps = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Control steps per episode. [default: the suite's limit]"),
]
Nano = Path('models/nano')


@app.command('eval')
def evaluate(
    policy: Policy = Nano,
    suite: Suite = 'tabletop',
    tasks: Tasks = None,
    episodes: Annotated[int, typer.Option(min=1, help='Episodes per task.')] = 50,
    mode: Mode = 'full',
    engine: EngineName = 'onnx',
    device: Device = 'cpu',
    threads: Threads = 1,
    workers: Workers = 2,
    seed: Seed = None,
    replan: Replan = None,
    starts: Starts = None,
    perturb: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help='Disturb the scene: family:strength, for instance camera:2; repeat for '
                     'several (see dtvla robustness).'),
    ] = None,
    antialiasing: Antialiasing = True,
    shadows: Shadows = True,
    max_steps: MaxSteps = None,
    via: Annotated[str, typer.Option(
        help='inprocess, or ros: simulator, policy and command gate as three processes.')
    ] = 'inprocess',
    realtime: Annotated[bool, typer.Option(
        '--realtime', help='With --via ros: the scene does not wait while the policy thinks.')
    ] = False,
    videos: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help='Write a film of every failure here.', file_okay=False),
    ] = None,
    resume: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help='Journal of finished episodes, kept and continued.', dir_okay=False),
    ] = None,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help='Write a report with a still of every failure.', dir_okay=False),
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure a policy's success per task, in lock-step: time waits for the policy.

    Start states are drawn from seeds no demonstration was ever recorded on. The table gives
    n, the success rate and its 95 % Wilson interval. Over ROS in lock-step the same seeds end
    the same way as in process; in real time thinking takes time, and the result says so.

    **Examples**

    `dtvla eval --policy models/nano --episodes 50 --json out/eval.json --html out/eval.html`

    `dtvla eval --mode masked --episodes 20` acts without a thought

    `dtvla eval --mode replay` repeats one demonstration blindly: what needs no eyes scores here

    `dtvla eval --episodes 10 --videos out/failures --resume out/eval.jsonl`

    `dtvla eval --via ros --realtime --episodes 5`

    `dtvla eval --perturb camera:2 --perturb light:1 --episodes 10`

    `dtvla eval --suite libero_10 --policy my_policy --max-steps 620 --device cuda`
    """
    from dtvla_ros.evaluation.command import EvalOptions, evaluate_policy
    from dtvla_ros.evaluation.ros_runner import run_over_ros

    evaluate_policy(EvalOptions(
        policy=policy, suite=suite, tasks=names(tasks), episodes=episodes, mode=mode,
        engine=engine, device=device, threads=threads, workers=workers, seed=seed,
        replan_steps=replan, starts=starts, perturb=tuple(perturb or ()),
        antialiasing=antialiasing, shadows=shadows, max_steps=max_steps, via=via,
        realtime=realtime, videos=videos, journal=resume, html=html, json_file=json_file),
        run_over_ros)


@app.command()
def robustness(
    policy: Policy = Nano,
    suite: Suite = 'tabletop',
    tasks: Tasks = None,
    episodes: Annotated[
        int, typer.Option(min=1, help='Episodes per task, family and strength.')] = 10,
    families: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help='Comma-separated: layout, camera, robot, language, light, texture, '
                     'noise. [default: all]'),
    ] = None,
    strengths: Annotated[str, typer.Option(help='Comma-separated.')] = '1,2,3',
    mode: Annotated[str, typer.Option(
        help="Thought: full, masked, random, swapped (another task's) or frozen.")] = 'full',
    engine: EngineName = 'onnx',
    device: Device = 'cpu',
    threads: Threads = 1,
    workers: Workers = 2,
    seed: Seed = None,
    replan: Replan = None,
    starts: Starts = None,
    antialiasing: Antialiasing = True,
    shadows: Shadows = True,
    max_steps: MaxSteps = None,
    resume: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help='Folder of finished episodes, kept and continued.', file_okay=False),
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure what disturbs a policy: seven families, as in LIBERO-Plus, at three strengths.

    Every cell of the table meets the same tasks and seeds, and so does the undisturbed scene
    below it.

    **Examples**

    `dtvla robustness --policy models/nano --episodes 10 --json out/robustness.json`

    `dtvla robustness --families camera,light --resume out/robustness --episodes 20`
    """
    from dtvla_ros.evaluation.command import EvalOptions
    from dtvla_ros.evaluation.robustness import evaluate_robustness

    evaluate_robustness(
        EvalOptions(
            policy=policy, suite=suite, tasks=names(tasks), episodes=episodes, mode=mode,
            engine=engine, device=device, threads=threads, workers=workers, seed=seed,
            replan_steps=replan, starts=starts, antialiasing=antialiasing, shadows=shadows,
            max_steps=max_steps, journal=resume, json_file=json_file),
        names(families), names(strengths))


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help='Files of dtvla eval --json.')],
    into: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help='Document whose success table is replaced.', dir_okay=False),
    ] = None,
    policy: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help='Policy whose manifest gets the success table.', file_okay=False),
    ] = None,
) -> None:
    """Put the success of several modes side by side.

    One suite and start distribution: tasks by modes. Several: those by modes, totals in the cells.

    **Examples**

    `dtvla report out/full.json out/masked.json out/random.json out/replay.json`

    `dtvla report out/full.json out/replay.json --into README.md --policy models/nano`

    `dtvla report out/libero/my_policy/*.json` what `make libero-table` does at its end
    """
    from dtvla_ros.evaluation.comparison import compare

    compare(results, into, policy)


@app.command()
def experts(
    suite: Suite = 'tabletop',
    tasks: Tasks = None,
    episodes: Annotated[int, typer.Option(min=1, help='Episodes per task.')] = 50,
    noise: Annotated[
        bool, typer.Option('--noise', help='Disturb the executed action as collection does.')
    ] = False,
    workers: Workers = 2,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help='First seed. [default: 0; with --starts benchmark the first '
                     'evaluation seed]'),
    ] = None,
    starts: Starts = None,
    json_file: Json = None,
) -> None:
    """Measure the scripted experts that make the demonstrations.

    **Examples**

    `dtvla experts --suite tabletop --episodes 50`

    `dtvla experts --episodes 20 --noise --json out/experts.json`

    `dtvla experts --suite libero_object --starts random --episodes 50`
    """
    from dtvla_ros.evaluation.command import evaluate_experts

    evaluate_experts(
        suite=suite, tasks=names(tasks), episodes=episodes, noise=noise,
        workers_count=workers, seed=seed, starts=starts, json_file=json_file,
    )
