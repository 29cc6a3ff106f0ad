"""Teach the eyes where things are, before and while the decoder learns to speak of it.

A policy trained from scratch on demonstrations alone does not look for a long time: the hand's
own position predicts most actions and most location words. The simulator knows where every
object is, so a small head on the image rows asks for all of them in every picture. It is thrown
away afterwards; what stays are image rows from which places can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dtvla_ros.actions.grid import CM_RANGE
from dtvla_ros.training.dataset import layout
from dtvla_ros.training.dataset.reader import DatasetReader

AXES = ('x', 'y')


def place_targets(reader: DatasetReader) -> NDArray[np.int64]:
    """Return [N, E, 2]: for each frame the index of every object's x and y word in its group.

    Read from the feature ``observation.places`` [E * 3], metres in the base frame; E is 0 for a
    dataset without it (a real robot's).
    """
    if layout.PLACES not in reader.info['features']:
        return np.zeros((len(reader.table), 0, 2), np.int64)
    places = np.asarray(reader.column(layout.PLACES)).reshape(len(reader.table), -1, 3)
    low, high = np.array([CM_RANGE[axis] for axis in AXES]).T
    return np.clip(np.rint(places[..., :2] * 100.0).astype(np.int64), low, high) - low


def place_names(reader: DatasetReader) -> tuple[str, ...]:
    """Return the names of the things whose places a dataset holds, as words."""
    names = reader.info['features'].get(layout.PLACES, {}).get('names') or ()
    return tuple(name[:-2].replace('_', ' ') for name in names if name.endswith('.x'))


class PlaceHead(nn.Module):
    """One question per thing over the rows of one camera: which x word, which y word."""

    def __init__(self, width: int, things: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.question = nn.Parameter(torch.randn(things, width) * width ** -0.5)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.words = nn.ModuleList(
            nn.Linear(width, CM_RANGE[a][1] - CM_RANGE[a][0] + 1) for a in AXES)

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        """[B, n, width] -> logits [B, E, words] for x and for y."""
        rows = self.norm(rows)
        attention = (self.question @ self.key(rows).transpose(1, 2)).softmax(-1)  # [B, E, n]
        found = F.gelu(attention @ self.value(rows))  # [B, E, width]
        return tuple(word(found) for word in self.words)


@dataclass(frozen=True, slots=True)
class PlaceReport:
    """``loss`` [nats, x and y together] and the share of things placed within one word."""

    loss: Tensor
    within_one: Tensor


def place_loss(logits: Sequence[Tensor], targets: Tensor, sigma: float) -> PlaceReport:
    """Smoothed cross-entropy of both words, mean over things; ``targets`` [B, E, 2]."""
    losses, near = [], []
    for k, scores in enumerate(logits):
        away = torch.arange(scores.shape[-1], device=scores.device) - targets[..., k, None]
        wanted = (-0.5 * (away / max(sigma, 1e-3)) ** 2).softmax(-1)  # [B, E, words]
        losses.append(-(wanted * scores.float().log_softmax(-1)).sum(-1).mean())
        near.append((scores.argmax(-1) - targets[..., k]).abs() <= 1)
    return PlaceReport(losses[0] + losses[1], (near[0] & near[1]).float().mean().detach())
