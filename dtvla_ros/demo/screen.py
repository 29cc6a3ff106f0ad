"""The terminal: the thought as it is written, the episode, the score."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.text import Text

from dtvla_ros.evaluation.ros_seen import Seen
from dtvla_ros.evaluation.statistics import Rate

GATE_STYLE = {'RUN': 'green', 'HOLD': 'yellow', 'STOP': 'red', 'FAULT': 'bold red'}


class Screen:
    """A live panel on a terminal; elsewhere one line per new thought and per episode."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._printed = ''

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, seen: Seen) -> None:
        """Show what is seen now."""
        if self.console.is_terminal:
            self._live.update(self._panel(seen), refresh=True)
        elif not seen.writing and seen.thought != self._printed:
            self._printed = seen.thought
            self.console.print(f'    thinks: {seen.thought}', highlight=False)

    def episode_ended(self, row: dict[str, Any], seen: Seen) -> None:
        """Leave one line per episode above the panel."""
        mark, style = ('success', 'green') if row['success'] else ('failed ', 'red')
        rate = Rate.of(bool(r['success']) for r in seen.episodes)
        number = f'{len(seen.episodes)}/{row["episodes"]}'
        self.console.print(Text.assemble(
            (f'{number:>7} ', 'bold'), (mark, style), f'  {row["instruction"]}',
            (f'  seed {row["seed"]}, {row["step"]} steps; so far {rate}', 'dim')))

    def _panel(self, seen: Seen) -> Panel:
        episode = seen.episode
        thought = Text(seen.thought, style='bold cyan')
        if seen.writing:
            thought.append('▌', 'blink')
        total = episode.get('episodes') or 1
        gate = Text.assemble(
            'gate ', (seen.gate_state, GATE_STYLE.get(seen.gate_state, '')),
            (f' {seen.gate_reason}', 'dim'), f'   policy {seen.vla_state}',
            f'   step {episode.get("step", 0)}   {seen.commands} commands')
        return Panel(
            Group(thought, Text(), gate,
                  ProgressBar(total=total, completed=len(seen.episodes), width=60)),
            title=str(episode.get('instruction', 'starting the nodes …')), title_align='left',
            height=8)
