"""Change what a camera might have seen, never what it means: no flips, no rotations.

A flip would exchange left and right in the thought and in the actions.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def shifted(frame: NDArray[np.uint8], out: NDArray[np.uint8], dy: int, dx: int) -> None:
    """Write ``frame`` [H, W, 3] moved by (dy, dx) pixels into ``out``, edges repeated."""
    height, width = frame.shape[:2]
    top, bottom = max(dy, 0), height + min(dy, 0)
    left, right = max(dx, 0), width + min(dx, 0)
    out[top:bottom, left:right] = frame[top - dy:bottom - dy, left - dx:right - dx]
    out[:top, left:right] = out[top, left:right]
    out[bottom:, left:right] = out[bottom - 1, left:right]
    out[:, :left] = out[:, left:left + 1]
    out[:, right:] = out[:, right - 1:right]


def colour_map(rng: Generator, strength: float) -> NDArray[np.float32]:
    """Return an affine map [3, 4] of one image's RGB in 0..255.

    It holds brightness, contrast about mid grey, saturation and the colour of the light.
    """
    saturation, contrast = 1.0 + strength * rng.uniform(-1.0, 1.0, 2) * (0.3, 0.25)
    light = 1.0 + strength * rng.uniform(-0.08, 0.08, 3)
    mix = saturation * np.eye(3) + (1.0 - saturation) * np.tile(LUMA, (3, 1))
    matrix = contrast * light[:, None] * mix
    grey = 127.5
    offset = grey - contrast * light * grey + strength * rng.uniform(-0.15, 0.15) * grey
    return np.column_stack([matrix, offset]).astype(np.float32)


def recoloured(image: NDArray[np.uint8], colours: NDArray[np.float32]) -> None:
    """Apply ``colours`` [3, 4] to ``image`` [H, W, 3] in place, clipped to 0..255."""
    cv2.transform(image, colours, dst=image)


def to_pixels(frames: Tensor) -> Tensor:
    """Return [B, C, 3, H, W] in -1..1 of uint8 ``frames`` [C, B, H, W, 3].

    The result is a view in channels-last memory per camera, which is what a convolution wants.
    """
    return frames.float().div_(127.5).sub_(1.0).permute(1, 0, 4, 2, 3)
