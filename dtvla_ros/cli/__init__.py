"""The ``dtvla`` command. Every command imports what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from dtvla_ros.cli.annotate import app as annotate_app
from dtvla_ros.cli.arguments import Antialiasing, Changes, Json, Suite, Tasks, Workers, names
from dtvla_ros.cli.evaluation import app as evaluation_app
from dtvla_ros.cli.measure import app as measure_app
from dtvla_ros.cli.models import app as models_app
from dtvla_ros.cli.recording import app as recording_app
from dtvla_ros.cli.rl import app as rl_app
from dtvla_ros.cli.thought import app as thought_app
from dtvla_ros.errors import NodeDied, UserError
from dtvla_ros.ros.topic_cli import app as topic_app

app = typer.Typer(
    name='dtvla',
    help='A policy that writes down its thought, then acts: simulate, collect, train, evaluate.',
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode='markdown',
    pretty_exceptions_enable=False,
    context_settings={'help_option_names': ['-h', '--help']},
)
app.add_typer(topic_app)
app.add_typer(models_app)
app.add_typer(recording_app)
app.add_typer(evaluation_app)
app.add_typer(measure_app)
app.add_typer(annotate_app)
app.add_typer(thought_app)


DEMO_TASKS = (
    'put_the_can_in_the_wooden_bin,stack_the_red_cube_on_the_green_cube,'
    'push_the_green_cube_onto_the_yellow_mark'
)


@app.command()
def demo(
    policy: Annotated[Path, typer.Option(help='Folder of a policy (its manifest).')] = Path(
        'models/nano'
    ),
    tasks: Annotated[str, typer.Option(help='Comma-separated task names.')] = DEMO_TASKS,
    episodes: Annotated[int, typer.Option(min=1, help='Episodes per task.')] = 5,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help='First seed. [default: the first evaluation seed]'),
    ] = None,
    mode: Annotated[str, typer.Option(
        help='Thought: full, masked, random, swapped or frozen.')] = 'full',
    engine: Annotated[str, typer.Option(help='onnx or torch.')] = 'onnx',
    out: Annotated[Path, typer.Option(help='Folder for film, sheet and result.')] = Path('out'),
    viz: Annotated[str, typer.Option(help='rerun: also write demo.rrd for Rerun.')] = '',
) -> None:
    """Watch a simulated arm think and act; every command travels over ROS 2 topics.

    Starts the simulator, the policy and the command gate as three processes, with or without
    ROS installed, on start states nothing was trained on. Leaves `demo.mp4`, a contact sheet
    `demo.png` and `demo.json`.

    **Examples**

    `dtvla demo`

    `dtvla demo --tasks put_the_lemon_in_the_blue_bin --episodes 10 --out out/lemon`

    `dtvla demo --mode masked --out out/masked` the same arm without a thought
    """
    from dtvla_ros.demo.run import run_demo

    run_demo(policy, names(tasks), episodes, seed, out, mode=mode, engine=engine, viz=viz)


@app.command()
def collect(
    out: Annotated[Path, typer.Option(help='Folder of the dataset.', file_okay=False)] = Path(
        'data/tabletop'
    ),
    suite: Suite = 'tabletop',
    starts: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Start distribution. [default: the suite's first; never its recorded "
                          'test states]'),
    ] = None,
    tasks: Tasks = None,
    episodes: Annotated[int, typer.Option(min=1, help='Episodes tried, over all tasks.')] = 1200,
    workers: Workers = 2,
    seed: Annotated[int, typer.Option(min=0, help='Which block of start states.')] = 0,
    camera_every: Annotated[
        int, typer.Option(help='Keep every k-th control step as a frame.')] = 2,
    chunk: Annotated[int, typer.Option(min=1, help='Actions stored with each frame.')] = 8,
    noise: Annotated[float, typer.Option(min=0.0, help='Strength of the injected noise.')] = 1.0,
    clean_share: Annotated[float, typer.Option(help='Demonstrations without noise.')] = 0.15,
    drop_share: Annotated[
        float, typer.Option(help='Demonstrations that lose the object once.')] = 0.12,
    shove_share: Annotated[
        float, typer.Option(help='Demonstrations shoved aside once.')] = 0.12,
    short_share: Annotated[
        float, typer.Option(help='Episodes of the first second only, anywhere.')] = 0.0,
    look_share: Annotated[
        float, typer.Option(
            help='Episodes of one frame for each task that the scene allows, anywhere.')] = 0.0,
    antialiasing: Antialiasing = True,
) -> None:
    """Record the scripted experts into a LeRobot v3.0 dataset.

    Noise disturbs the executed action; the expert's clean one is the label. Failed episodes
    are dropped. Finished shards are kept: repeat the command to go on, or with more episodes
    to add to them.

    **Examples**

    `dtvla collect --episodes 1200 --workers 2 --out data/tabletop`

    `dtvla collect --seed 1 --look-share 1 --episodes 1200 --out data/looks` teaches to look, a
    dozen times cheaper

    `dtvla collect --suite libero_object --starts shuffle --out data/object` (docs/libero.md)
    """
    from dtvla_ros.data.collect import CollectOptions
    from dtvla_ros.data.collect import collect as run

    info = run(out, CollectOptions(
        suite=suite, starts=starts, tasks=names(tasks), episodes=episodes, seed=seed,
        camera_every=camera_every, chunk=chunk, noise=noise, clean_share=clean_share,
        drop_share=drop_share, shove_share=shove_share, short_share=short_share,
        look_share=look_share, antialiasing=antialiasing), workers)
    print(f'{out}: {info["total_episodes"]} episodes, {info["total_frames"]} frames, '
          f'{info["total_tasks"]} tasks')


train = typer.Typer(
    help='Train policies: from demonstrations, and by practice.', no_args_is_help=True,
    rich_markup_mode='markdown', context_settings={'help_option_names': ['-h', '--help']})
app.add_typer(train, name='train')
train.add_typer(rl_app)


@train.command('sft')
def train_sft(
    data: Annotated[list[Path], typer.Option(help='Dataset folder; repeat for several.')],
    out: Annotated[Path, typer.Option(help='Folder of the run.', file_okay=False)],
    config: Annotated[Path, typer.Option(help='Recipe.', dir_okay=False)] = Path(
        'config/train/nano.yaml'
    ),
    changes: Changes = None,
    init: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help='Begin with the weights of this run, policy or safetensors file; words '
                          'of the data that a small policy lacks are added.'),
    ] = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.01, help='Training time (or give --steps).'),
    ] = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help='Optimizer steps (or give --minutes).'),
    ] = None,
    weight: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(help='Share of the draws, for each --data in turn. [default: by frames]'),
    ] = None,
    eval_suite: Annotated[str, typer.Option(help='Suite of the evaluations.')] = 'tabletop',
    eval_episodes: Annotated[
        int, typer.Option(min=0, help='Held-out episodes per task at each evaluation.')] = 1,
    eval_every: Annotated[float, typer.Option(help='Minutes between evaluations.')] = 10.0,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help='CPU threads. [default: all cores]'),
    ] = None,
    loaders: Annotated[
        int, typer.Option(min=1, help='Processes that make batches; 4 keep a GPU busy.')] = 1,
    compile: Annotated[  # noqa: A002
        bool, typer.Option('--compile', help='Fuse the network first (needs a C++ compiler): '
                           'half as many seconds a step on a CPU.')] = False,
) -> None:
    """Teach a policy the demonstrations' thoughts and actions.

    Repeat the command to go on where it stopped; Ctrl-C saves first. Watch it with
    `tensorboard --logdir RUN/tensorboard`. Under `accelerate launch` it trains on many GPUs.

    **Examples**

    `dtvla train sft --data data/tabletop --out runs/nano --minutes 30`

    `dtvla train sft --data data/a --data data/b --out runs/more --init runs/nano --minutes 10
    --set learning_rate=5e-4`

    `dtvla train sft --data data/cot --init models/released --out runs/lora --steps 5000
    --config config/train/deepthinkvla-3b-lora.yaml --eval-episodes 0`
    """
    from dtvla_ros.training.config import SftConfig
    from dtvla_ros.training.sft import SftRun
    from dtvla_ros.training.sft import train_sft as run

    run(SftConfig.read(config, changes or ()), SftRun(
        data=tuple(data), out=out, init=init, minutes=minutes, steps=steps,
        evaluate_every=eval_every, episodes=eval_episodes, suite=eval_suite, threads=threads,
        loaders=loaders, compile=compile, weights=tuple(weight or ())))
    print(f'{out}: trained; next: dtvla export {out} --out models/{out.name}')


@train.command('bench')
def bench_training(
    batch: Annotated[int, typer.Option(min=1, help='Sequences in a step.')] = 1,
    width: Annotated[int, typer.Option(min=8, help="The decoder's, a multiple of 8.")] = 64,
    layers: Annotated[int, typer.Option(min=1, help='Decoder layers.')] = 2,
    thought: Annotated[int, typer.Option(min=1, help='Words of the thought.')] = 73,
    steps: Annotated[int, typer.Option(min=1, help='Timed steps of each.')] = 5,
    threads: Annotated[int, typer.Option(min=1, help='CPU threads.')] = 1,
    json_file: Json = None,
) -> None:
    """Measure a training step beside a plain one with full-vocabulary logits at every row.

    Both train the released layout with its 257,157 words at a small width, on the CPU, on the
    same random batch, each in a process of its own. Times are only good on an idle machine.

    **Example**

    `dtvla train bench --steps 5`
    """
    from dataclasses import asdict

    from dtvla_ros.files import write_json
    from dtvla_ros.training.bench import KINDS, TrainBench, bench

    measured = bench(TrainBench(batch, width, layers, thought, steps, threads))
    for kind in KINDS:
        one = measured[kind]
        print(f'{kind:10}  {batch / one.seconds:7.3f} samples/s  peak {one.memory / 1e9:5.2f} GB')
    plain, ours = (measured[kind] for kind in KINDS)
    print(f'ratio       {plain.seconds / ours.seconds:.2f} x the speed, '
          f'{plain.memory / ours.memory:.2f} x less peak memory')
    if json_file is not None:
        write_json(json_file, {kind: asdict(one) for kind, one in measured.items()})


@train.command('time')
def time_training(
    config: Annotated[Path, typer.Option(help='Recipe (YAML).')] = Path(
        'config/train/deepthinkvla-3b-lora.yaml'),
    changes: Changes = None,
    geometry: Annotated[str, typer.Option(
        help='deepthinkvla-3b or bench-60m; random weights.')] = 'deepthinkvla-3b',
    thought: Annotated[int, typer.Option(min=1, help='Words of the thought.')] = 73,
    steps: Annotated[int, typer.Option(min=1, help='Timed steps, after one that is not.')] = 5,
    json_file: Json = None,
) -> None:
    """Time a step of a recipe at full size, by phase, beside what it must compute.

    Random weights are made on the spot, on the GPU where there is one: the 2.9 B policy needs
    24 GB there with adapters, 80 GB as a whole.

    **Examples**

    `dtvla train time --config config/train/deepthinkvla-3b-lora.yaml`

    `dtvla train time --geometry bench-60m --steps 2 --set accumulate=1`
    """
    from dtvla_ros.files import write_json
    from dtvla_ros.training.config import SftConfig
    from dtvla_ros.training.step_times import time_steps

    measured = time_steps(SftConfig.read(config, changes or ()), geometry, steps, thought)
    print('\n'.join(measured.lines()))
    if json_file is not None:
        write_json(json_file, measured.to_dict())


def main() -> None:
    """Run a command; bad input is one line and exit code 2, a node that died 1, Ctrl-C 130."""
    try:
        _run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _run() -> None:
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _refuse(str(error))
    except NodeDied as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:
        # typer's own usage errors; which module defines their class depends on its version.
        if type(error).__name__ == 'NoArgsIsHelpError':
            raise SystemExit(2) from None
        if type(error).__name__ == 'Abort':
            raise SystemExit(130) from None
        if not hasattr(error, 'format_message'):
            raise
        _refuse(f'{error.format_message()} (see dtvla --help)')
    else:
        raise SystemExit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> None:
    print('error: ' + ' '.join(message.split()), file=sys.stderr)
    raise SystemExit(2)
