"""Cameras with the thought written beside them, as films and contact sheets."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CAMERA = 352  # side of a camera picture in the frame [px]
WIDTH, HEIGHT = 1152, 384
INK, FAINT, PAPER = (235, 235, 235), (150, 150, 150), (24, 26, 30)
GOOD, BAD = (120, 220, 130), (240, 120, 110)


@dataclass(frozen=True, slots=True)
class Caption:
    """What is written beside the cameras. ``success`` None: not decided yet."""

    title: str
    thought: str
    footer: str
    success: bool | None = None


def draw_frame(
    images: Mapping[str, NDArray[np.uint8]], caption: Caption
) -> NDArray[np.uint8]:
    """Return a frame [384, 1152, 3]: the cameras in order, then the caption."""
    frame = Image.new('RGB', (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(frame)
    large, small = ImageFont.load_default(20), ImageFont.load_default(15)
    for k, (name, pixels) in enumerate(list(images.items())[:2]):
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        frame.paste(picture.resize((CAMERA, CAMERA), Image.Resampling.BICUBIC), (k * CAMERA, 32))
        pen.text((k * CAMERA + 8, 7), name, FAINT, small)
    x = 2 * CAMERA + 20
    columns = 40
    pen.text((x, 34), '\n'.join(textwrap.wrap(caption.title, columns)), INK, large)
    pen.text((x, 110), 'thinks', FAINT, small)
    pen.text((x, 134), '\n'.join(textwrap.wrap(caption.thought, columns)[:7]), INK, large)
    pen.text((x, HEIGHT - 58), caption.footer, FAINT, small)
    if caption.success is not None:
        text, colour = ('success', GOOD) if caption.success else ('failed', BAD)
        pen.text((x, HEIGHT - 34), text, colour, large)
    return np.asarray(frame)


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
