"""``dtvla record``, ``dtvla view`` and ``dtvla data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from dtvla_ros.cli.arguments import names
from dtvla_ros.errors import UserError

app = typer.Typer()
data_app = typer.Typer(
    name='data', help='Make and look at datasets.', no_args_is_help=True,
    rich_markup_mode='markdown', context_settings={'help_option_names': ['-h', '--help']})
app.add_typer(data_app)


# Alone, the sub-app's one command would become the sub-app itself.
@data_app.callback()
def _data() -> None:
    pass


@app.command()
def record(
    out: Annotated[Path, typer.Option(help='Folder of the bag; must not exist.')],
    topics: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this annotation at run time on Python 3.10
        typer.Option(help='Comma-separated topics. [default: everything the package defines]'),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help='Stop by itself; 0: at Ctrl-C.')] = 0.0,
) -> None:
    """Record the running graph into a rosbag2 bag (MCAP).

    `ros2 bag play` and Foxglove open it; `dtvla data from-bag` makes a dataset of it. When the
    disk is full recording stops with exit code 3, and nothing else does.

    **Examples**

    `dtvla record --out bags/monday`

    `dtvla record --out bags/thoughts --topics /vla/reasoning,/vla/state --seconds 60`
    """
    from dtvla_ros.recording.recorder import record as run
    from dtvla_ros.recording.topics import RECORDED

    wanted = names(topics) or RECORDED
    relative = [topic for topic in wanted if not topic.startswith('/')]
    if relative:
        raise UserError(f'--topics {relative[0]}: write the whole name, /{relative[0]}')
    raise typer.Exit(run(out, wanted, seconds))
