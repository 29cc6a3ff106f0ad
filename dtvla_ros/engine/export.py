"""From a trained model to a policy folder: weights, three ONNX graphs, manifest, hashes.

The weights are stored once: the graphs refer into ``model.safetensors`` as ONNX external data,
so torch and ONNX Runtime read the same bytes under the same hash. Of a quantised policy the file
holds the graphs' own matrices, which only ONNX Runtime reads.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import onnx

from dtvla_ros.engine.decode import write_thought
from dtvla_ros.engine.external import move_to, refer_to_model
from dtvla_ros.engine.geometry import scene
from dtvla_ros.engine.graphs import build_graphs
from dtvla_ros.engine.instructions import multiplies_bytes
from dtvla_ros.engine.onnx_engine import OnnxEngine
from dtvla_ros.engine.parity import Parity, compare
from dtvla_ros.engine.quantize import in_floats, quantize
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.manifest import (
    FLOAT_GRAPHS,
    GRAPHS,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    PolicyManifest,
    sha256,
)
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform

_CANDIDATES = ('fp32', 'int8', 'w8a8')  # int4 is for memory
_PROMPT, _ROUNDS = 35, 5  # words of the prompt, decisions of each kind


def write_graphs(model: HybridDecoder, folder: Path | str, weights: str = 'fp32') -> None:
    """Write the three graphs and their weights into a folder that exists.

    Of quantised ones a second set, which shares their weights, calculates in floats. ``model`` is
    a float32 one on the CPU; ``weights`` one of ``quantize.KINDS``.
    """
    folder = Path(folder)
    graphs = quantize(build_graphs(model), model.config, weights)
    if weights != 'fp32':
        graphs |= {name: in_floats(graphs[of]) for of, name in zip(GRAPHS, FLOAT_GRAPHS)}
    if weights == 'fp32':
        save_weights(model, folder / WEIGHTS)
        refer_to_model(graphs, folder / WEIGHTS, model.config)
    else:
        move_to(graphs, folder / WEIGHTS)
    for name, graph in graphs.items():
        onnx.save(graph, folder / name)


def gate(model: HybridDecoder, folder: Path, weights: str) -> Parity:
    """Return how closely graphs agree with their model, the worse of both sets of quantised ones.

    Raises ``UserError`` if that is not close enough, so that a policy is one on every CPU.
    """
    exact = weights == 'fp32'
    found = [compare(TorchEngine(model), OnnxEngine(folder, model.config, floats=floats))
             for floats in ((False,) if exact else (False, True))]
    for parity in found:
        parity.check(exact)
    return min(found, key=lambda parity: parity.cosine)


def fastest_weights(model: HybridDecoder, thought_tokens: int) -> str:
    """Return the kind of weights that decides fastest on this CPU, of those that pass the gate.

    All take turns at whole decisions with a fresh thought, and the best of each counts.
    """
    model = model.float().cpu().eval()
    view = scene(model.config, _PROMPT)
    with TemporaryDirectory() as base:
        engines: dict[str, OnnxEngine] = {}
        for weights in _CANDIDATES:
            folder = Path(base) / weights
            folder.mkdir()
            try:
                write_graphs(model, folder, weights)
                gate(model, folder, weights)
            except UserError:
                continue
            engines[weights] = OnnxEngine(folder, model.config, floats=(
                weights != 'fp32' and not multiplies_bytes()))
            engines[weights].suppress_tokens(view.banned)
        seconds = {weights: float('inf') for weights in engines}
        for _ in range(_ROUNDS):
            for weights, engine in engines.items():
                start = perf_counter()
                tokens, cache, _ = write_thought(
                    engine, view.prompt, engine.encode_images(view.pixels), [], [],
                    lambda written: len(written) >= thought_tokens)
                engine.decode_actions(cache, tokens[-1:])
                seconds[weights] = min(seconds[weights], perf_counter() - start)
    if not seconds:
        raise UserError('no kind of weights passes the gate; export fp32 to see why')
    return min(seconds, key=lambda weights: seconds[weights])


def export_policy(model: HybridDecoder, transform: PolicyTransform, folder: Path | str,
                  manifest: PolicyManifest, weights: str = 'fp32') -> Parity:
    """Write a policy folder whole or not at all; return what the parity gate measured.

    ``manifest`` is completed with the config, statistics, kind of weights and hashes. Raises
    ``UserError`` if the exported graphs do not agree with the float32 model: exactly, or, for
    quantised weights, as closely as the gate asks.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise UserError(f'{folder}: holds files but no policy; choose another folder')
    model = model.float().cpu().eval()
    part = folder.with_name(folder.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        transform.tokenizer.save(str(part / TOKENIZER))
        write_graphs(model, part, weights)
        parity = gate(model, part, weights)
        files = {name: sha256(part / name) for name in (
            WEIGHTS, TOKENIZER, *GRAPHS, *(FLOAT_GRAPHS if weights != 'fp32' else ()))}
        whole = replace(
            manifest, config=transform.config, statistics=transform.statistics, files=files,
            state_in_prompt=transform.state_in_prompt, preamble=transform.preamble,
            weights=weights)
        (part / MANIFEST).write_text(whole.to_json())
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return parity
