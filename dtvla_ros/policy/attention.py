"""The decoder's attention over whole, padded sequences.

Pads are seen by nobody and not counted as positions: padding on either side changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AttentionInterface

from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import MASKED, SpecialIds, visible


def prompt_end(input_ids: Tensor, ids: SpecialIds) -> Tensor:
    """Return P [B], the column after the first (semicolon, newline) pair of ``[B, L]``."""
    pair = (input_ids[:, :-1] == ids.semicolon) & (input_ids[:, 1:] == ids.newline)
    if not bool(pair.any(1).all()):
        raise UserError(f'prompt without its end pair ({ids.semicolon}, {ids.newline}); '
                        'build prompts with PolicyTransform.prompt_ids')
    return pair.int().argmax(1) + 2


def action_start(input_ids: Tensor, ids: SpecialIds) -> Tensor:
    """Return A [B], the column of the last ``<action>`` of ``[B, L]``."""
    found = input_ids == ids.action
    if not bool(found.any(1).all()):
        raise UserError(f'sequence without an <action> token ({ids.action})')
    return input_ids.shape[1] - 1 - found.flip(1).int().argmax(1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a bool mask [B, n, S] into scores to add [B, 1, n, S]."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, MASKED).unsqueeze(1)


def sequence_mask(input_ids: Tensor, attention_mask: Tensor, ids: SpecialIds) -> Tensor:
    """Return the bool mask [B, L, L] of whole sequences, pads anywhere (mask 0)."""
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    seen = visible(columns[:, None], columns, prompt_end(input_ids, ids)[:, None, None],
                   action_start(input_ids, ids)[:, None, None])
    return seen & attention_mask.bool()[:, None]


def new_rows_visible(real: Tensor, count: int, prompt_end: int,
                     action_start: int | None = None) -> Tensor:
    """Return the bool mask [B, count, S] of the last ``count`` of S columns, run over a cache.

    ``real`` [B, S] is False at pads. ``prompt_end`` and ``action_start`` are columns that all
    sequences of the batch share, which left-padded prompts give; ``action_start`` is None while
    no ``<action>`` row is among the new ones.
    """
    columns = torch.arange(real.shape[1], device=real.device)
    start = len(columns) if action_start is None else action_start
    seen = visible(columns[-count:, None], columns, prompt_end, start)  # [count, S]
    return seen & real[:, None]


def left_padded(rows: Sequence[Sequence[int]], pad: int,
                device: torch.device | str = 'cpu') -> tuple[Tensor, Tensor]:
    """Return ids [B, n] of ragged rows that end in the same column, and where they are real."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    real = torch.arange(width) >= width - torch.tensor([[len(row)] for row in rows])
    return torch.tensor(ids, device=device), real.to(device)


def grouped_matmul_attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor,
                             attention_mask: Tensor | None, scaling: float, dropout: float = 0.0,
                             **_: Any) -> tuple[Tensor, None]:
    """Attend without repeating the shared key/value heads.

    ``query`` [B, H, n, d], ``key``, ``value`` [B, K, S, d] -> [B, n, H, d]. Written out because
    a training step of the small preset on CPU takes 1.35 times as long with
    ``scaled_dot_product_attention``; the queries of one key head become rows of one product.
    Softmax computes in float32 inside, whatever the type of its operand.
    """
    b, heads, n, d = query.shape
    shared = key.shape[1]
    q = (query * scaling).reshape(b, shared, heads // shared * n, d)
    scores = (q @ key.transpose(-1, -2)).view(b, heads, n, -1)  # [B, H, n, S]
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    weights = scores.softmax(-1).to(value.dtype)
    if dropout:
        weights = F.dropout(weights, dropout, module.training)
    out = weights.view(b, shared, heads // shared * n, -1) @ value
    return out.view(b, heads, n, d).transpose(1, 2), None


MATMUL = 'dtvla_matmul'
AttentionInterface.register(MATMUL, grouped_matmul_attention)
