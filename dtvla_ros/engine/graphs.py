"""The exported graphs: traced from the inference model, weights kept outside as external data.

Rows are two-dimensional and each graph returns only the keys and values of its new rows: where
they are kept is the engine's business. Weights lie once, in ``model.safetensors``. Shapes: n new
rows, S rows so far, T = S + n, r rows read, W width, H heads, K key/value heads, d head size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.onnx.ops import rotary_embedding

from dtvla_ros.engine.inference_model import InferenceModel, Read, cosines_and_sines, take
from dtvla_ros.engine.onnx_engine import past_names
from dtvla_ros.engine.quantize import rewrite
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import GRAPHS, WEIGHTS
from dtvla_ros.policy.model import HybridDecoder

OPSET = 23  # the first with RMSNormalization and RotaryEmbedding
VISION_OPSET = 20  # from 21 on a GroupNormalization, for which ONNX Runtime has no CPU kernel
INLINE = 1024  # bytes; smaller constants stay in the graph
_TYPES = {'F32': np.float32, 'U8': np.uint8, 'I8': np.int8}


def build_graphs(model: HybridDecoder) -> dict[str, onnx.ModelProto]:
    """Return the three graphs by file name, weights inside, free of where they were made."""
    config, text, vision = model.config, model.config.text, model.config.vision
    free = torch.export.Dim.DYNAMIC
    so_far, new = 7, 3  # any sizes: both are dynamic; no tensor twice, it would be one input
    block = new + config.slots + 2
    rows, square = {0: free}, {0: free, 1: free}
    past = past_names(config)
    cache = [(name, torch.zeros(so_far, text.kv_heads * text.head_dim), rows) for name in past]
    fast = InferenceModel(model)
    return {
        GRAPHS[0]: trace(model, lambda towers, pixels: towers.encode_images(pixels[None])[0], [
            ('pixel_values', torch.zeros(len(vision.cameras), 3, *(vision.image_size,) * 2), {}),
        ], ['features'], VISION_OPSET),
        GRAPHS[1]: trace(fast, _decode, [
            ('input_ids', torch.arange(new), rows), ('features', torch.zeros(2, text.width), rows),
            ('image_rows', torch.arange(2), rows),
            ('mask', torch.zeros(new, so_far + new), square),
            ('position_ids', torch.arange(new), rows), ('rows', torch.arange(2), rows),
            ('bin_rows', torch.arange(2), rows),
            ('penalty', torch.zeros(text.vocabulary - config.ids.bins), {}), *cache,
        ], ['choices', 'below', 'bins', 'above', *(f'new_{name}' for name in past),
            'log_probs']),
        GRAPHS[2]: trace(fast, _act, [
            ('input_ids', torch.arange(new), rows),
            ('mask', torch.zeros(block, so_far + block), square),
            ('position_ids', torch.arange(block), rows), *cache], ['logits'])}


def trace(model: nn.Module, run: Callable[..., Any], inputs: list, outputs: list[str],
           opset: int = OPSET) -> onnx.ModelProto:
    """Trace ``run`` with ``inputs`` (name, example, free dimensions); forget its origin."""
    names, examples, shapes = zip(*inputs)
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        program = torch.onnx.export(
            _Graph(model, run).eval(), examples, dynamo=True, opset_version=opset,
            dynamic_shapes=(shapes,), input_names=names, output_names=outputs, verbose=False)
    assert program is not None
    graph = program.model_proto
    # The exporter's notes hold stack traces with the paths of the machine it ran on.
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info,
                 *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        part.ClearField('metadata_props')
        part.ClearField('doc_string')
    return graph


class _Graph(nn.Module):
    def __init__(self, model: nn.Module, run: Callable[..., Any]):
        super().__init__()
        self.model, self._run = model, run

    def forward(self, *inputs: Tensor) -> Any:
        return self._run(self.model, *inputs)


def _decode(model: InferenceModel, input_ids: Tensor, features: Tensor, image_rows: Tensor,
            mask: Tensor, position_ids: Tensor, rows: Tensor, bin_rows: Tensor, penalty: Tensor,
            *past: Tensor) -> tuple[Tensor, ...]:
    """Run a prompt, the thought begun so far, or later tokens.

    Returns the likeliest ids of ``rows``, their logits, the new keys and values, and the ids' log
    probabilities. ``bin_rows`` index ``rows``: action ids are never chosen, their logits are
    computed only on request.
    """
    attention = _GraphAttention(model, position_ids, mask, past)
    hidden = model(model.embed_prompt(input_ids, features, image_rows), attention, rows)
    below, above = model.below(hidden), model.above(hidden)
    chosen, log_probs = model.likeliest(below, above, penalty)
    return (chosen, below, model.bins(hidden.index_select(0, bin_rows)), above, *attention.new,
            log_probs)


def _act(model: InferenceModel, input_ids: Tensor, mask: Tensor, position_ids: Tensor,
         *past: Tensor) -> Tensor:
    """Run the thought's last tokens, the slots, the tail; return the slots' logits [T*D, bins].

    The first slot's row is that of ``<action>``, the last of ``input_ids``.
    """
    read = torch.arange(model.config.slots) + (input_ids.shape[0] - 1)
    attention = _GraphAttention(model, position_ids, mask, past)
    return model.bins(model(model.embed_action(input_ids), attention, read))


class _GraphAttention:
    """Attention of one pass whose rows so far are inputs of the graph, [S, K d] each.

    ``new`` collects the keys and values of the pass, [n, K d] each.
    """

    def __init__(self, model: InferenceModel, position_ids: Tensor, mask: Tensor,
                 past: tuple[Tensor, ...]):
        self._text = model.config.text
        self._cos, self._sin = (
            x[None] for x in cosines_and_sines(self._text, position_ids))  # [1, n, d / 2]
        self._mask, self._past = mask[:, None], past  # [n, 1, S + n]
        self.new: list[Tensor] = []

    def __call__(self, number: int, qkv: Tensor, read: Read) -> Tensor:
        heads, shared, d = self._text.heads, self._text.kv_heads, self._text.head_dim
        rotated, value = qkv.split([(heads + shared) * d, shared * d], -1)
        rotated = rotary_embedding(
            rotated[None], self._cos, self._sin, num_heads=heads + shared).squeeze(0)
        query, key = rotated.split([heads * d, shared * d], -1)
        self.new += [key, value]
        keys = torch.cat([self._past[2 * number], key])  # [T, K d]
        values = torch.cat([self._past[2 * number + 1], value])
        return self._attend(take(query, read), keys, values, take(self._mask, read))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """``query`` [r, H d], ``keys``, ``values`` [T, K d], ``mask`` [r, 1, T] -> [r, H d].

        The queries that share a key head are rows of one product; with a single key head, as in
        every Gemma of this family, nothing is transposed.
        """
        shared, d = self._text.kv_heads, self._text.head_dim
        group = self._text.heads // shared
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


def _reference(name: str, array: np.ndarray, file: np.memmap) -> TensorProto:
    """Return a constant of a graph that is a part of the weights file."""
    tensor = TensorProto(
        name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape,
        data_location=TensorProto.EXTERNAL)
    for key, value in (('location', WEIGHTS), ('offset', array.ctypes.data - file.ctypes.data),
                       ('length', array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def refer_to_model(graphs: Mapping[str, onnx.ModelProto], path: Path,
                   config: DecoderConfig) -> None:
    """Replace the graphs' big constants by references into the model's weights, ``path``.

    A graph wants matrices transposed and some of them joined; it is given the stored ones with
    a Concat and a Transpose behind them, which the runtime folds when it loads the graph. They
    are found by their bytes: the exporter folds and renames what it traces.
    """
    file, stored = _read(path)
    sources = {_digest(array): (parts, transposed)
               for array, parts, transposed in _sources(stored, config)}
    for graph in graphs.values():
        kept, nodes = [], []
        for tensor in graph.graph.initializer:
            array = numpy_helper.to_array(tensor)
            source = sources.get(_digest(array)) if array.nbytes >= INLINE else None
            if source is None:
                kept.append(tensor)
                continue
            parts, transposed = source
            names = ([f'{tensor.name}.{i}' for i in range(len(parts))] if transposed
                     else [tensor.name])
            kept += [_reference(name, part, file) for name, part in zip(names, parts)]
            if not transposed:
                continue
            if len(names) > 1:
                joined = f'{tensor.name}.joined'
                nodes.append(helper.make_node('Concat', names, [joined], axis=0))
                names = [joined]
            nodes.append(helper.make_node('Transpose', names, [tensor.name], perm=[1, 0]))
        rewrite(graph, [*nodes, *graph.graph.node], kept)


def move_to(graphs: Mapping[str, onnx.ModelProto], path: Path) -> None:
    """Move the graphs' big constants into a new weights file; equal ones are stored once."""
    arrays: dict[str, np.ndarray] = {}
    for graph in graphs.values():
        for tensor in graph.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.nbytes >= INLINE and array.dtype in _TYPES.values():
                arrays[_digest(array)] = np.ascontiguousarray(array)
    save_file(arrays, path, {'format': 'np'})
    path.chmod(0o644)  # the library makes it private
    file, stored = _read(path)
    for graph in graphs.values():
        found = [(t, stored.get(_digest(numpy_helper.to_array(t))))
                 for t in graph.graph.initializer]
        rewrite(graph, list(graph.graph.node), [
            t if array is None else _reference(t.name, array, file) for t, array in found])


