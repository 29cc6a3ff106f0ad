"""Teach the eyes where things are, before and while the decoder learns to speak of it.

A policy trained from scratch on demonstrations alone does not look for a long time: the hand's
own position predicts most actions and most location words. The simulator knows where every
object is, so a small head on the image rows asks for all of them in every picture. It is thrown
away afterwards; what stays are image rows from which places can be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dtvla_ros.actions.grid import CM_RANGE
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader

AXES = ('x', 'y')
ABSENT = -1000  # far from every word's index


def thing_names(readers: Sequence[DatasetReader]) -> tuple[str, ...]:
    """Return all things whose places any of the datasets holds."""
    return tuple(dict.fromkeys(name for reader in readers for name in _names(reader)))


def _names(reader: DatasetReader) -> list[str]:
    names = reader.info['features'].get(layout.PLACES, {}).get('names') or ()
    return [name[:-2] for name in names if name.endswith('.x')]


def kind(thing: str) -> str:
    """Return what a thought calls a thing: its name in words, without a number."""
    return re.sub(r'_\d+$', '', thing).replace('_', ' ')


def spread(
    reader: DatasetReader, feature: str, things: Sequence[str], width: int,
) -> NDArray[np.float32]:
    """Return a dataset's feature [N, E, width] of its own things for ``things``, else NaN."""
    own = _names(reader)
    out = np.full((len(reader.table), len(things), width), np.nan, np.float32)
    if feature in reader.info['features'] and own:
        out[:, [list(things).index(name) for name in own]] = np.asarray(
            reader.column(feature)).reshape(len(out), len(own), width)
    return out


def place_targets(reader: DatasetReader, things: Sequence[str]) -> NDArray[np.int64]:
    """Return [N, E, 2]: for each frame the index of every thing's x and y word in its group.

    Read from the feature ``observation.places`` [E * 3], metres in the base frame; ``ABSENT``
    for things that are not in the scene, or in a dataset without it (a real robot's).
    """
    places = spread(reader, layout.PLACES, things, 3)[..., :2]  # [N, E, 2]
    low, high = np.array([CM_RANGE[axis] for axis in AXES]).T
    here = ~np.isnan(places).any(-1, keepdims=True)
    words = np.rint(np.where(here, places, 0.0) * 100.0).astype(np.int64)
    return np.where(here, np.clip(words, low, high) - low, ABSENT)


def told_apart(places: NDArray[np.int64], things: Sequence[str]) -> NDArray[np.bool_]:
    """Return [N, E]: whether a thing of ``places`` [N, E, 2] is there, alone of its kind."""
    here = places[..., 0] != ABSENT
    kinds = np.array([kind(name) for name in things])
    same = (kinds[:, None] == kinds).astype(np.int64)  # [E, E]
    return here & (here.astype(np.int64) @ same == 1)


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


def place_loss(
    logits: Sequence[Tensor], targets: Tensor, asked: Tensor, sigma: float,
) -> PlaceReport:
    """Smoothed cross-entropy of both words, mean over the asked things.

    ``targets`` [B, E, 2]; ``asked`` [B, E] bool.
    """
    loss, near = targets.new_zeros((), dtype=torch.float32), asked
    for k, scores in enumerate(logits):
        away = torch.arange(scores.shape[-1], device=scores.device) - targets[..., k, None]
        wanted = (-0.5 * (away / max(sigma, 1e-3)) ** 2).softmax(-1)  # [B, E, words]
        losses = -(wanted * scores.float().log_softmax(-1)).sum(-1)
        loss = loss + losses.where(asked, 0.0).sum()
        near = near & ((scores.argmax(-1) - targets[..., k]).abs() <= 1)
    count = asked.sum().clamp_min(1)
    return PlaceReport(loss / count, (near.sum() / count).detach())
