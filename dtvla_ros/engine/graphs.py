"""The hybrid decoder as its exported graphs compute it: one sequence, few nodes, no copies.

Rows are two-dimensional, weights that read the same rows are one matrix, and each graph returns
only the keys and values of its new rows: where they are kept is the engine's business. Shapes:
n new rows, S rows so far, r rows read, W width, K = kv_heads * head_dim.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import cast

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.onnx.ops import rotary_embedding
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, GemmaRMSNorm

from dtvla_ros.engine.onnx_engine import past_names
from dtvla_ros.policy.config import TextConfig
from dtvla_ros.policy.manifest import GRAPHS
from dtvla_ros.policy.model import HybridDecoder

OPSET = 23  # the first with RMSNormalization and RotaryEmbedding
VISION_OPSET = 20  # from 21 on a GroupNormalization, for which ONNX Runtime has no CPU kernel
Rope = tuple[Tensor, Tensor]


class _Layer(nn.Module):
    """One Gemma layer over n rows, of which the rows ``read`` go on (None: all)."""

    before: Tensor
    between: Tensor
    query: Tensor
    key_value: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor

    def __init__(self, layer: GemmaDecoderLayer, text: TextConfig):
        super().__init__()
        self.text = text
        attention, mlp = layer.self_attn, layer.mlp
        self.register_buffer('before', _gain(layer.input_layernorm))
        self.register_buffer('between', _gain(layer.post_attention_layernorm))
        self.register_buffer('query', _columns(attention.q_proj))
        self.register_buffer('key_value', _columns(attention.k_proj, attention.v_proj))
        self.register_buffer('out', _columns(attention.o_proj))
        self.register_buffer('gate_up', _columns(mlp.gate_proj, mlp.up_proj))
        self.register_buffer('down', _columns(mlp.down_proj))

    def forward(self, x: Tensor, rope: Rope, mask: Tensor, keys: Tensor, values: Tensor,
                read: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Run ``x`` [n, W] with ``mask`` [n, 1, S + n] over a past of [S, K].

        Returns rows [r, W], and keys and values [n, K] of all new rows.
        """
        h = _norm(x, self.before, self.text)  # [n, W]
        key, value = (h @ self.key_value).chunk(2, -1)  # [n, K]
        key = _rotate(key, rope, self.text.kv_heads)
        if read is not None:
            x, h, mask = (rows.index_select(0, read) for rows in (x, h, mask))
            rope = (rope[0].index_select(1, read), rope[1].index_select(1, read))
        query = _rotate(h @ self.query, rope, self.text.heads)  # [r, H * d]
        seen = self._attend(query, torch.cat([keys, key]), torch.cat([values, value]), mask)
        x = x + seen @ self.out
        gate, up = (_norm(x, self.between, self.text) @ self.gate_up).chunk(2, -1)  # [r, mlp]
        return x + (F.gelu(gate, approximate='tanh') * up) @ self.down, key, value

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """``query`` [r, H * d], ``keys``, ``values`` [T, K], ``mask`` [r, 1, T] -> [r, H * d].

        The queries that share a key head are rows of one product; with a single key head, as in
        every Gemma of this family, nothing is transposed.
        """
        shared, d = self.text.kv_heads, self.text.head_dim
        group = self.text.heads // shared
        r, _, total = mask.shape
        scale = d ** -0.5
        if shared == 1:
            scores = query.reshape(-1, d) @ keys.T * scale  # [r * H, T]
            weights = (scores.view(r, group, total) + mask).softmax(-1)
            return (weights.view(-1, total) @ values).reshape(r, -1)
        q = query.view(r, shared, group, d).transpose(0, 1).reshape(shared, r * group, d)
        scores = q @ keys.view(total, shared, d).permute(1, 2, 0) * scale  # [K, r * H/K, T]
        weights = (scores.view(shared, r, group, total) + mask).softmax(-1)
        seen = weights.view(shared, -1, total) @ values.view(total, shared, d).transpose(0, 1)
        return seen.view(shared, r, group, d).transpose(0, 1).reshape(r, -1)