def _sources(stored: Mapping[str, np.ndarray], config: DecoderConfig,
             ) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...], bool]]:
    """Yield what a graph may hold, the stored arrays above each other, whether transposed."""
    for array in stored.values():
        yield array, (array,), False
        if array.ndim == 2:
            yield array.T, (array,), True
    for i in range(config.text.layers):
        for names in (('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
                      ('mlp.gate_proj', 'mlp.up_proj')):
            parts = tuple(stored[f'layers.{i}.{name}.weight'] for name in names)
            yield np.concatenate(parts).T, parts, True
    for rows in np.split(stored['embed_tokens.weight'],
                         [config.ids.bins_first, config.ids.bins_last + 1]):
        yield rows.T, (rows,), True


def _read(path: Path) -> tuple[np.memmap, dict[str, np.ndarray]]:
    """Map a safetensors file; return it, and what it holds by name as views of it."""
    data = np.memmap(path, np.uint8, 'r')
    begin = 8 + int(data[:8].view('<u8')[0])
    header = json.loads(data[8:begin].tobytes())
    header.pop('__metadata__', None)
    return data, {name: data[begin:][slice(*entry['data_offsets'])].view(
        _TYPES[entry['dtype']]).reshape(entry['shape'])
        for name, entry in header.items() if entry['dtype'] in _TYPES}


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr((array.shape, array.dtype.str)).encode()
                          + array.tobytes()).hexdigest()
