"""Quantised variants of the exported graphs.

int8 and int4 are weight-only: every matrix that rows are multiplied by becomes a MatMulNBits,
in which blocks of weights along the input share one scale. w8a8 is int8, but rows that come out
of a norm, and so are evenly spread, become int8 too, each with one scale, and integers are
multiplied. In all of them norms, softmax, convolutions and the residual rows stay float32, and
the embedding is the head's own int8 rows, gathered.

An x86 CPU without VNNI adds pairs of products of bytes in sixteen bits, which saturate. Columns
of w8a8 are therefore scaled so that no two neighbours can overflow, whatever row they meet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import GRAPHS

KINDS = ('fp32', 'int8', 'w8a8', 'int4')
BLOCK = 128  # weights that share a scale, at most
BLOCK_INT4 = 32
SMALLEST_BLOCK = 16  # that MatMulNBits knows
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy level: rows become int8 too, block by block
_HEADS = ('model.below.matrix', 'model.bins.matrix', 'model.above.matrix')
_EMBEDDING = 'model.embedding'
_NORMS = ('RMSNormalization', 'LayerNormalization')
# What int4 stores in four bits: nine tenths of the weights.
_COARSE = ('gate_up.matrix', 'down.matrix')


def quantize(graphs: Mapping[str, onnx.ModelProto], config: DecoderConfig,
             kind: str) -> dict[str, onnx.ModelProto]:
    """Return the graphs with weights of ``kind``; the given ones are used up.

    int4 keeps all but the gated layers' matrices at int8.
    """
    if kind not in KINDS:
        raise UserError(f'weights {kind!r} are none of {", ".join(KINDS)}')
    if kind == 'fp32':
        return dict(graphs)
    block = min(BLOCK, config.text.width & -config.text.width)  # a power of two that divides it
    if block < SMALLEST_BLOCK:
        raise UserError(f'{kind} weights need a width that is a multiple of {SMALLEST_BLOCK}, '
                        f'got {config.text.width}; export fp32')
    small = {}
    for name, graph in graphs.items():
        constants = {tensor.name for tensor in graph.graph.initializer}
        products = [node for node in graph.graph.node
                    if node.op_type == 'MatMul' and node.input[1] in constants]
        coarse = [n.name for n in products if kind == 'int4' and n.input[1].endswith(_COARSE)]
        normed = {n.output[0] for n in graph.graph.node if n.op_type in _NORMS}
        whole = [n.name for n in products if kind == 'w8a8' and n.input[0] in normed
                 and n.input[1] not in _HEADS]
        fine = [n.name for n in products if n.name not in [*coarse, *whole]]
        if whole:
            _integers(graph, whole)
        graph = _weights_only(graph, fine, 8, block)
        small[name] = _weights_only(graph, coarse, 4, BLOCK_INT4) if coarse else graph
    # The embedding [V, width] as the head stores it, and its scales [V, blocks].
    stored = {t.name: numpy_helper.to_array(t) for t in small[GRAPHS[1]].graph.initializer}
    rows, scales = (np.concatenate([stored[f'{head}_{part}'].reshape(-1, width)
                                    for head in _HEADS]) for part, width in (
        ('Q8', config.text.width), ('scales', config.text.width // block)))
    for name in GRAPHS[1:]:
        _gather(small[name], rows, scales, block)
    return small


def in_floats(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a quantised graph that multiplies floats where it rounded rows block by block.

    The weights are the same bytes; the runtime makes floats of them once, when it loads the graph.
    """
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    nodes, made = [], _constants('floats', low=np.uint8(15), four=np.uint8(4), last=np.array([-1]),
                                 middle8=np.float32(128.0), middle4=np.float32(8.0))
    for node in graph.graph.node:
        if node.op_type != 'MatMulNBits':
            nodes.append(node)
            continue
        sizes = {a.name: a.i for a in node.attribute}
        rows, stored, scales = node.input[:3]
        out = sizes['N']
        made += _constants(stored, blocks=np.array([out, -1, sizes['block_size']]),
                           scaling=np.array([out, -1, 1]), shape=np.array([out, sizes['K']]))
        nodes += [*_as_floats(stored, scales, sizes['bits']),
                  helper.make_node('MatMul', [rows, f'{stored}.floats'], node.output)]
    rewrite(graph, nodes, [*graph.graph.initializer, *made])
    return graph


def rewrite(graph: onnx.ModelProto, nodes: list[onnx.NodeProto],
            constants: list[onnx.TensorProto]) -> None:
    """Give a graph new nodes and constants."""
    for kept, new in ((graph.graph.node, nodes), (graph.graph.initializer, constants)):
        del kept[:]
        kept.extend(new)


def _constants(prefix: str, **values: np.ndarray | np.generic) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(value), f'{prefix}.{name}')
            for name, value in values.items()]


