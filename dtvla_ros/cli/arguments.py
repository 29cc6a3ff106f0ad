"""What several commands' arguments have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Json = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this annotation at run time on Python 3.10
    typer.Option('--json', help='Write the result here.', dir_okay=False),
]

Suite = Annotated[str, typer.Option(help='Scenes and tasks.')]
Tasks = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help='Comma-separated task names. [default: all of the suite]'),
]
Workers = Annotated[int, typer.Option(min=1, help='Processes, one simulator each.')]
Antialiasing = Annotated[bool, typer.Option(
    '--antialiasing/--no-antialiasing', help='As LIBERO draws, or in half the time; a policy '
    'should be tested on pictures like those it was trained on.')]

Changes = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option('--set', metavar='KEY=VALUE', help="Instead of the recipe's value; repeatable."),
]


def names(text: str | None) -> tuple[str, ...]:
    """Return the comma-separated names in an argument."""
    return tuple(name.strip() for name in (text or '').split(',') if name.strip())
