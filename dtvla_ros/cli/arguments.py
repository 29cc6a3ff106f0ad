"""What several commands' arguments have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Json = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this annotation at run time on Python 3.10
    typer.Option('--json', help='Write the result here.', dir_okay=False),
]


def names(text: str | None) -> tuple[str, ...]:
    """Return the comma-separated names in an argument."""
    return tuple(name.strip() for name in (text or '').split(',') if name.strip())