def _as_floats(stored: str, scales: str, bits: int) -> list[onnx.NodeProto]:
    """Return nodes that make ``stored``.floats [in, out] of constants alone."""
    node = helper.make_node
    nodes, steps = [], stored
    if bits == 4:  # two to a byte, the first one low
        steps = f'{stored}.pairs'
        nodes = [node('BitwiseAnd', [stored, 'floats.low'], [f'{stored}.low']),
                 node('BitShift', [stored, 'floats.four'], [f'{stored}.high'], direction='RIGHT'),
                 node('Unsqueeze', [f'{stored}.low', 'floats.last'], [f'{stored}.even']),
                 node('Unsqueeze', [f'{stored}.high', 'floats.last'], [f'{stored}.odd']),
                 node('Concat', [f'{stored}.even', f'{stored}.odd'], [steps], axis=-1)]
    return [*nodes,
            node('Cast', [steps], [f'{stored}.cast'], to=onnx.TensorProto.FLOAT),
            node('Sub', [f'{stored}.cast', f'floats.middle{bits}'], [f'{stored}.steps']),
            node('Reshape', [f'{stored}.steps', f'{stored}.blocks'], [f'{stored}.blockwise']),
            node('Reshape', [scales, f'{stored}.scaling'], [f'{stored}.scales']),
            node('Mul', [f'{stored}.blockwise', f'{stored}.scales'], [f'{stored}.scaled']),
            node('Reshape', [f'{stored}.scaled', f'{stored}.shape'], [f'{stored}.rows']),
            node('Transpose', [f'{stored}.rows'], [f'{stored}.floats'], perm=[1, 0])]


def _weights_only(graph: onnx.ModelProto, nodes: list[str], bits: int,
                  block: int) -> onnx.ModelProto:
    with _quiet():
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    others = [node.name for node in graph.graph.node if node.name not in nodes]
    quantizer = nbits.MatMulNBitsQuantizer(
        graph, nodes_to_exclude=others, algo_config=nbits.DefaultWeightOnlyQuantConfig(
            block_size=block, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS, bits=bits))
    quantizer.process()
    return quantizer.model.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Undo what importing the quantizer does to everybody's logging."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.getLogger('onnxruntime.quantization.matmul_nbits_quantizer').setLevel(logging.ERROR)


def _integers(graph: onnx.ModelProto, names: list[str]) -> None:
    """Make products of int8 rows and int8 columns of the nodes ``names``.

    ``x @ w = (round(127 x / p) @ round(w / q)) * p / 127 * q`` with p the largest magnitude of a
    row, q the step of a column. Rows are stored around 128, as x86 multiplies unsigned
    bytes by signed ones.
    """
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    made = _constants('w8a8', last=np.array([-1]), top=np.float32(127), one=np.float32(1),
                      middle=np.uint8(128), least=np.float32(1e-20))
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        rows, matrix = node.input
        weight = numpy_helper.to_array(tensors[matrix])  # [in, out]
        step = _step(weight)  # [out]
        made += _constants(matrix, i8=np.rint(weight / step).astype(np.int8),
                           scale=step / np.float32(127))
        if rows not in done:
            nodes += _round_rows(rows)
            done.add(rows)
        out = node.output[0]
        nodes += [
            helper.make_node('MatMulInteger', [f'{rows}.i8', f'{matrix}.i8', 'w8a8.middle'],
                             [f'{out}.sum']),
            helper.make_node('Cast', [f'{out}.sum'], [f'{out}.float'], to=onnx.TensorProto.FLOAT),
            helper.make_node('Mul', [f'{out}.float', f'{rows}.peak'], [f'{out}.rows']),
            helper.make_node('Mul', [f'{out}.rows', f'{matrix}.scale'], [out])]
        del tensors[matrix]
    rewrite(graph, nodes, [*tensors.values(), *made])


def _step(weight: np.ndarray) -> np.ndarray:
    """Return the finest steps [out] of columns [in, out] whose products can not overflow.

    Two neighbours of one sign may add up to 127 steps; rounding makes that 128 at most, and
    255 * 128 < 2 ** 15.
    """
    sides = np.maximum([weight, -weight], 0)  # [2, in, out]
    sides = np.pad(sides, ((0, 0), (0, len(weight) % 2), (0, 0)))
    pairs = sides[:, ::2] + sides[:, 1::2]
    return np.maximum(pairs.max((0, 1)), np.float32(1e-20)) / np.float32(127)


def _round_rows(rows: str) -> list[onnx.NodeProto]:
    """Return nodes that make ``.i8`` rows around 128 and their ``.peak`` [..., 1]."""
    node = helper.make_node
    return [node('Abs', [rows], [f'{rows}.abs']),
            node('ReduceMax', [f'{rows}.abs', 'w8a8.last'], [f'{rows}.max'], keepdims=1),
            node('Max', [f'{rows}.max', 'w8a8.least'], [f'{rows}.peak']),
            node('Div', ['w8a8.top', f'{rows}.peak'], [f'{rows}.up']),
            node('Mul', [rows, f'{rows}.up'], [f'{rows}.scaled']),
            node('QuantizeLinear', [f'{rows}.scaled', 'w8a8.one', 'w8a8.middle'], [f'{rows}.i8'])]


def _gather(graph: onnx.ModelProto, rows: np.ndarray, scales: np.ndarray, block: int) -> None:
    """Let the embedding be looked up in int8 ``rows``."""
    nodes = [node if node.op_type != 'Gather' or node.input[0] != _EMBEDDING else helper.make_node(
        'GatherBlockQuantized', ['embedding.i8', node.input[1], 'embedding.scales'], node.output,
        node.name, domain='com.microsoft', bits=8, block_size=block, gather_axis=0,
        quantize_axis=1) for node in graph.graph.node]
    rewrite(graph, nodes, [*(t for t in graph.graph.initializer if t.name != _EMBEDDING),
                           *_constants('embedding', i8=rows, scales=scales)])
