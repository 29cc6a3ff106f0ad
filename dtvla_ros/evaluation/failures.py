"""What is kept of an episode that failed: a film, a still of its last look with the thought."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.engine.engine import Decision
from dtvla_ros.policy.transform import Observation


class FailureRecord:
    """Follows one episode and leaves files only if it failed.

    ``films`` and ``stills`` are folders, or None for no such file.
    """

    def __init__(self, films: str | None, stills: str | None, name: str, rate: float):
        self._name = name
        self._last: tuple[Mapping[str, NDArray[np.uint8]], Any] | None = None
        self._still = Path(stills) / f'{name}.jpg' if stills else None
        self._film: Any = None
        if films:
            from .video import Film

            self._film = Film(Path(films) / f'{name}.mp4', rate)

    @property
    def wanted(self) -> bool:
        """Whether anything is to be kept."""
        return self._film is not None or self._still is not None

    def add(self, images: Mapping[str, NDArray[np.uint8]], sentence: str, thought: str,
            step: int) -> None:
        """Note what was seen and thought at a step."""
        if not self.wanted:
            return
        from dtvla_ros.caption import Caption, draw_frame

        self._last = images, Caption(sentence, thought, f'{self._name}   step {step}', None)
        if self._film is not None:
            self._film.add(draw_frame(*self._last))

    def on_decision(self, observation: Observation, decision: Decision, step: int) -> None:
        """Note a decision made in this process."""
        self.add(observation.images, observation.instruction, decision.reasoning, step)

    def close(self, success: bool) -> None:
        """Finish the files, or drop them."""
        if self._film is not None:
            self._film.close()
            if success:
                self._film.path.unlink(missing_ok=True)
        if self._still is None or self._last is None:
            return
        if success:
            self._still.unlink(missing_ok=True)
            return
        from PIL import Image

        from dtvla_ros.caption import draw_frame

        self._still.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_frame(*self._last)).save(self._still, quality=85)
