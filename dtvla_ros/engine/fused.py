"""The decoder laid out for inference: fused projections over one static cache.

Built from a ``HybridDecoder`` and equal to it; n new rows, r of them read, end rows in sight,
batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer

from dtvla_ros.engine.linear import (
    Head,
    Linear,
    by_rows,
    gated,
    make_linear,
    rms_norm,
    rows_at_once,
)
from dtvla_ros.policy.model import HybridDecoder

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class _Layer:
    before: Tensor  # [width], the scales of both norms
    qkv: Linear
    out: Linear
    after: Tensor
    gate_up: Linear
    down: Linear

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.gate_up(x)))


class FusedDecoder:
    """Runs rows of one sequence of at most ``capacity`` rows.

    ``keys`` and ``values`` [layers, kv_heads, capacity, head_dim]. ``release`` frees the model's
    own layer weights one by one as they are taken over, so that the two copies never stand side
    by side; the model is of no use afterwards.
    """

    def __init__(self, model: HybridDecoder, capacity: int, int8: bool = False,
                 release: bool = False):
        text = model.config.text
        table = model.embed_tokens.weight.detach()
        self.config = model.config
        self.embedding = table
        self.scale = torch.tensor(text.width ** 0.5, device=table.device).to(table.dtype)
        self.slots = None if model.slot_codes is None else model.slot_codes.detach()
        self.layers: list[_Layer] = []
        for layer in model.layers:
            self.layers.append(_fuse(cast(GemmaDecoderLayer, layer), int8))
            if release:
                _free(layer)
        self._rows = rows_at_once(int8)
        self.final = _scale(model.norm)
        self.head = Head(table, (model.config.ids.bins_first, model.config.ids.bins_last), int8)
        shape = text.layers, text.kv_heads, capacity, text.head_dim
        self.keys = torch.zeros(shape, dtype=table.dtype, device=table.device)
        self.values = torch.zeros_like(self.keys)
        self.cos, self.sin = self._angles()

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return self.keys.shape[2]

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` rows; what is there stays."""
        more = capacity - self.capacity
        self.keys = F.pad(self.keys, (0, 0, 0, more))
        self.values = F.pad(self.values, (0, 0, 0, more))
        self.cos, self.sin = self._angles()

    def _angles(self) -> tuple[Tensor, Tensor]:
        text, device = self.config.text, self.keys.device
        half = torch.arange(0, text.head_dim, 2, device=device).float() / text.head_dim
        position = torch.arange(self.capacity + 1, device=device).float()
        angle = position[:, None] * (1.0 / text.rope_theta ** half)  # [capacity + 1, d / 2]
        cos, sin = angle.cos(), angle.sin()
        return (torch.cat([cos, cos], 1).to(self.keys.dtype),
                torch.cat([-sin, sin], 1).to(self.keys.dtype))

    def embed(self, ids: Tensor) -> Tensor:
        """[n] -> [n, width], scaled."""
        return F.embedding(ids, self.embedding) * self.scale

    def embed_prompt(self, ids: Tensor, features: Tensor) -> Tensor:
        """Embed ids [n], the image ids as ``features`` [image_tokens, width] in order."""
        x = self.embed(ids)
        image = (ids == self.config.ids.image)[:, None]
        return x.masked_scatter(image, features.to(x.dtype))

    def embed_action(self, ids: Tensor) -> Tensor:
        """Rows of the action pass [p + T*D + 2, width]; ``ids`` [p] end with ``<action>``."""
        special = self.config.ids
        tail = ids.new_tensor([special.action_end, special.eos])
        x = self.embed(torch.cat([ids, tail]))
        slots = self.slots
        if slots is None:
            slots = x.new_zeros(self.config.slots, x.shape[1])
        return torch.cat([x[:-2], slots.to(x.dtype), x[-2:]])

    def run(self, x: Tensor, rows: Tensor, end: int, mask: Tensor | None,
            read: slice = ALL) -> Tensor:
        """Run new rows ``x`` [n, width]; return those in ``read`` after the final norm.

        ``rows`` [n] int64: where their keys and values go. They see the rows before ``end``
        where ``mask`` [n, end], added to the scores, lets them. The last layer computes keys and
        values of all rows, and the rest of the rows read.
        """
        # Positions count from 1. [n, 1, head_dim]
        cos, sin = self.cos[rows + 1][:, None], self.sin[rows + 1][:, None]
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            go_on = read if number == last else ALL
            x = x[go_on] + self._attend(layer, number, x, rows, end, mask, cos, sin, go_on)
            h = rms_norm(x, layer.after, self.config.text.norm_eps)
            x = x + by_rows(layer.feed_forward, h, self._rows)
        return rms_norm(x, self.final, self.config.text.norm_eps)

    def _attend(self, layer: _Layer, number: int, x: Tensor, rows: Tensor, end: int,
                mask: Tensor | None, cos: Tensor, sin: Tensor, read: slice) -> Tensor:
        """Store the rows' keys and values; return what the rows in ``read`` attend to."""
        text, n = self.config.text, x.shape[0]
        heads, shared, size = text.heads, text.kv_heads, text.head_dim
        h = rms_norm(x, layer.before, text.norm_eps)
        qkv = layer.qkv(h).view(n, heads + 2 * shared, size)
        turned = _rope(qkv[:, :heads + shared], cos, sin)  # [n, H + K, d]
        keys, values = self.keys[number], self.values[number]
        keys.index_copy_(1, rows, turned[:, heads:].transpose(0, 1))
        values.index_copy_(1, rows, qkv[:, heads + shared:].transpose(0, 1))
        each = heads // shared
        # The queries of one key head become rows of one product: [K, r * each, d].
        asking = turned[read, :heads]  # [r, H, d]
        r = asking.shape[0]
        query = asking.view(r, shared, each, size).permute(1, 2, 0, 3)
        query = query.reshape(1, shared, each * r, size)
        wide = None if mask is None else mask[read].repeat(each, 1)
        seen = F.scaled_dot_product_attention(
            query, keys[None, :, :end], values[None, :, :end], wide)
        seen = seen.view(shared, each, r, size).permute(2, 0, 1, 3)  # [r, K, each, d]
        return layer.out(seen.reshape(r, heads * size))


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of [n, heads, d]; ``sin`` [n, 1, d] is negative in the first half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _scale(norm: Any) -> Tensor:
    return norm.weight.detach().float() + 1.0


def _fuse(layer: GemmaDecoderLayer, int8: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp

    def joined(*parts: nn.Linear) -> Linear:
        return make_linear(int8, torch.cat([part.weight.detach() for part in parts]))

    return _Layer(
        _scale(layer.input_layernorm),
        joined(attention.q_proj, attention.k_proj, attention.v_proj), joined(attention.o_proj),
        _scale(layer.post_attention_layernorm), joined(mlp.gate_proj, mlp.up_proj),
        joined(mlp.down_proj))


def _free(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.data = parameter.data.new_empty(0)
