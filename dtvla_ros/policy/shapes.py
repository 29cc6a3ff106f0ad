"""How large a camera's images are, and whether images of two sizes have the same shape.

A policy scales every image to a square and crops none: images of another aspect ratio than those
it was trained on are squeezed otherwise. Another resolution of the same shape looks the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError

Size = tuple[int, int]  # width, height [px]
SAME_SHAPE = 0.01  # relative change of an aspect ratio that still counts as the same
REMEDY = 'set the camera to that shape, or train on images of this one'


def size_of(image: NDArray[np.uint8]) -> Size:
    """Return the size of an image [H, W, 3]."""
    return image.shape[1], image.shape[0]


def same_shape(size: Size, other: Size) -> bool:
    """Return whether images of two sizes are squeezed alike."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1.0) <= SAME_SHAPE


def shown(size: Size) -> str:
    """Return a size as people write it."""
    return f'{size[0]}x{size[1]}'


def another_shape(size: Size, trained: Size | None) -> str | None:
    """Return why an image does not fit a policy ``trained`` on others; None: it does, or may."""
    if trained is None or same_shape(size, trained):
        return None
    return f'the image is {shown(size)}, the policy was trained on {shown(trained)}: {REMEDY}'


def require_sizes(sizes: Mapping[str, Size], cameras: Collection[str]) -> None:
    """Raise ``UserError`` for the size of no camera of a policy, and for one that is none."""
    for camera, size in sizes.items():
        if camera not in cameras:
            raise UserError(f'sizes: camera {camera!r} is none of {", ".join(cameras)}')
        if len(size) != 2 or min(size) < 1:
            raise UserError(f'sizes: {camera} is {list(size)}, expected width and height in '
                            'pixels, at least 1 each')
