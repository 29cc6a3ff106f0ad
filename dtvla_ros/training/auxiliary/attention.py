"""Teach one attention head to look where the named thing stands while its place is said.

Knowing where everything is (``grounding``) does not tell the decoder which of it to say: left to
the cross-entropy alone, no head finds the right patch for thousands of steps. So the rows that
predict the x and the y word of a place are asked to attend to the patch it falls in. Pointing
costs two thin products in one layer and leaves the architecture as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, apply_rotary_pos_emb

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.training.auxiliary.localisation import spread

NOWHERE = -1
NEAR = 3  # words, x and y together, between the place said and the thing it is taken to mean


def patch_of(points: ArrayLike, tokens: int) -> NDArray[np.int64]:
    """Return the patch [...] that points [..., 2] fall in, ``NOWHERE`` outside the picture.

    Points are fractions of the image from its upper left corner: across, down. The ``tokens``
    patches are a square grid, row by row.
    """
    side = math.isqrt(tokens)
    cell = np.floor(np.asarray(points) * side).astype(np.int64)  # [..., 2]
    inside = ((cell >= 0) & (cell < side)).all(-1)
    return np.where(inside, cell[..., 1] * side + cell[..., 0], NOWHERE)


def can_point(reader: DatasetReader) -> bool:
    """Return whether a dataset says where its things appear in the first camera's image."""
    return {layout.PLACES, layout.POINTS} <= set(reader.info['features'])


def thing_patches(
    reader: DatasetReader, things: Sequence[str], tokens: int,
) -> NDArray[np.int64]:
    """Return [N, E]: each thing's patch; all ``NOWHERE`` for a dataset without points."""
    if not can_point(reader):
        return np.full((len(reader.table), len(things)), NOWHERE)
    points = spread(reader, layout.POINTS, things, 2)  # [N, E, 2]
    return patch_of(np.where(np.isnan(points), -1.0, points), tokens)


class AttentionProbe:
    """Reads the first head's attention scores in one decoder layer, through a hook on it.

    ``scores`` [B, n, n] of the layer's last pass, mask added: what that head takes its softmax
    of, with its gradient. They are computed again from the layer's input: of the whole layer's
    queries and keys one head is a thin slice.
    """

    def __init__(self, layer: GemmaDecoderLayer):
        self.scores: Tensor | None = None
        layer.register_forward_pre_hook(self._read, with_kwargs=True)

    def _read(self, layer: GemmaDecoderLayer, inputs: tuple[Tensor, ...],
              options: dict[str, Any]) -> None:
        attention = layer.self_attn
        size = attention.head_dim
        x = layer.input_layernorm(inputs[0])
        query = F.linear(x, attention.q_proj.weight[:size])[:, None]  # [B, 1, n, d]
        key = F.linear(x, attention.k_proj.weight[:size])[:, None]
        query, key = apply_rotary_pos_emb(query, key, *options['position_embeddings'])
        scores = (query @ key.transpose(-1, -2))[:, 0].float() * attention.scaling
        self.scores = scores + options['attention_mask'][:, 0].float()

    def take(self) -> Tensor:
        """Return the scores of the last pass and forget them."""
        assert self.scores is not None, 'the layer has run'
        scores, self.scores = self.scores, None
        return scores


@dataclass(frozen=True, slots=True)
class PointingTargets:
    """K rows that should look somewhere: ``sequence`` [K], ``row`` [K], ``column`` [K]."""

    sequence: Tensor
    row: Tensor
    column: Tensor


def pointing_targets(
    token_rows: Tensor, token_targets: Tensor, spans: Sequence[tuple[int, int]], places: Tensor,
    patches: Tensor,
) -> PointingTargets:
    """Return where the rows that predict an x word and the y word after it should look.

    ``token_rows`` [2, R] (sequence, row) and ``token_targets`` [R] as in ``Batch``; ``spans``:
    (first, last) ids of the x words and of the y words; ``places`` [B, E, 2] and ``patches``
    [B, E]. A place said means the nearest thing that is at most ``NEAR`` words away; nothing is
    asked for when there is none, or when it is not in the picture. The first camera's patches
    are the first columns of every sequence.
    """
    (x_first, x_last), (y_first, y_last) = spans[:2]
    said, after = token_targets[:-1], token_targets[1:]
    pair = (said >= x_first) & (said <= x_last) & (after >= y_first) & (after <= y_last)
    pair &= (token_rows[0, 1:] == token_rows[0, :-1]) & (token_rows[1, 1:]
                                                         == token_rows[1, :-1] + 1)
    at = pair.nonzero()[:, 0]  # [K / 2]
    sequence, row = token_rows[:, at]
    word = torch.stack([said[at] - x_first, after[at] - y_first], 1)  # [K / 2, 2]
    away, thing = (places[sequence] - word[:, None]).abs().sum(-1).min(1)
    column = patches[sequence, thing]
    good = (away <= NEAR) & (column != NOWHERE)
    sequence, row, column = sequence[good], row[good], column[good]
    return PointingTargets(sequence.repeat(2), torch.cat([row, row + 1]), column.repeat(2))


@dataclass(frozen=True, slots=True)
class PointReport:
    """``loss`` [nats] and the mean share of attention on the right patch (nan without rows)."""

    loss: Tensor
    share: Tensor


def pointing_loss(scores: Tensor, targets: PointingTargets) -> PointReport:
    """Cross-entropy of one head's attention, mean over the asked rows; 0 when none is asked.

    ``scores`` [B, L, L]: row i's scores over all columns, the hidden ones at the mask's value.
    """
    rows = scores[targets.sequence, targets.row].float()  # [K, L]
    losses = F.cross_entropy(rows, targets.column, reduction='none')
    return PointReport(losses.sum() / max(len(losses), 1), losses.detach().neg().exp().mean())
