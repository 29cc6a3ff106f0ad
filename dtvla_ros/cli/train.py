"""``dtvla train``: from demonstrations, and by practice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dtvla_ros.cli import rl
from dtvla_ros.cli.arguments import Changes, Compile, Config, CpuThreads, RunFolder, group

app = group('train', 'Train policies: from demonstrations, and by practice.')
app.add_typer(rl.app)


@app.command('sft')
def train_sft(
    data: Annotated[list[Path], typer.Option(help='Dataset folder; repeat for several.')],
    out: RunFolder,
    config: Config = Path('config/train/nano.yaml'),
    changes: Changes = None,
    init: Annotated[Path | None, typer.Option(help='Begin with the weights of this run, policy or '
        'safetensors file; words of the data that a small policy lacks are added.')] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01,
        help='Training time (or give --steps).')] = None,
    steps: Annotated[int | None, typer.Option(min=1,
        help='Optimizer steps (or give --minutes).')] = None,
    weight: Annotated[list[float] | None, typer.Option(
        help='Share of the draws, for each --data in turn. [default: by frames]')] = None,
    eval_suite: Annotated[str, typer.Option(help='Suite of the evaluations.')] = 'tabletop',
    eval_episodes: Annotated[int, typer.Option(min=0,
        help='Held-out episodes per task at each evaluation.')] = 1,
    eval_every: Annotated[float, typer.Option(help='Minutes between evaluations.')] = 10.0,
    threads: CpuThreads = None,
    loaders: Annotated[int, typer.Option(min=1,
        help='Processes that make batches; 4 keep a GPU busy.')] = 1,
    compile: Compile = False,
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
