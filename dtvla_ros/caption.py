"""Draws camera images with the thought beside them: for films, reports and the overlay."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dtvla_ros.thought import as_sentence, without_told

Ink = tuple[int, int, int]
CAMERA = 352  # side of a camera image in the frame [px]
TOP = 32  # height of the cameras' names above them [px]
WIDTH, HEIGHT = 1152, CAMERA + TOP
COLUMNS, LINES = 40, 7  # of the thought
INK, FAINT, PAPER = (235, 235, 235), (150, 150, 150), (24, 26, 30)
GOOD, WARNING, BAD = (120, 220, 130), (240, 200, 90), (240, 120, 110)
ALARM = (190, 25, 25)  # of the band across a frame


@dataclass(frozen=True, slots=True)
class Caption:
    """Text beside the cameras. ``thought``: a sentence, or compact. ``success`` None: undecided.

    ``states``: coloured lines in place of the footer. ``stopped``: why the arm was stopped, in a
    band across the frame. ``meaning``: what the title was understood as. What a person put into
    the thought stands below it in another colour.
    """

    title: str
    thought: str
    footer: str = ''
    success: bool | None = None
    states: tuple[tuple[str, Ink], ...] = ()
    stopped: str = ''
    meaning: str = ''


def draw_frame(
    images: Mapping[str, NDArray[np.uint8] | None], caption: Caption) -> NDArray[np.uint8]:
    """Return a frame [384, 1152, 3]: two cameras [H, W, 3] in order, then the caption."""
    frame = Image.new('RGB', (WIDTH, HEIGHT), PAPER)
    pen, small = ImageDraw.Draw(frame), ImageFont.load_default(15)
    for k, (name, pixels) in enumerate(list(images.items())[:2]):
        pen.text((k * CAMERA + 8, 7), name, FAINT, small)
        if pixels is None:
            pen.text((k * CAMERA + 8, TOP + 8), f'no image_{name}', FAINT, small)
            continue
        image = Image.fromarray(np.ascontiguousarray(pixels))
        scale = CAMERA / max(image.size)
        image = image.resize((max(1, round(image.width * scale)),
                              max(1, round(image.height * scale))), Image.Resampling.BICUBIC)
        frame.paste(image, (k * CAMERA + (CAMERA - image.width) // 2,
                            TOP + (CAMERA - image.height) // 2))
    frame.paste(_draw_caption(caption), (2 * CAMERA, 0))
    if caption.stopped:
        pen.rectangle((0, 0, WIDTH, TOP), ALARM)
        text = textwrap.shorten(f'STOPPED: {caption.stopped}', 100, placeholder=' ...')
        pen.text((8, 4), text, INK, ImageFont.load_default(20))
    return np.asarray(frame)


@functools.lru_cache(maxsize=2)
def _draw_caption(caption: Caption) -> Image.Image:
    """Return the panel beside the cameras; of a long thought its end."""
    panel = Image.new('RGB', (WIDTH - 2 * CAMERA, HEIGHT), PAPER)
    pen = ImageDraw.Draw(panel)
    large, small = ImageFont.load_default(20), ImageFont.load_default(15)
    said, told = without_told(as_sentence(caption.thought))
    thought = textwrap.wrap(said, COLUMNS)
    if len(thought) > LINES:
        thought = ['...', *thought[1 - LINES:]]
    pen.text((20, 34), textwrap.fill(
        caption.title, COLUMNS, max_lines=2 if caption.meaning else 3, placeholder=' ...'),
        INK, large)
    pen.text((20, 86), textwrap.shorten(caption.meaning, 60, placeholder=' ...'), GOOD, small)
    pen.text((20, 110), 'thinks', FAINT, small)
    pen.text((20, 134), '\n'.join(thought), INK, large)
    if told:
        below = pen.multiline_textbbox((20, 134), '\n'.join(thought), large)[3]
        pen.text((20, below + 10), textwrap.shorten(f'told: {told}', 60, placeholder=' ...'),
                 WARNING, small)
    for row, (text, ink) in enumerate(caption.states):
        line = textwrap.shorten(text, 60, placeholder=' ...')
        pen.text((20, HEIGHT - 66 + 21 * row), line, ink, small)
    pen.text((20, HEIGHT - 58), caption.footer, FAINT, small)
    if caption.success is not None:
        text, ink = ('success', GOOD) if caption.success else ('failed', BAD)
        pen.text((20, HEIGHT - 34), text, ink, large)
    return panel
