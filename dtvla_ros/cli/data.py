"""``dtvla data``: make, check and look at datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from dtvla_ros.errors import UserError

app = typer.Typer(
    name='data', help='Make, check and look at datasets.', no_args_is_help=True,
    rich_markup_mode='markdown', context_settings={'help_option_names': ['-h', '--help']})

Dataset = Annotated[Path, typer.Argument(help='Folder of a LeRobot dataset, v2.0 to v3.0.')]
Tokenizer = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this annotation at run time on Python 3.10
    typer.Option(help='tokenizer.json, or its folder, that thoughts stored as ids belong to.'),
]


@app.command()
def convert(
    source: Dataset,
    out: Annotated[Path, typer.Option(help='Folder of the new dataset.', file_okay=False)],
    tokenizer: Tokenizer = None,
    chunk: Annotated[int, typer.Option(min=1, help='Actions stored with each frame.')] = 8,
    rename: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help='OLD=NEW name of a feature; repeat for several.'),
    ] = None,
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
    from dtvla_ros.training.dataset.convert import ConvertOptions
    from dtvla_ros.training.dataset.convert import convert as run

    pairs = [text.partition('=') for text in rename or ()]
    wrong = next((old for old, sign, new in pairs if not (old and sign and new)), None)
    if wrong is not None:
        raise UserError(f'--rename {wrong}: write OLD=NEW')
    report = run(source, out, ConvertOptions(
        tokenizer=tokenizer, chunk=chunk, rename={old: new for old, _, new in pairs}))
    info = report.info
    print(f'{out}: {info["total_episodes"]} episodes, {info["total_frames"]} frames, '
          f'{info["total_tasks"]} tasks; videos {"copied" if report.copied else "encoded anew"}')
    if report.unthought:
        print(f'  {report.unthought} frames without a thought')
    if report.several_tasks:
        print(f'  {report.several_tasks} episodes with several tasks: the first one is kept')
