"""``dtvla train``: from demonstrations, by practice, and from an expert's corrections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from dtvla_ros.cli import arguments as args
from dtvla_ros.cli.arguments import File, Folder, Given, call, counts, group, takes
from dtvla_ros.files import find_shared, sole_writer

app = group('train', 'Train policies: from demonstrations, and by practice.')


@app.command('sft')
@takes('data out config changes init minutes steps pretrain weights suite episodes evaluate_every '
       'cpu_threads loaders compile')
def train_sft(
    given: Given,
    data: Annotated[list[Path], Option(help='Dataset folder; repeat for several.')],
    out: args.RunFolder,
    config: args.Config = Path('config/train/nano.yaml'),
    changes: args.Changes = None,
    init: Annotated[Path | None, Option(help='Begin with the weights of this run, policy or '
        'safetensors file; words of the data that a small policy lacks are added.')] = None,
    minutes: Annotated[float | None, Option(min=0.01,
        help='Time in all, over repeated commands (or give --steps).')] = None,
    steps: Annotated[int | None, Option(min=1,
        help='Optimizer steps of the fine-tuning (or give --minutes).')] = None,
    pretrain: Annotated[bool | None, Option('--pretrain/--no-pretrain', help='First learn where '
        'objects are, from their recorded places. [default: only without --init]')] = None,
    weights: Annotated[list[float] | None, Option('--weight',
        help='Share of the samples, for each --data in turn. [default: by frames]')] = None,
    suite: Annotated[str, Option('--eval-suite', help='Suite of the evaluations.')] = 'tabletop',
    episodes: Annotated[int, Option('--eval-episodes', min=0,
        help='Held-out episodes per task at each evaluation.')] = 1,
    evaluate_every: Annotated[float, Option('--eval-every',
        help='Minutes between evaluations.')] = 10.0,
    loaders: Annotated[int, Option(min=0,
        help='Processes that make batches; 4 keep a GPU busy, 0 need no shared memory.')] = 1,
    compile: args.Compile = False,
) -> None:
    """Teach a policy the demonstrations' thoughts and actions.

    A few steps are timed first, and the plan is printed. The run is saved every minute; Ctrl-C
    or SIGTERM save it, too, and the same command goes on there. Watch it with
    `tensorboard --logdir RUN/tensorboard`. Under `accelerate launch` it trains on many GPUs.

    **Examples**
    `dtvla train sft --init models/nano --data data/tabletop --out runs/mine --minutes 10
    --set learning_rate=5e-4` goes on with a policy
    `dtvla train sft --data data/tabletop --data data/places --out runs/nano --minutes 80`
    begins a new one
    `dtvla train sft --data data/cot --init models/released --out runs/lora --steps 5000
    --config config/train/deepthinkvla-3b-lora.yaml --eval-episodes 0`
    """
    from dtvla_ros.training import sft
    from dtvla_ros.training.config import SftConfig
    with sole_writer(out):
        sft.train_sft(SftConfig.read(config, changes or ()), call(
            sft.SftRun, given, threads=given['cpu_threads'], weights=weights or (),
            init=init and find_shared(init)))
    print(f'{out}: trained; next: dtvla export {out} --out models/{out.name}')


@app.command('language')
@takes('out config development policy minutes encoder seed')
def train_language(
    given: Given,
    out: Annotated[Path, Folder(help='Folder to write, as models/language.')],
    minutes: Annotated[float, Option(min=0.01, help='How long; Ctrl-C ends it early.')] = 20.0,
    config: Annotated[Path, File(help='What people call things and how they ask for tasks (YAML).')
        ] = Path('config/train/language.yaml'),
    development: Annotated[Path, File(help='Sentences to choose the threshold by, as for '
        '`dtvla eval --instructions`.')] = Path('config/instructions/dev.yaml'),
    policy: args.Policy = Path('models/nano'),
    encoder: Annotated[Path | None, Option(help='Make the vectors of words anew, by this '
        'BERT-like sentence encoder: a folder with config.json, tokenizer.json and '
        'model.safetensors. [default: those of models/language]')] = None,
    seed: Annotated[int, Option(help='Of weights and sentences.')] = 0,
) -> None:
    """Teach what people say: which task a sentence in free wording asks for, if any.

    The network is not part of a policy: models/language serves every policy that names its tasks.
    New things or new ways to ask for them go into a copy of config/train/language.yaml.

    **Examples**
    `dtvla train language --minutes 20 --out models/language`
    `dtvla train language --config my_language.yaml --out models/language`
    """
    from dtvla_ros.training.language.command import train_language as run
    call(run, given)


@app.command('grpo')
@takes('init out config changes iterations minutes suite tasks starts replan_steps workers '
       'cpu_threads ray estimate')
def train_grpo(
    given: Given,
    init: Annotated[Path, Folder(help='What to begin with: a training run or a policy.')],
    out: args.RunFolder,
    config: args.Config = Path('config/train/grpo.yaml'),
    changes: args.Changes = None,
    iterations: Annotated[int | None, Option(min=1,
        help='Iterations in all (or give --minutes).')] = None,
    minutes: Annotated[float | None, Option(min=0.01,
        help='Time from now (or give --iterations).')] = None,
    workers: Annotated[int | None, Option(min=1,
        help='Simulators. [default: as the config says]')] = None,
    estimate: Annotated[bool, Option('--estimate',
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
    from dtvla_ros.training.grpo import train
    from dtvla_ros.training.grpo.config import GrpoConfig
    simulators = [f'num_envs={workers}'] if workers else []
    settings = GrpoConfig.read(config, [*(changes or ()), *simulators])
    with sole_writer(out):
        train.train_grpo(settings, call(
            train.GrpoRun, given, threads=given['cpu_threads'], init=find_shared(init)), estimate)
    if not estimate:
        print(f'{out / "report.html"}: what became of it; next: dtvla export {out} --out '
              f'models/{out.name}')


@app.command('dagger')
@takes('init out episodes suite tasks starts seed camera_every after_success takeover '
       'replan_steps workers ray antialiasing cpu_threads', camera_every=4)
def train_dagger(
    given: Given,
    init: Annotated[Path, Folder(help='The policy that drives: a training run or a policy.')],
    out: args.NewDataset,
    episodes: Annotated[int, Option(min=1, help='Episodes, over all tasks.')] = 240,
    seed: Annotated[int, Option(min=0, max=9,
        help='Which block of start states; another one for every round.')] = 7,
    takeover: Annotated[int, Option(min=0, help='The expert stands for a person: it takes over '
        'once the policy went astray for so many control steps, and hands back. '
        '0: it relabels.')] = 0,
) -> None:
    """Let a policy drive and the scripted expert say what it should have done and thought.

    Writes a LeRobot v3.0 dataset of the states that the policy gets itself into; the expert
    takes over after a while and finishes. `dtvla train sft --init` goes on with it, beside the
    demonstrations. Repeat the command to go on where it stopped.

    With `--takeover` nothing is relabelled: the expert drives where it sees the policy go astray,
    as a person would, and `intervention` says in which frames; the others are the policy's own.

    **Example**, a round
    `dtvla train dagger --init runs/nano --out data/round1 --seed 7`
    `dtvla train sft --init runs/nano --data data/tabletop --data data/round1 --out runs/round1
    --minutes 10`
    `dtvla train dagger --init runs/nano --out data/taken --takeover 15` takes over
    """
    from dtvla_ros.training.dagger import DaggerOptions, relabel
    with sole_writer(out):
        info = call(relabel, given, init=find_shared(init), options=call(DaggerOptions, given),
                    threads=given['cpu_threads'])
    print(f'{out}: {counts(info)}; next: dtvla train sft --init {given["init"]} '
          f'--data data/tabletop --data {out} --out runs/{out.name} --minutes 10'
          f'{" --set intervention_boost=4" if given["takeover"] else ""}')
