"""Per-feature statistics in the layout of LeRobot's ``meta/stats.json``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}


def _moments(rows: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    values = np.asarray(rows, np.float64)
    values = np.where(np.isnan(values).all(0), 0.0, values)  # NaN: things that are not there
    quantiles = np.nanquantile(values, list(QUANTILES.values()), axis=0)
    return {
        'min': np.nanmin(values, 0), 'max': np.nanmax(values, 0),
        'mean': np.nanmean(values, 0), 'std': np.nanstd(values, 0),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def vector_statistics(rows: NDArray[Any]) -> dict[str, list[Any]]:
    """Return min, max, mean, std, count and quantiles of [N, D] (or [N]) over the frames."""
    table = np.asarray(rows).reshape(len(rows), -1)
    stats = {name: value.tolist() for name, value in _moments(table).items()}
    return {**stats, 'count': [len(table)]}


def image_statistics(images: NDArray[np.uint8]) -> dict[str, list[Any]]:
    """Return the same over the pixels of [N, H, W, 3], per channel [3, 1, 1], in 0..1."""
    pixels = images.reshape(-1, 3)
    stats = {k: (v / 255.0).reshape(3, 1, 1).tolist() for k, v in _moments(pixels).items()}
    return {**stats, 'count': [len(images)]}
