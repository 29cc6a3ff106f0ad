"""From a trained model to a policy folder: weights, three ONNX graphs, manifest, hashes.

The weights are stored once: the graphs refer into ``model.safetensors`` as ONNX external data,
so torch and ONNX Runtime read the same bytes under the same hash. Of a quantised policy the file
holds the graphs' own matrices, which only ONNX Runtime reads.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx

from dtvla_ros.engine.external import move_to, refer_to_model
from dtvla_ros.engine.graphs import build_graphs
from dtvla_ros.engine.onnx_engine import OnnxEngine
from dtvla_ros.engine.parity import Parity, compare
from dtvla_ros.engine.quantize import quantize
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.decoder import HybridDecoder
from dtvla_ros.policy.manifest import (
    GRAPHS,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    PolicyManifest,
    sha256,
)
from dtvla_ros.policy.transform import PolicyTransform


def write_graphs(model: HybridDecoder, folder: Path | str, weights: str = 'fp32') -> None:
    """Write the three graphs and their weights into a folder that exists.

    ``model`` is a float32 one on the CPU; ``weights`` one of ``quantize.KINDS``.
    """
    folder = Path(folder)
    graphs = quantize(build_graphs(model), model.config, weights)
    if weights == 'fp32':
        save_weights(model, folder / WEIGHTS)
        refer_to_model(graphs, folder / WEIGHTS, model.config)
    else:
        move_to(graphs, folder / WEIGHTS)
    for name, graph in graphs.items():
        onnx.save(graph, folder / name)


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
        parity = compare(TorchEngine(model), OnnxEngine(part, model.config))
        parity.check(exact=weights == 'fp32')
        files = {name: sha256(part / name) for name in (WEIGHTS, TOKENIZER, *GRAPHS)}
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
