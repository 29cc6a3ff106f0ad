"""``dtvla annotate``: writes thoughts into demonstrations that have none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from dtvla_ros.cli import arguments as args
from dtvla_ros.cli.arguments import File, Folder, Given, call, group, names, sharing
from dtvla_ros.errors import UserError

if TYPE_CHECKING:
    from dtvla_ros.annotation.source import Source

app = group('annotate',
            'Write thoughts into demonstrations: key frames, labels, review, filling in.')


def _shared(
    data: Annotated[Path, Folder(help='Dataset folder; never changed.')] = Path('data/tabletop'),
    out: Annotated[Path, Folder(help='Folder of the annotation.')] = Path('out/annotation'),
    labels: Annotated[Path | None, File(
        help='File of labels. [default: labels.jsonl in the folder]')] = None,
    episodes: Annotated[int | None, Option(
        min=1, help='Only the first so many. [default: all]')] = None,
    objects: Annotated[str | None, Option(callback=names,
        help='Comma-separated names labels may use. [default: the objects whose places are '
             'recorded, else those of the instruction]')] = None,
    invert_gripper: Annotated[bool, Option('--invert-gripper',
        help="Larger values of the action's last channel open the gripper.")] = False,
    json_file: args.Json = None,
) -> None:
    """Declare the options that these commands share."""


def _source(given: Given) -> Source:
    from dtvla_ros.annotation.source import Source
    return call(Source, given, root=given['data'])


def _folders(given: Given) -> str:
    return f'--data {given["data"]} --out {given["out"]}'


takes = sharing(_shared, source=_source)


@app.command()
@takes('data out min_gap max_gap prominence episodes invert_gripper plot episode')
def keyframes(
    given: Given,
    min_gap: Annotated[float, Option(
        help='Between a velocity minimum and its neighbours [s].')] = 0.4,
    max_gap: Annotated[float, Option(help='Longest time without a key frame [s].')] = 1.0,
    prominence: Annotated[float, Option(help='Depth of a velocity minimum [m/s].')] = 0.04,
    plot: Annotated[Path | None, File(
        help='Draw one episode here (PNG); nothing else is written.')] = None,
    episode: Annotated[int, Option(min=0, help='Which one to draw.')] = 0,
) -> None:
    """Find the frames at which something changes: gripper toggles, velocity minima, no long gap.

    One JSON line per episode; repeat the command to go on.

    **Examples**
    `dtvla annotate keyframes --data data/tabletop --out out/annotation`
    `dtvla annotate keyframes --data data/tabletop --plot out/keyframes.png --episode 7`
    """
    from dtvla_ros.annotation import keyframes as module
    call(module.plot_keyframes if plot else module.write_keyframes, given,
         options=call(module.KeyframeOptions, given))
    if plot is None:
        print(f'next: dtvla annotate label {_folders(given)}')


@app.command()
@takes('data out provider labels url model key_env answers response_format concurrency timeout '
       'tries max_tokens window corrections only_estimate price_in price_out picture_tokens '
       'max_requests max_cost episodes objects invert_gripper')
def label(
    given: Given,
    provider: Annotated[str, Option(help='rules, http (any OpenAI-compatible endpoint), local (a '
        'transformers model) or replay (the answers of an earlier run).')] = 'rules',
    url: Annotated[str, Option(help='http: the endpoint up to /v1.')] = 'http://127.0.0.1:8000/v1',
    model: Annotated[str, Option(help="http: the model's name; local: its folder.")] = '',
    key_env: Annotated[str, Option(help='http: environment variable that holds the key; never '
        'written anywhere.')] = 'OPENAI_API_KEY',
    answers: Annotated[Path | None, File(help='replay: the answers.jsonl to take from.')] = None,
    response_format: Annotated[str, Option(
        help='http: json_schema, json_object or none, as the endpoint can.')] = 'json_schema',
    concurrency: Annotated[int, Option(min=1, help='http: requests at once.')] = 4,
    timeout: Annotated[float, Option(help='http: of one request [s].')] = 120.0,
    tries: Annotated[int, Option(
        min=1, help='http: of one request, when the server is busy or broken.')] = 6,
    max_tokens: Annotated[int, Option(min=16, help='Longest answer.')] = 4096,
    window: Annotated[int, Option(min=1, help='Key frames in one request.')] = 16,
    corrections: Annotated[int, Option(
        min=0, help='How often an answer that cannot be right is sent back.')] = 1,
    only_estimate: Annotated[bool, Option(
        '--estimate', help='Tell requests, tokens and cost; ask nothing.')] = False,
    price_in: Annotated[float, Option(help='Per million tokens read.')] = 0.0,
    price_out: Annotated[float, Option(help='Per million tokens written.')] = 0.0,
    picture_tokens: Annotated[int, Option(help='Tokens an image counts in estimates.')] = 260,
    max_requests: Annotated[int | None, Option(
        min=0, help='Never send more, over all runs in this folder.')] = None,
    max_cost: Annotated[float | None, Option(
        min=0, help='Never spend more, over all runs in this folder.')] = None,
) -> None:
    """Label the key frames: what is held, done, handled, comes next, and why.

    Motion is measured and given to the model, which fills in only what has to be seen. Answers are
    kept by the hash of their question: a run that was stopped, killed or ran out of budget goes on
    when the command is repeated, and pays for nothing twice.

    **Examples**
    `dtvla annotate label --data data/tabletop --out out/annotation` by rules, offline
    `dtvla annotate label --provider http --model MODEL --estimate --price-in 0.4 --price-out 1.6`
    `dtvla annotate label --provider http --url https://HOST/v1 --model MODEL --price-in 0.4
    --price-out 1.6 --max-cost 5 --labels out/annotation/cloud.jsonl`
    `dtvla annotate label --provider replay --answers out/annotation/answers.jsonl
    --labels out/annotation/again.jsonl`
    """
    from dtvla_ros.annotation.label import LabelOptions, run_label
    from dtvla_ros.annotation.providers import Budget, HttpOptions
    call(run_label, given, options=call(LabelOptions, given),
         budget=call(Budget, given), http=call(HttpOptions, given, key=os.environ.get(key_env)))
    if not only_estimate:
        print(f'next: dtvla annotate review {_folders(given)}')


@app.command()
@takes('data out other all_frames episodes objects invert_gripper json_file')
def agree(
    given: Given,
    other: Annotated[Path | None, Folder(
        '--with', help='Compare with the thoughts of this dataset instead of rules.')] = None,
    all_frames: Annotated[bool, Option(
        '--all-frames', help='Every frame, not only the key frames in the folder.')] = False,
    episodes: Annotated[str, Option(help='Number of episodes, or FIRST:END. [default: all]')] = '',
) -> None:
    """Compare labels by rules, or another dataset's thoughts, with a dataset's own (the experts').

    **Examples**
    `dtvla annotate agree --data data/tabletop --out out/annotation`
    `dtvla annotate agree --data data/tabletop --all-frames --episodes 200:997`
    `dtvla annotate agree --data data/tabletop --with data/tabletop-thoughts` after `fill`
    """
    from dtvla_ros.annotation.checks import agree as run
    call(run, given, other=other and _source({'data': other}))


@app.command()
@takes('data out labels page sample seed objects invert_gripper')
def review(
    given: Given,
    page: Annotated[Path | None, File(
        help='The page. [default: review.html in the folder]')] = None,
    sample: Annotated[int, Option(
        min=1, help='How many episodes: those with issues first, then at random.')] = 30,
    seed: Annotated[int, Option(help='Of the random choice.')] = 0,
) -> None:
    """Make a page to accept, edit or reject labels on; it opens offline in any browser.

    Keys on a selected key frame: a accepts, e edits, r rejects. The page remembers what was
    decided; its button downloads it for `dtvla annotate apply`.

    **Examples**
    `dtvla annotate review --data data/tabletop --out out/annotation --sample 20`
    """
    from dtvla_ros.annotation.review import review as run
    call(run, given)
    print(f'next: dtvla annotate apply {_folders(given)} --decisions FILE')


@app.command()
@takes('data out labels decisions accept_rest objects invert_gripper')
def apply(
    given: Given,
    decisions: Annotated[list[Path] | None, File(
        help='Downloaded from the review page; repeat for several, the last wins.')] = None,
    accept_rest: Annotated[bool, Option(
        '--accept-rest', help='Accept undecided labels without an issue.')] = False,
) -> None:
    """Merge decisions of the review page into accepted.jsonl, from which `fill` learns.

    **Examples**
    `dtvla annotate apply --out out/annotation --decisions ~/Downloads/decisions.jsonl`
    `dtvla annotate apply --out out/annotation --accept-rest`
    """
    from dtvla_ros.annotation.review import apply as run
    call(run, given, decisions=decisions or ())
    print(f'next: dtvla annotate fill {_folders(given)} --to {given["data"]}-thoughts')


@app.command()
@takes('to data out labeller model steps epochs held_out reason seed objects invert_gripper '
       'json_file')
def fill(
    given: Given,
    to: args.NewDataset,
    out: Path,
    labeller: Annotated[str, Option(help='motion: a small network on proprioception, seconds on a '
        'CPU; vlm: a transformers model with LoRA, for a GPU.')] = 'motion',
    model: Annotated[Path | None, Folder(help='vlm: folder of the model.')] = None,
    steps: Annotated[int, Option(min=1, help='motion: training steps.')] = 600,
    epochs: Annotated[int, Option(min=1, help='vlm: passes over the labels.')] = 2,
    held_out: Annotated[float, Option(
        help='Share of the accepted episodes the agreement is measured on.')] = 0.2,
    reason: Annotated[bool, Option(
        '--reason', help='Write reasons, too; for policies with an open vocabulary.')] = False,
    seed: Annotated[int, Option(help='Of the split and the training.')] = 0,
) -> None:
    """Train a local labeller on the accepted labels and let it fill all frames between.

    Prints its agreement with key frames of episodes it never saw, and writes a new LeRobot v3.0
    dataset with the thoughts in `reasoning`.

    **Examples**
    `dtvla annotate fill --data data/tabletop --out out/annotation --to data/tabletop-thoughts`
    `dtvla annotate fill --labeller vlm --model models/vlm --to data/thoughts` on a GPU
    """
    from dtvla_ros.annotation import fill as module
    from dtvla_ros.annotation.review import ACCEPTED, read_accepted
    accepted = read_accepted(out / ACCEPTED, given['source'])
    chosen: module.Labeller
    if labeller == 'motion':
        chosen = call(module.MotionLabeller, given)
    elif labeller == 'vlm' and model is not None:
        from dtvla_ros.annotation.vlm import VlmLabeller
        chosen = call(VlmLabeller, given, folder=model, adapters=out / 'adapters')
    else:
        raise UserError(f'--labeller {labeller}: give motion, or vlm with --model')
    call(module.fill, given, accepted=accepted, labeller=chosen)
    print(f'next: dtvla data validate {to} --policy models/nano')