class _Stack(nn.Module):
    """What decoder and act graphs have in common: embedding, layers, final norm."""

    embedding: Tensor
    frequencies: Tensor
    after: Tensor
    head_bins: Tensor

    def __init__(self, model: HybridDecoder):
        super().__init__()
        self.config = model.config
        self.register_buffer('embedding', model.embed_tokens.weight.detach())
        self.register_buffer('frequencies', cast(Tensor, model.rotary.inv_freq).float())
        self.register_buffer('after', _gain(model.norm))
        self.layers = nn.ModuleList(_Layer(cast(GemmaDecoderLayer, layer), model.config.text)
                                    for layer in model.layers)
        first, last = model.config.ids.bins_first, model.config.ids.bins_last + 1
        self.register_buffer('head_bins', self.embedding[first:last].T)
        self.scale = model.config.text.width ** 0.5

    def embed(self, input_ids: Tensor) -> Tensor:
        """[n] -> [n, W]."""
        return F.embedding(input_ids, self.embedding) * self.scale

    def run(self, x: Tensor, mask: Tensor, position_ids: Tensor, read: Tensor,
            past: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """Return the rows ``read`` after the final norm, and new keys and values by layer.

        The last layer computes keys and values of all rows, everything else of rows read.
        """
        angle = position_ids[:, None].to(torch.float32) * self.frequencies  # [n, d/2]
        rope, mask = (angle.cos()[None], angle.sin()[None]), mask[:, None]
        new: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            last = i + 1 == len(self.layers)
            x, key, value = layer(x, rope, mask, past[2 * i], past[2 * i + 1],
                                  read if last else None)
            new += [key, value]
        return _norm(x, self.after, self.config.text), new


class _Decoder(_Stack):
    """Prompt, thought begun so far, and every later token."""

    head_below: Tensor
    head_above: Tensor

    def __init__(self, model: HybridDecoder):
        super().__init__(model)
        first, last = self.config.ids.bins_first, self.config.ids.bins_last + 1
        self.register_buffer('head_below', self.embedding[:first].T)
        self.register_buffer('head_above', self.embedding[last:].T)

    def forward(self, input_ids: Tensor, features: Tensor, image_rows: Tensor, mask: Tensor,
                position_ids: Tensor, rows: Tensor, bin_rows: Tensor, penalty: Tensor,
                *past: Tensor) -> tuple[Tensor, ...]:
        """Features stand at ``image_rows``; ``penalty`` [V - bins] is added before choosing.

        ``bin_rows`` index ``rows``: action ids are never chosen, so their logits are computed
        only for whoever wants to see them.
        """
        x = self.embed(input_ids).index_put((image_rows,), features)
        hidden, new = self.run(x, mask, position_ids, rows, past)
        below, above = hidden @ self.head_below, hidden @ self.head_above  # [r, ids]
        best = (torch.cat([below, above], -1) + penalty).argmax(-1)  # [r]
        first = self.config.ids.bins_first
        choices = best + (best >= first).to(torch.int64) * self.config.ids.bins
        return (choices, below, hidden.index_select(0, bin_rows) @ self.head_bins, above, *new)


class _Act(_Stack):
    """The action pass: the thought's last tokens, the slots, the tail."""

    block: Tensor

    def __init__(self, model: HybridDecoder):
        super().__init__(model)
        config = model.config
        slots = torch.zeros(config.slots, config.text.width)
        if model.slot_codes is not None:
            slots = model.slot_codes.detach()
        tail = self.embed(torch.tensor([config.ids.action_end, config.ids.eos]))
        self.register_buffer('block', torch.cat([slots, tail]))

    def forward(self, input_ids: Tensor, mask: Tensor, position_ids: Tensor,
                *past: Tensor) -> Tensor:
        """Return logits [T*D, bins] of the row of ``<action>``, the last id, and of the slots."""
        x = torch.cat([self.embed(input_ids), self.block])
        read = torch.arange(self.config.slots) + (input_ids.shape[0] - 1)
        return self.run(x, mask, position_ids, read, past)[0] @ self.head_bins


class _Vision(nn.Module):
    def __init__(self, model: HybridDecoder):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[C, 3, H, W] -> [image_tokens, W]."""
        return self.model.encode_images(pixel_values[None])[0]


def build_graphs(model: HybridDecoder) -> dict[str, onnx.ModelProto]:
    """Return the three graphs by file name, weights inside, free of where they were made."""
    config, text, vision = model.config, model.config.text, model.config.vision
    free = torch.export.Dim.DYNAMIC
    so_far, new = 7, 3  # any sizes: both are dynamic; no tensor twice, it would be one input
    block = new + config.slots + 2
    rows, ids, positions = {0: free}, torch.arange(new), torch.arange(new)
    past = past_names(config)
    grown = [f'new_{name}' for name in past]
    cache = [(name, torch.zeros(so_far, text.kv_heads * text.head_dim), rows) for name in past]
    makers: tuple[tuple[str, Callable[[HybridDecoder], nn.Module], list, list[str]], ...] = (
        (GRAPHS[0], _Vision, [
            ('pixel_values', torch.zeros(len(vision.cameras), 3, *(vision.image_size,) * 2), {}),
        ], ['features']),
        (GRAPHS[1], _Decoder, [
            ('input_ids', ids, rows), ('features', torch.zeros(2, text.width), rows),
            ('image_rows', torch.arange(2), rows),
            ('mask', torch.zeros(new, so_far + new), {0: free, 1: free}),
            ('position_ids', positions, rows), ('rows', torch.arange(2), rows),
            ('bin_rows', torch.arange(2), rows),
            ('penalty', torch.zeros(text.vocabulary - config.ids.bins), {}), *cache,
        ], ['choices', 'below', 'bins', 'above', *grown]),
        (GRAPHS[2], _Act, [
            ('input_ids', ids, rows), ('mask', torch.zeros(block, so_far + block),
                                       {0: free, 1: free}),
            ('position_ids', torch.arange(block), rows), *cache,
        ], ['logits']),
    )
    return {name: _trace(make(model).eval(), inputs, outputs,
                         VISION_OPSET if make is _Vision else OPSET)
            for name, make, inputs, outputs in makers}


def _trace(module: nn.Module, inputs: list, outputs: list[str],
           opset: int) -> onnx.ModelProto:
    shapes: list = [shape for _, _, shape in inputs]
    past = [i for i, (name, *_) in enumerate(inputs) if name.startswith('keys.')]
    if past:  # the variadic argument is one tuple to torch.export
        shapes = [*shapes[:past[0]], tuple(shapes[past[0]:])]
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        program = torch.onnx.export(
            module, tuple(value for _, value, _ in inputs), dynamo=True, opset_version=opset,
            dynamic_shapes=tuple(shapes), input_names=[name for name, *_ in inputs],
            output_names=outputs, verbose=False)
    assert program is not None
    graph = program.model_proto
    _forget_origin(graph)
    return graph


def _forget_origin(graph: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces with the paths of the machine it ran on."""
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info,
                 *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        part.ClearField('metadata_props')
        part.ClearField('doc_string')


def _norm(x: Tensor, gain: Tensor, text: TextConfig) -> Tensor:
    return F.rms_norm(x, (text.width,), gain, text.norm_eps)


def _gain(norm: GemmaRMSNorm) -> Tensor:
    return 1.0 + norm.weight.detach()


def _columns(*linears: nn.Module) -> Tensor:
    """Return [in, sum of outs]: the weights of layers that read the same rows."""
    weights = [cast(nn.Linear, linear).weight.detach() for linear in linears]
    return (weights[0] if len(weights) == 1 else torch.cat(weights)).T


def _rotate(x: Tensor, rope: Rope, heads: int) -> Tensor:
    """Turn [n, heads * d] by the angles [1, n, d/2]."""
    return rotary_embedding(x[None], *rope, num_heads=heads).squeeze(0)
