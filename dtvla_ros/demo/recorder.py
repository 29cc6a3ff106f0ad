"""Turns pictures and thoughts into a film and a contact sheet, beside the listening thread."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.caption import Caption, draw_frame
from dtvla_ros.evaluation.video import Film, contact_sheet

Shot = tuple[dict[str, NDArray[np.uint8]], Caption]
CLOSING_FRAMES = 4
SHEET_MOMENTS = (0.15, 0.55, 1.0)  # of the episode shown for each task


class Recorder:
    """Draws and encodes in a thread of its own; the sheet shows one good episode per task."""

    def __init__(self, film: Path, sheet: Path, rate: float):
        self._film, self._sheet = Film(film, rate), sheet
        self._queue: queue.SimpleQueue[Shot | None] = queue.SimpleQueue()
        self._episode: list[Shot] = []
        self._shown: dict[str, tuple[bool, list[Shot]]] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name='recorder', daemon=True)
        self._thread.start()

    def add(self, images: dict[str, NDArray[np.uint8]], caption: Caption) -> None:
        """Take a pair of pictures; returns at once."""
        self._episode.append((images, caption))
        self._queue.put((images, caption))

    def end_episode(self, task: str, success: bool) -> None:
        """Show how it ended, and keep it for the sheet if it is the task's best so far."""
        if not self._episode:
            return
        images, caption = self._episode[-1]
        last = Caption(caption.title, caption.thought, caption.footer, success)
        for _ in range(CLOSING_FRAMES):
            self._queue.put((images, last))
        if task not in self._shown or success > self._shown[task][0]:
            shots = [*self._episode[:-1], (images, last)]
            moments = [shots[round(m * (len(shots) - 1))] for m in SHEET_MOMENTS]
            self._shown[task] = (success, moments)
        self._episode = []

    def close(self) -> None:
        """Finish both files.

        Raises
        ------
        RuntimeError
            If the film could not be written.

        """
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise RuntimeError(f'cannot write {self._film.path}') from self._error
        frames = [draw_frame(*shot) for _, shots in self._shown.values() for shot in shots]
        if frames:
            contact_sheet(frames, self._sheet, columns=len(SHEET_MOMENTS))

    def _run(self) -> None:
        try:
            shot: Any
            while (shot := self._queue.get()) is not None:
                self._film.add(draw_frame(*shot))
            self._film.close()
        except Exception as error:
            self._error = error
