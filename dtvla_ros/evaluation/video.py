"""Writes films, contact sheets and records of failures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dtvla_ros.caption import PAPER, Caption, draw_frame
from dtvla_ros.conventions import understood_as
from dtvla_ros.engine.engine import Decision
from dtvla_ros.files import written_whole
from dtvla_ros.policy.transform import Observation


class Film:
    """An H.264 film, written as frames come; nothing is left behind where none came."""

    def __init__(self, path: Path | io.BytesIO, rate: float):
        self.path = path
        self._rate = Fraction(rate).limit_denominator(1000)
        self._container: Any = None
        self._stream: Any = None

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame [H, W, 3]; all have the size of the first, even in both directions."""
        if self._container is None:
            if isinstance(self.path, Path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(self.path, 'w', format='mp4')
            self._stream = self._container.add_stream('libx264', rate=self._rate)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = 'yuv420p'
            self._stream.options = {'crf': '23', 'preset': 'veryfast'}
            self._stream.thread_count = 1
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')):
            self._container.mux(packet)

    def close(self) -> None:
        if self._container is not None:
            for packet in self._stream.encode():
                self._container.mux(packet)
            self._container.close()
            self._container = None


def contact_sheet(frames: Sequence[NDArray[np.uint8]], path: Path, columns: int = 2,
                  width: int = 800) -> None:
    """Write frames of equal size as one PNG, row by row."""
    height = round(width * frames[0].shape[0] / frames[0].shape[1])
    rows = -(-len(frames) // columns)
    sheet = Image.new('RGB', (columns * width, rows * height), PAPER)
    for k, frame in enumerate(frames):
        small = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (k % columns * width, k // columns * height))
    with written_whole(path) as part:
        sheet.save(part, optimize=True)


class FailureRecord:
    """Follows an episode for a film [frames/s] and a last still, if it fails and has folders.

    ``said``: what the policy was told in other words than its instruction's.
    """

    def __init__(self, films: Path | None, stills: Path | None, name: str, rate: float):
        self._name, self._stills, self.said = name, stills is not None, ''
        self._last: tuple[Mapping[str, NDArray[np.uint8]], Caption] | None = None
        self._data = io.BytesIO()
        self._film = Film(self._data, rate) if films is not None else None

    def add(self, images: Mapping[str, NDArray[np.uint8]], instruction: str, thought: str,
            step: int, meaning: str = '') -> None:
        self._last = images, Caption(
            instruction, thought, f'{self._name}   step {step}', meaning=meaning)
        if self._film is not None:
            self._film.add(draw_frame(*self._last))

    def on_decision(self, observation: Observation, decision: Decision, step: int) -> None:
        task = observation.instruction
        self.add(observation.images, self.said or task, decision.reasoning, step,
                 understood_as(task, self.said) if self.said else '')

    def close(self, success: bool) -> dict[str, bytes]:
        """Return what is kept of the episode, as ``videos`` and ``stills``: of success nothing."""
        if self._film is not None:
            self._film.close()
        if success or self._last is None:
            return {}
        files = {} if self._film is None else {'videos': self._data.getvalue()}
        if self._stills:
            still = io.BytesIO()
            Image.fromarray(draw_frame(*self._last)).save(still, 'JPEG', quality=85)
            files['stills'] = still.getvalue()
        return files
