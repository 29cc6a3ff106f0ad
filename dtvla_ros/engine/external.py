"""Where the graphs' weights lie: once, in ``model.safetensors``, as ONNX external data."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import WEIGHTS

INLINE = 1024  # bytes; smaller constants stay in the graph
_TYPES = {'F32': np.float32, 'U8': np.uint8, 'I8': np.int8}


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in the weights file; ``rows`` of it are as good as a tensor of their own."""

    begin: int
    shape: tuple[int, ...]
    array: np.ndarray

    def rows(self, first: int, last: int) -> _Stored:
        stride = self.array[:1].nbytes
        return _Stored(self.begin + first * stride, (last - first, *self.shape[1:]),
                       self.array[first:last])


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a constant of a graph comes of stored tensors: one above the other, transposed."""

    parts: tuple[_Stored, ...]
    transposed: bool


def refer_to_model(graphs: Mapping[str, onnx.ModelProto], path: Path,
                   config: DecoderConfig) -> None:
    """Replace the graphs' big constants by references into the model's weights, ``path``.

    A graph wants matrices transposed and some of them joined; it is given the stored ones with
    a Concat and a Transpose behind them, which the runtime folds when it loads the graph.
    """
    recipes = {_digest(array): recipe for array, recipe in _recipes(_read(path), config)}
    for graph in graphs.values():
        kept, nodes = [], []
        for tensor in graph.graph.initializer:
            array = numpy_helper.to_array(tensor)
            recipe = recipes.get(_digest(array)) if array.nbytes >= INLINE else None
            if recipe is None:
                kept.append(tensor)
                continue
            outside, made = _references(tensor.name, recipe)
            kept += outside
            nodes += made
        _replace(graph, kept, nodes)


def move_to(graphs: Mapping[str, onnx.ModelProto], path: Path) -> None:
    """Move the graphs' big constants into a new weights file; equal ones are stored once."""
    arrays: dict[str, np.ndarray] = {}
    for graph in graphs.values():
        for tensor in graph.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.nbytes >= INLINE and array.dtype in _TYPES.values():
                arrays[_digest(array).hex()] = np.ascontiguousarray(array)
    save_file(arrays, path, {'format': 'np'})
    path.chmod(0o644)  # the library makes it private
    stored = _read(path)
    for graph in graphs.values():
        kept = []
        for tensor in graph.graph.initializer:
            place = stored.get(_digest(numpy_helper.to_array(tensor)).hex())
            kept.append(tensor if place is None else
                        _outside(tensor.name, place, tensor.data_type))
        _replace(graph, kept, [])


def _recipes(stored: Mapping[str, _Stored],
             config: DecoderConfig) -> Iterator[tuple[np.ndarray, _Recipe]]:
    """Yield what a graph may hold, and how it is made."""
    for tensor in stored.values():
        yield tensor.array, _Recipe((tensor,), False)
        if tensor.array.ndim == 2:
            yield tensor.array.T, _Recipe((tensor,), True)
    for i in range(config.text.layers):
        for pair in (('self_attn.k_proj', 'self_attn.v_proj'), ('mlp.gate_proj', 'mlp.up_proj')):
            parts = tuple(stored[f'layers.{i}.{name}.weight'] for name in pair)
            yield np.concatenate([part.array for part in parts]).T, _Recipe(parts, True)
    table, ids = stored['embed_tokens.weight'], config.ids
    bounds = (0, ids.bins_first, ids.bins_last + 1, config.text.vocabulary)
    for first, last in zip(bounds, bounds[1:]):
        rows = table.rows(first, last)
        yield rows.array.T, _Recipe((rows,), True)


def _references(name: str, recipe: _Recipe) -> tuple[list[TensorProto], list[onnx.NodeProto]]:
    if len(recipe.parts) == 1 and not recipe.transposed:
        return [_outside(name, recipe.parts[0])], []
    outside = [_outside(f'{name}.{i}', part) for i, part in enumerate(recipe.parts)]
    source, nodes = outside[0].name, []
    if len(outside) > 1:
        source = f'{name}.joined'
        nodes.append(helper.make_node('Concat', [t.name for t in outside], [source], axis=0))
    nodes.append(helper.make_node('Transpose', [source], [name], perm=[1, 0]))
    return outside, nodes


def _outside(name: str, place: _Stored, kind: int = TensorProto.FLOAT) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=place.shape,
                         data_location=TensorProto.EXTERNAL)
    for key, value in (('location', WEIGHTS), ('offset', place.begin),
                       ('length', place.array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _replace(graph: onnx.ModelProto, constants: list[TensorProto],
             nodes: list[onnx.NodeProto]) -> None:
    """Give a graph new constants, and ``nodes`` before its own."""
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(constants)
    rest = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes, *rest])


def _read(path: Path) -> dict[str, _Stored]:
    """Return what a safetensors file holds by name; its pages are read when they are used."""
    with path.open('rb') as file:
        size = struct.unpack('<Q', file.read(8))[0]
        header = json.loads(file.read(size))
    data, stored = np.memmap(path, np.uint8, 'r'), {}
    for name, entry in header.items():
        if name != '__metadata__' and entry['dtype'] in _TYPES:
            begin, end = (offset + 8 + size for offset in entry['data_offsets'])
            shape = tuple(entry['shape'])
            stored[name] = _Stored(
                begin, shape, data[begin:end].view(_TYPES[entry['dtype']]).reshape(shape))
    return stored


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(repr((array.shape, array.dtype.str)).encode()
                          + array.tobytes()).digest()
