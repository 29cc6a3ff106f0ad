"""How the help looks: commands under their headings, and options that a narrow terminal holds."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text
from typer import rich_utils
from typer.core import TyperGroup

HELP = {
    'Start': 'demo play', 'Your data': 'collect record data annotate',
    'Train': 'train export inspect convert',
    'Evaluate': 'eval robustness calibrate report experts',
    'Robot': 'run doctor tell think stop tasks watch view topic', 'Measure': 'steer recover bench'}
"""Commands in the order of the help, by their heading."""


class Commands(TyperGroup):
    """The commands of ``dtvla`` as the help lists them."""

    def list_commands(self, ctx: Any) -> list[str]:
        for heading, listed in HELP.items():
            for name in listed.split():
                self.commands[name].rich_help_panel = heading  # type: ignore[attr-defined]
        return ' '.join(HELP.values()).split()


class OptionsTable(Table):
    """Typer's table of options with all names in one column; long words are folded, not cut."""

    def add_row(self, *cells: Any, **settings: Any) -> None:
        if len(cells) >= 6:
            *required, long, short, off, short_off, kind, meaning = cells
            lines = [Text(' ').join(filter(None, names))
                     for names in ((long, short), (off, short_off))]
            cells = *required, Text('\n').join(filter(None, lines)), kind, meaning
        super().add_row(*cells, **settings)
        for column in self.columns:
            column.overflow = 'fold'


rich_utils.Table = OptionsTable  # type: ignore[misc]  # there is no setting for it
