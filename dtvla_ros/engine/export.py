"""From a trained model to a policy folder: weights, three ONNX graphs, manifest, hashes.

The weights are stored once: the graphs refer into ``model.safetensors`` as ONNX external data,
so torch and ONNX Runtime read the same bytes under the same hash.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from dtvla_ros.engine.onnx_engine import OnnxEngine
from dtvla_ros.engine.parity import Parity, compare
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.decoder import Cache, HybridDecoder
from dtvla_ros.policy.manifest import (
    GRAPHS,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    PolicyManifest,
    sha256,
)
from dtvla_ros.policy.transform import PolicyTransform

_INLINE_BYTES = 1024  # smaller constants stay in the graph


class _Vision(nn.Module):
    def __init__(self, model: HybridDecoder):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_images(pixel_values)


class _Decoder(nn.Module):
    def __init__(self, model: HybridDecoder):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, features: Tensor, mask: Tensor, position_ids: Tensor,
                rows: Tensor, past_keys: Tensor, past_values: Tensor) -> tuple[Tensor, ...]:
        x = self.model.embed_prompt(input_ids, features)
        cache = Cache(list(past_keys.unbind(0)), list(past_values.unbind(0)))
        hidden, grown = self.model.run(x, mask, position_ids, cache)
        assert grown is not None
        return (self.model.token_logits(hidden[:, rows]),
                torch.stack(grown.keys), torch.stack(grown.values))


class _Act(nn.Module):
    def __init__(self, model: HybridDecoder):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, mask: Tensor, position_ids: Tensor, past_keys: Tensor,
                past_values: Tensor) -> Tensor:
        x = self.model.embed_action(input_ids)
        cache = Cache(list(past_keys.unbind(0)), list(past_values.unbind(0)))
        hidden, _ = self.model.run(x, mask, position_ids, cache)
        first = input_ids.shape[1] - 1
        return self.model.action_logits(hidden[:, first:first + self.model.config.slots])


def write_graphs(model: HybridDecoder, folder: Path) -> None:
    """Write the three graphs beside ``model.safetensors``, which must hold the same weights."""
    config, text, vision = model.config, model.config.text, model.config.vision
    free = torch.export.Dim.DYNAMIC
    past, new = 7, 3  # any sizes: both are dynamic
    width = past + new
    tail = config.slots + 2
    ids = torch.arange(new)[None]
    # Two tensors: given one twice, the exporter takes values for keys.
    keys, values = torch.zeros(2, text.layers, 1, text.kv_heads, past, text.head_dim)
    size = vision.image_size
    table: dict[str, tuple[type[nn.Module], dict[str, tuple[Tensor, dict]], list[str]]] = {
        'vision.onnx': (_Vision, {
            'pixel_values': (torch.zeros(1, len(vision.cameras), 3, size, size), {}),
        }, ['features']),
        'decoder.onnx': (_Decoder, {
            'input_ids': (ids, {1: free}),
            'features': (torch.zeros(1, config.image_tokens, text.width), {}),
            'mask': (torch.zeros(1, 1, new, width), {2: free, 3: free}),
            'position_ids': (ids + past, {1: free}), 'rows': (torch.arange(2), {0: free}),
            'past_keys': (keys, {3: free}), 'past_values': (values, {3: free}),
        }, ['logits', 'keys', 'values']),
        'act.onnx': (_Act, {
            'input_ids': (ids, {1: free}),
            'mask': (torch.zeros(1, 1, new + tail, width + tail), {2: free, 3: free}),
            'position_ids': (torch.arange(new + tail)[None] + past, {1: free}),
            'past_keys': (keys, {3: free}), 'past_values': (values, {3: free}),
        }, ['logits']),
    }
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    where = _tensor_places(folder / WEIGHTS)
    for name in GRAPHS:
        module, inputs, outputs = table[name]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            program = torch.onnx.export(
                module(model).eval(), tuple(value for value, _ in inputs.values()), dynamo=True,
                dynamic_shapes={key: shape for key, (_, shape) in inputs.items()},
                input_names=list(inputs), output_names=outputs, verbose=False)
        assert program is not None
        graph = program.model_proto
        _share_weights(graph, where)
        _forget_origin(graph)
        onnx.save(graph, folder / name)


def _tensor_places(path: Path) -> dict[bytes, tuple[int, int, tuple[int, ...], bool]]:
    """Return content hash -> (offset, length, stored shape, whether it is the transpose)."""
    places = {}
    with path.open('rb') as file:
        size = struct.unpack('<Q', file.read(8))[0]
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, 'r')
    for name, entry in header.items():
        if name == '__metadata__' or entry['dtype'] != 'F32':
            continue
        begin, end = (offset + 8 + size for offset in entry['data_offsets'])
        array = np.frombuffer(data[begin:end], np.float32).reshape(entry['shape'])
        turned = [(array, False)] + ([(array.T, True)] if array.ndim == 2 else [])
        for view, transposed in reversed(turned):
            places[_digest(view)] = (begin, end - begin, array.shape, transposed)
    return places


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).digest()


def _share_weights(graph: onnx.ModelProto, places: dict) -> None:
    """Replace the graph's big constants by references into the weights file.

    The exporter stores a linear layer's weight transposed; the reference is to the stored
    matrix with a Transpose after it, which the runtime folds when it loads the graph.
    """
    kept, nodes = [], []
    for tensor in graph.graph.initializer:
        array = numpy_helper.to_array(tensor)
        place = places.get(_digest(array)) if array.nbytes >= _INLINE_BYTES else None
        if place is None:
            kept.append(tensor)
            continue
        offset, length, shape, transposed = place
        outside = TensorProto(name=tensor.name, data_type=TensorProto.FLOAT, dims=shape,
                              data_location=TensorProto.EXTERNAL)
        for key, value in (('location', WEIGHTS), ('offset', offset), ('length', length)):
            outside.external_data.add(key=key, value=str(value))
        if transposed:
            outside.name = f'{tensor.name}.stored'
            nodes.append(helper.make_node('Transpose', [outside.name], [tensor.name], perm=[1, 0]))
        kept.append(outside)
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
    rest = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes, *rest])


def _forget_origin(graph: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces with the paths of the machine it ran on."""
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info,
                 *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        part.ClearField('metadata_props')
        part.ClearField('doc_string')


def export_policy(model: HybridDecoder, transform: PolicyTransform, folder: Path | str,
                  manifest: PolicyManifest) -> Parity:
    """Write a policy folder whole or not at all; return what the parity gate measured.

    ``manifest`` is completed with the config, statistics and hashes. Raises ``UserError`` if the
    exported graphs do not agree with the model.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise UserError(f'{folder}: holds files but no policy; choose another folder')
    model = model.float().cpu().eval()
    part = folder.with_name(folder.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_weights(model, part / WEIGHTS)
        transform.tokenizer.save(str(part / TOKENIZER))
        write_graphs(model, part)
        parity = compare(TorchEngine(model), OnnxEngine(part, model.config))
        parity.check()
        files = {name: sha256(part / name) for name in (WEIGHTS, TOKENIZER, *GRAPHS)}
        whole = replace(
            manifest, config=transform.config, statistics=transform.statistics, files=files,
            state_in_prompt=transform.state_in_prompt, preamble=transform.preamble)
        (part / MANIFEST).write_text(whole.to_json())
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return parity
