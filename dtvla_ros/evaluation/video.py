"""Films and contact sheets of frames."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dtvla_ros.caption import PAPER


class Film:
    """An H.264 film, written as frames come; nothing is left behind where none came."""

    def __init__(self, path: Path, rate: float):
        self.path = path
        self._rate = Fraction(rate).limit_denominator(1000)
        self._container: Any = None
        self._stream: Any = None

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame [H, W, 3]; all have the size of the first, even in both directions."""
        if self._container is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self.path), 'w')
            self._stream = self._container.add_stream('libx264', rate=self._rate)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = 'yuv420p'
            self._stream.options = {'crf': '23', 'preset': 'veryfast'}
            self._stream.thread_count = 1
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')):
            self._container.mux(packet)

    def close(self) -> None:
        """Finish the file."""
        if self._container is not None:
            for packet in self._stream.encode():
                self._container.mux(packet)
            self._container.close()
            self._container = None


def contact_sheet(
    frames: Sequence[NDArray[np.uint8]], path: Path, columns: int = 2, width: int = 800
) -> None:
    """Write frames of equal size as one PNG, row by row."""
    height = round(width * frames[0].shape[0] / frames[0].shape[1])
    rows = -(-len(frames) // columns)
    sheet = Image.new('RGB', (columns * width, rows * height), PAPER)
    for k, frame in enumerate(frames):
        small = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (k % columns * width, k // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
