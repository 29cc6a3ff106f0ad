"""``dtvla annotate``: writes thoughts into demonstrations that have none."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from dtvla_ros.cli.arguments import Json, group, names
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json

if TYPE_CHECKING:
    from dtvla_ros.annotation.source import Source

app = group('annotate',
            'Write thoughts into demonstrations: key frames, labels, review, filling in.')

Data = Annotated[Path, Option(help='Dataset folder; never changed.', file_okay=False)]
Out = Annotated[Path, Option(help='Folder of the annotation.', file_okay=False)]
Episodes = Annotated[int | None, Option(min=1, help='Only the first so many. [default: all]')]
Objects = Annotated[str | None, Option(
    help='Comma-separated names labels may use. [default: the objects whose places are recorded, '
         'else those of the instruction]')]
Invert = Annotated[bool, Option(
    '--invert-gripper', help="Larger values of the action's last channel open the gripper.")]
Labels = Annotated[Path | None, Option(
    help='File of labels. [default: labels.jsonl in the folder]', dir_okay=False)]
FOLDER = Path('out/annotation')
TABLETOP = Path('data/tabletop')


def _source(data: Path, objects: str | None = None, invert: bool = False) -> Source:
    if missing := [name for name in ('pyarrow', 'pydantic', 'httpx') if find_spec(name) is None]:
        raise UserError(f'dtvla annotate needs {", ".join(missing)}; install it with '
                        'pip install "dtvla_ros[train,annotate]"')
    from dtvla_ros.annotation.source import Source

    return Source(data, names(objects), invert)


@app.command()
def keyframes(
    data: Data = TABLETOP,
    out: Out = FOLDER,
    min_gap: Annotated[float, Option(
        help='Between a velocity minimum and its neighbours [s].')] = 0.4,
    max_gap: Annotated[float, Option(help='Longest time without a key frame [s].')] = 1.0,
    prominence: Annotated[float, Option(help='Depth of a velocity minimum [m/s].')] = 0.04,
    episodes: Episodes = None,
    invert_gripper: Invert = False,
    plot: Annotated[Path | None, Option(
        help='Draw one episode here (PNG); nothing else is written.', dir_okay=False)] = None,
    episode: Annotated[int, Option(min=0, help='Which one to draw.')] = 0,
) -> None:
    """Find the frames at which something changes: gripper toggles, velocity minima, no long gap.

    One JSON line per episode; repeat the command to go on.

    **Examples**

    `dtvla annotate keyframes --data data/tabletop --out out/annotation`

    `dtvla annotate keyframes --data data/tabletop --plot out/keyframes.png --episode 7`
    """
    source = _source(data, invert=invert_gripper)
    from dtvla_ros.annotation import keyframes as module

    options = module.KeyframeOptions(min_gap, max_gap, prominence)
    if plot is not None:
        module.plot_keyframes(source, episode, options, plot)
        print(plot)
        return
    counts = module.write_keyframes(source, out, options, episodes)
    why = ', '.join(f'{count} {name}' for name, count in counts.items())
    print(f'{out / module.FILE}: {counts.total()} key frames of '
          f'{min(len(source), episodes or len(source))} episodes ({why})')


@app.command()
def label(
    data: Data = TABLETOP,
    out: Out = FOLDER,
    provider: Annotated[str, Option(
        help='rules, http (any OpenAI-compatible endpoint), local (a transformers model) or '
             'replay (the answers of an earlier run).')] = 'rules',
    labels: Labels = None,
    url: Annotated[str, Option(help='http: the endpoint up to /v1.')] = 'http://127.0.0.1:8000/v1',
    model: Annotated[str, Option(help="http: the model's name; local: its folder.")] = '',
    key_env: Annotated[str, Option(
        help='http: environment variable that holds the key; never written anywhere.'
    )] = 'OPENAI_API_KEY',
    answers: Annotated[Path | None, Option(
        help='replay: the answers.jsonl to take from.', dir_okay=False)] = None,
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
    estimate: Annotated[bool, Option(
        '--estimate', help='Tell requests, tokens and cost; ask nothing.')] = False,
    price_in: Annotated[float, Option(help='Per million tokens read.')] = 0.0,
    price_out: Annotated[float, Option(help='Per million tokens written.')] = 0.0,
    picture_tokens: Annotated[int, Option(help='Tokens an image counts in estimates.')] = 260,
    max_requests: Annotated[int | None, Option(
        min=0, help='Never send more, over all runs in this folder.')] = None,
    max_cost: Annotated[float | None, Option(
        min=0, help='Never spend more, over all runs in this folder.')] = None,
    episodes: Episodes = None,
    objects: Objects = None,
    invert_gripper: Invert = False,
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
    source = _source(data, objects, invert_gripper)
    from dtvla_ros.annotation.label import LabelOptions, run_label
    from dtvla_ros.annotation.providers import Budget, HttpOptions

    run_label(
        source, out, labels, provider, answers, LabelOptions(window, corrections),
        Budget(price_in, price_out, picture_tokens, max_requests, max_cost),
        HttpOptions(url, model, os.environ.get(key_env), timeout, tries, max_tokens=max_tokens,
                    response_format=response_format, parallel=concurrency), estimate, episodes)


@app.command()
def agree(
    data: Data = TABLETOP,
    out: Out = FOLDER,
    other: Annotated[Path | None, Option(
        '--with', help='Compare with the thoughts of this dataset instead of rules.',
        file_okay=False)] = None,
    all_frames: Annotated[bool, Option(
        '--all-frames', help='Every frame, not only the key frames in the folder.')] = False,
    episodes: Annotated[str, Option(help='Number of episodes, or FIRST:END. [default: all]')] = '',
    objects: Objects = None,
    invert_gripper: Invert = False,
    json_file: Json = None,
) -> None:
    """Compare labels by rules, or another dataset's thoughts, with a dataset's own (the experts').

    **Examples**

    `dtvla annotate agree --data data/tabletop --out out/annotation`

    `dtvla annotate agree --data data/tabletop --all-frames --episodes 200:997`

    `dtvla annotate agree --data data/tabletop --with data/tabletop-thoughts` after `fill`
    """
    source = _source(data, objects, invert_gripper)
    from dtvla_ros.annotation.checks import compare, print_agreement
    from dtvla_ros.annotation.keyframes import read_keyframes

    first, _, end = episodes.rpartition(':')
    try:
        span = range(len(source))[int(first or 0):int(end or len(source))]
    except ValueError as error:
        raise UserError(f'--episodes {episodes!r}: give a number, or FIRST:END') from error
    every = all_frames or other is not None
    rates = compare(source, None if other is None else _source(other), span,
                    None if every else read_keyframes(out, source))
    print_agreement(f'{other or "rules"} and {data} on {"all" if every else "key"} frames of '
                    f'episodes {span.start} to {span.stop - 1}', rates)
    if json_file is not None:
        write_json(json_file, {name: rate.to_dict() for name, rate in rates.items()})


@app.command()
def review(
    data: Data = TABLETOP,
    out: Out = FOLDER,
    labels: Labels = None,
    page: Annotated[Path | None, Option(
        help='The page. [default: review.html in the folder]', dir_okay=False)] = None,
    sample: Annotated[int, Option(
        min=1, help='How many episodes: those with issues first, then at random.')] = 30,
    seed: Annotated[int, Option(help='Of the random choice.')] = 0,
    objects: Objects = None,
    invert_gripper: Invert = False,
) -> None:
    """Make a page to accept, edit or reject labels on; it opens offline in any browser.

    Keys on a selected key frame: a accepts, e edits, r rejects. The page remembers what was
    decided; its button downloads it for `dtvla annotate apply`.

    **Examples**

    `dtvla annotate review --data data/tabletop --out out/annotation --sample 20`
    """
    source = _source(data, objects, invert_gripper)
    from dtvla_ros.annotation import review as module
    from dtvla_ros.annotation.label import LABELS

    path, target = labels or out / LABELS, page or out / 'review.html'
    digest, rows = module.read_labels(path, source)
    chosen = module.choose(rows, sample, seed)
    module.write_page(target, f'Review of {path.name}',
                      module.page_data(source, digest, rows, chosen))
    print(f'{target}: {sum(len(rows[k]["labels"]) for k in chosen)} key frames of {len(chosen)} '
          'episodes; open it in a browser, then: dtvla annotate apply --decisions FILE')


@app.command()
def apply(
    data: Data = TABLETOP,
    out: Out = FOLDER,
    labels: Labels = None,
    decisions: Annotated[list[Path] | None, Option(
        help='Downloaded from the review page; repeat for several, the last wins.',
        dir_okay=False)] = None,
    accept_rest: Annotated[bool, Option(
        '--accept-rest', help='Accept undecided labels without an issue.')] = False,
    objects: Objects = None,
    invert_gripper: Invert = False,
) -> None:
    """Merge decisions of the review page into accepted.jsonl, from which `fill` learns.

    **Examples**

    `dtvla annotate apply --out out/annotation --decisions ~/Downloads/decisions.jsonl`

    `dtvla annotate apply --out out/annotation --accept-rest`
    """
    source = _source(data, objects, invert_gripper)
    from dtvla_ros.annotation import review as module
    from dtvla_ros.annotation.label import LABELS

    digest, rows = module.read_labels(labels or out / LABELS, source)
    counts = module.apply_decisions(
        source, digest, rows, module.read_decisions(decisions or [], source, digest),
        out / module.ACCEPTED, accept_rest)
    print(f'{out / module.ACCEPTED}: '
          f'{", ".join(f"{count} {name}" for name, count in counts.items())}')


@app.command()
def fill(
    to: Annotated[Path, Option(help='Folder of the new dataset.', file_okay=False)],
    data: Data = TABLETOP,
    out: Out = FOLDER,
    labeller: Annotated[str, Option(
        help='motion: a small network on proprioception, seconds on a CPU; vlm: a transformers '
             'model with LoRA, for a GPU.')] = 'motion',
    model: Annotated[Path | None, Option(
        help='vlm: folder of the model.', file_okay=False)] = None,
    steps: Annotated[int, Option(min=1, help='motion: training steps.')] = 600,
    epochs: Annotated[int, Option(min=1, help='vlm: passes over the labels.')] = 2,
    held_out: Annotated[float, Option(
        help='Share of the accepted episodes the agreement is measured on.')] = 0.2,
    reason: Annotated[bool, Option(
        '--reason', help='Write reasons, too; for policies with an open vocabulary.')] = False,
    seed: Annotated[int, Option(help='Of the split and the training.')] = 0,
    objects: Objects = None,
    invert_gripper: Invert = False,
    json_file: Json = None,
) -> None:
    """Train a local labeller on the accepted labels and let it fill all frames between.

    Prints its agreement with key frames of episodes it never saw, and writes a new LeRobot v3.0
    dataset with the thoughts in `reasoning`.

    **Examples**

    `dtvla annotate fill --data data/tabletop --out out/annotation --to data/tabletop-thoughts`

    `dtvla annotate fill --labeller vlm --model models/vlm --to data/thoughts` on a GPU
    """
    source = _source(data, objects, invert_gripper)
    from dtvla_ros.annotation import fill as module
    from dtvla_ros.annotation.checks import print_agreement
    from dtvla_ros.annotation.review import ACCEPTED, read_accepted

    accepted = read_accepted(out / ACCEPTED, source)
    chosen: module.Labeller
    if labeller == 'motion':
        chosen = module.MotionLabeller(steps=steps, seed=seed)
    elif labeller == 'vlm' and model is not None:
        from dtvla_ros.annotation.vlm import VlmLabeller

        chosen = VlmLabeller(model, out / 'adapters', epochs=epochs, seed=seed)
    else:
        raise UserError(f'--labeller {labeller}: give motion, or vlm with --model')
    result = module.fill(source, accepted, chosen, to, held_out, seed, reason)
    print_agreement(f'{chosen.name} and accepted labels on key frames of held-out episodes',
                    result.pop('rates'))
    print(f'{to}: {result["accepted_frames"]} frames as accepted, {result["filled_frames"]} '
          'filled')
    if json_file is not None:
        write_json(json_file, result)
