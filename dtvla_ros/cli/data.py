"""``dtvla collect`` and ``dtvla data``: make, check and look at datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from dtvla_ros.cli import arguments as args
from dtvla_ros.cli.arguments import File, Folder, Given, call, counts, group, names, takes
from dtvla_ros.errors import UserError
from dtvla_ros.files import sole_writer, write_json

app = group()
data = group('data', 'Make, check and look at datasets.')
app.add_typer(data)

Dataset = Annotated[Path, Argument(help='Folder of a LeRobot dataset, v2.0 to v3.0.')]
Tokenizer = Annotated[Path | None, Option(
    help='tokenizer.json, or its folder, that thoughts stored as ids belong to.')]


@app.command(cls=args.Command)
@takes('out suite starts tasks episodes workers ray seed camera_every chunk noise clean_share '
       'release_share push_share switch_share short_share observation_share done_share '
       'after_success randomised_share antialiasing')
def collect(
    given: Given,
    out: Annotated[Path, Folder(help='Folder of the dataset.')] = Path('data/tabletop'),
    episodes: Annotated[int, Option(min=1, help='Episodes, over all tasks.')] = 1200,
    seed: Annotated[int, Option(min=0, help='Which block of start states.')] = 0,
    noise: Annotated[float, Option(min=0.0, help='Strength of the injected noise.')] = 1.0,
    clean_share: Annotated[float, Option(help='Demonstrations without noise.')] = 0.15,
    release_share: Annotated[float, Option(
        help='Demonstrations that lose the object once.')] = 0.12,
    push_share: Annotated[float, Option(help='Demonstrations pushed aside once.')] = 0.12,
    switch_share: Annotated[float, Option(
        help='Demonstrations that begin in the midst of another task, or after it.')] = 0.0,
    short_share: Annotated[float, Option(
        help='Episodes of the first second only, from a random initial pose.')] = 0.0,
    observation_share: Annotated[float, Option(help='Episodes of one frame for each task '
        'that the scene allows, at a random initial pose.')] = 0.0,
    done_share: Annotated[float, Option(help='Short episodes that begin where the task is done, '
        'or nearly.')] = 0.0,
    randomised_share: Annotated[float, Option(help='Episodes with other surfaces, lights, '
        'cameras and clutter.')] = 0.0,
) -> None:
    """Record the scripted experts into a LeRobot v3.0 dataset.

    Noise disturbs the executed action; the expert's clean one is the label. An episode that
    the expert does not solve is recorded again from another start state. Episodes come in
    shards of 8; Ctrl-C finishes the running ones, and finished ones are kept: repeat the
    command to go on, or with more episodes to add to them.

    **Examples**
    `dtvla collect --episodes 1200 --workers 2 --out data/tabletop`
    `dtvla collect --seed 1 --observation-share 1 --episodes 1200 --out data/localisation`
    teaches localisation, a dozen times cheaper
    `dtvla collect --suite libero_object --starts shuffle --out data/object` (docs/libero.md)
    """
    from dtvla_ros.data import collect as module
    with sole_writer(out):
        info = module.collect(
            out, call(module.CollectOptions, given), given['workers'], given['ray'])
    suite = given['suite']
    recipe = {'tabletop_joints': 'joints', 'tabletop_poses': 'nano'}.get(suite)
    begin = (f'--config config/train/{recipe}.yaml' if recipe else
             f'--init models/{"nano" if suite == "tabletop" else "libero"}')
    print(f'{out}: {counts(info)}; next: dtvla data view {out}, then '
          f'dtvla train sft {begin} --data {out} --out runs/mine --minutes 10')


@data.command()
def convert(
    source: Dataset,
    out: args.NewDataset,
    tokenizer: Tokenizer = None,
    chunk: args.ChunkSteps = 8,
    rename: Annotated[list[str] | None, Option(
        help='OLD=NEW name of a feature; repeat for several.')] = None,
) -> None:
    """Turn a LeRobot dataset into one of v3.0 that `dtvla train sft` reads.

    Thoughts become text, every frame gets the actions that follow it, and videos are copied
    without encoding them again where that is possible. A command that was stopped goes on when
    it is repeated; a finished dataset is never overwritten.

    **Examples**
    `dtvla data convert libero_cot --tokenizer deepthinkvla_libero_cot_sft --out data/libero`
    `dtvla data convert aloha --rename observation.images.top=observation.images.image --rename
    observation.images.hand=observation.images.wrist_image --out data/aloha`
    """
    from dtvla_ros.data import convert as module
    pairs = [text.partition('=') for text in rename or ()]
    if wrong := [old for old, _, new in pairs if not (old and new)]:
        raise UserError(f'--rename {wrong[0]}: write OLD=NEW')
    renamed = {old: new for old, _, new in pairs}
    report = module.convert(source, out, module.ConvertOptions(tokenizer, chunk, renamed))
    how = 'copied' if report.copied else 'encoded anew'
    print(f'{out}: {counts(report.info)}; videos {how}')
    if report.unthought:
        print(f'  {report.unthought} frames without a thought')
    for key, why in report.left_out.items():
        print(f'  left out: {key} ({why})')
    if report.several_tasks:
        print(f'  {report.several_tasks} episodes with several tasks: the first one is kept')
    print(f'next: dtvla data validate {out}')


@data.command('inspect')
def inspect_(dataset: Dataset, tokenizer: Tokenizer = None, json_file: args.Json = None) -> None:
    """Show what a dataset is: robot, rate, tasks, features, cameras, thoughts.

    **Examples**
    `dtvla data inspect data/tabletop`
    `dtvla data inspect libero_cot --tokenizer deepthinkvla_libero_cot_sft --json out/cot.json`
    """
    from dtvla_ros.data.inspect import inspect_dataset, show_inspection
    found = inspect_dataset(dataset, tokenizer)
    show_inspection(found)
    write_json(json_file, found)


@data.command()
def validate(
    dataset: Dataset,
    policy: Annotated[Path | None, Folder(
        help='Also check that this policy, or training run, could learn it.')] = None,
    tokenizer: Tokenizer = None,
    decode: Annotated[bool, Option('--decode',
        help='Decode every image, not only count them.')] = False,
    json_file: args.Json = None,
) -> None:
    """Check that files, numbers and videos of a dataset agree; exit code 1 if they do not.

    Every finding names the file, what was found in it, and what to do.

    **Examples**
    `dtvla data validate data/tabletop --policy models/nano`
    `dtvla data validate libero_cot --decode --json out/findings.json`
    """
    from dtvla_ros.data import validate as module
    from dtvla_ros.data.inspect import show_issues
    issues = module.validate(dataset, decode)
    if policy is not None and not issues:
        issues += module.fits_policy(dataset, policy, tokenizer)
    write_json(json_file, {'dataset': str(dataset), 'findings': [
        {key: getattr(issue, key) for key in ('file', 'problem', 'remedy')} for issue in issues]})
    show_issues(dataset, issues)
    if issues:
        raise typer.Exit(1)


@data.command()
def stats(
    dataset: Dataset,
    out: Annotated[Path | None, Folder(help='Write stats.json (for LeRobot) and norm_stats.json '
        '(for a policy) into this folder.')] = None,
    episodes: Annotated[int, Option(min=0, help='Episodes whose images are used; 0: none.')] = 24,
    json_file: args.Json = None,
) -> None:
    """Show statistics of state and action, and check that they make sense.

    Constant channels, the gripper's sign, outliers, jumps, whether the state follows the
    actions; and from the motion in the images: dead or frozen cameras, exchanged cameras,
    rotated or mirrored images. What cannot be known for certain says so.

    **Examples**
    `dtvla data stats data/tabletop`
    `dtvla data stats data/libero --out data/libero/meta --json out/stats.json`
    """
    from dtvla_ros.data.inspect import dataset_statistics, show_statistics
    found = dataset_statistics(dataset, episodes, whole=out is not None)
    show_statistics(found)
    if out is not None:
        found.write(out)
        print(f'wrote stats.json and norm_stats.json into {out}')
    write_json(json_file, found.to_dict())


@data.command()
def view(
    dataset: Dataset,
    out: Annotated[Path, File(
        help='Page (.html) or contact sheet (.png).')] = Path('out/episodes.html'),
    episodes: Annotated[str | None, Option(
        help='Comma-separated numbers. [default: one of each task, six in all]')] = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Draw episodes along their time: images, phases, thoughts, commands.

    The page is one file and opens without a network; moving along a timeline shows every frame
    with the thought that goes with it.

    **Examples**
    `dtvla data view data/tabletop`
    `dtvla data view data/tabletop --episodes 208,388 --out out/odd.png`
    """
    from dtvla_ros.data.view import view as run
    numbers = names(episodes)
    if wrong := [text for text in numbers if not text.isdecimal()]:
        raise UserError(f'--episodes {wrong[0]}: write numbers, as in 0,7,12')
    count = run(dataset, out, list(map(int, numbers)), tokenizer)
    print(f'{out}: {count} episode{"" if count == 1 else "s"}' +
          ('; open it in a browser' if out.suffix == '.html' else ''))
