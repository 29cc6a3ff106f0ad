"""A row of the table: a requirement, what was found, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LISTED = 5  # names told of many


@dataclass(frozen=True, slots=True)
class Row:
    """A requirement; ``ok``: None where it is told, not judged."""

    requirement: str
    ok: bool | None
    found: str
    wanted: str = ''
    remedy: str = ''


def listed(names: Sequence[str]) -> str:
    """Return some names, and how many more there are."""
    more = [f'{len(names) - LISTED} more'] if len(names) > LISTED else []
    return ', '.join([*names[:LISTED], *more])
