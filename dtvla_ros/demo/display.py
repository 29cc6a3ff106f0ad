"""Shows a demonstration: live in the terminal, and as a film with a contact sheet."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.text import Text

from dtvla_ros.caption import Caption, draw_frame
from dtvla_ros.evaluation.video import Film, contact_sheet
from dtvla_ros.files import writing
from dtvla_ros.ros.graph import Seen

GATE_STYLE = {'RUN': 'green', 'HOLD': 'yellow', 'STOP': 'red', 'FAULT': 'bold red'}
Shot = tuple[dict[str, NDArray[np.uint8]], Caption]
CLOSING_FRAMES = 4
SAID = 'done: the policy says so'
STOPPED_SECONDS = 1.5  # of the film, for a stop
SHEET_MOMENTS = (0.15, 0.55, 1.0)  # of the episode shown for each task


def program() -> str:
    """Return how this command was called, for lines that a person copies."""
    here = Path(sys.argv[0]).name == 'dtvla' and not shutil.which('dtvla')
    return sys.argv[0] if here else 'dtvla'


class Screen:
    """A live panel on a terminal; elsewhere one line per new thought and per episode."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self._printed = ''
        self._refusals = 0

    def update(self, seen: Seen, fault: str = '') -> None:
        """Show what is seen now; ``fault``: why nothing moves until somebody clears it."""
        if seen.refusals > self._refusals:
            self.say('you said: {} -> refused: {}'.format(*seen.rejected), 'red')
        self._refusals = seen.refusals
        if self.console.is_terminal:
            self.live.update(self._panel(seen, fault), refresh=True)
        elif seen.thought and seen.thought != self._printed:
            self._printed = seen.thought
            self.say(f'    thinks: {seen.thought}')

    def say(self, text: str, style: str = '') -> None:
        """Leave a line above the panel."""
        self.console.print(Text(text, style), soft_wrap=not self.console.is_terminal)

    def episode_ended(self, row: dict[str, Any], seen: Seen) -> None:
        """Leave one line per episode above the panel."""
        mark, style = ('success', 'green') if row['success'] else ('failed ', 'red')
        won = sum(bool(r['success']) for r in seen.episodes)
        number = f'{len(seen.episodes)}/{row["episodes"]}'
        self.console.print(Text.assemble(
            (f'{number:>7} ', 'bold'), (mark, style), f'  {row["instruction"]}',
            (f'  {row["reason"]}' if row.get('reason') else '', 'red'),
            (f'  {SAID}' if row['success'] and 'said_done' in row else '', 'green'),
            (f'  seed {row["seed"]}, {row["step"]} steps; so far {won} of {len(seen.episodes)}',
             'dim')), soft_wrap=not self.console.is_terminal)

    def _panel(self, seen: Seen, fault: str) -> RenderableType:
        episode = seen.episode
        thought = (Text(f'STOPPED: {fault}', 'bold white on red') if fault else
                   Text(seen.writing or seen.thought, 'bold cyan'))
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


class Filming:
    """A film that is drawn and encoded in a thread of its own; ``written``: if it has images."""

    def __init__(self, path: Path, rate: float):
        self.path = path
        self.written = False
        self._film = Film(path, rate)
        self._thread = ThreadPoolExecutor(1, 'filming')
        self._drawn: list[Future[None]] = []

    def add(self, images: dict[str, NDArray[np.uint8]], caption: Caption) -> None:
        """Take a pair of images; returns at once."""
        self.written = True
        self._drawn = [frame for frame in self._drawn if not frame.done() or frame.exception()]
        self._drawn.append(self._thread.submit(
            lambda: self._film.add(draw_frame(images, caption))))

    def close(self) -> None:
        """Finish the file. Raises ``UserError`` if it cannot be written."""
        self._thread.shutdown()
        with writing(self.path):
            for frame in self._drawn:
                frame.result()
            self._film.close()


class Recorder(Filming):
    """Films episodes; the sheet shows one good episode per task."""

    def __init__(self, film: Path, sheet: Path, rate: float):
        super().__init__(film, rate)
        self._sheet = sheet
        self._episode: list[Shot] = []
        self._rate = rate
        self._shown: dict[str, tuple[bool, list[Shot]]] = {}

    def add(self, images: dict[str, NDArray[np.uint8]], caption: Caption) -> None:
        """Take a pair of images; returns at once."""
        self._episode.append((images, caption))
        super().add(images, caption)

    def stop(self, reason: str) -> None:
        """Show for a while why everything stands still."""
        for images, caption in self._episode[-1:]:
            for _ in range(round(STOPPED_SECONDS * self._rate)):
                super().add(images, replace(caption, thought='', footer='', stopped=reason))

    def end_episode(self, task: str, success: bool, reason: str = '') -> None:
        """Show how it ended, and keep it for the sheet if it is the task's best so far."""
        if not self._episode:
            return
        images, caption = self._episode[-1]
        self._episode[-1] = images, replace(
            caption, success=success, footer=reason or caption.footer)
        for _ in range(CLOSING_FRAMES):
            super().add(*self._episode[-1])
        if task not in self._shown or success > self._shown[task][0]:
            last = len(self._episode) - 1
            self._shown[task] = success, [self._episode[round(m * last)] for m in SHEET_MOMENTS]
        self._episode = []

    def close(self) -> None:
        """Finish both files. Raises ``UserError`` if they cannot be written."""
        super().close()
        frames = [draw_frame(*shot) for _, shots in self._shown.values() for shot in shots]
        if frames:
            contact_sheet(frames, self._sheet, columns=len(SHEET_MOMENTS))
