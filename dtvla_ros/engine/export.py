"""Exports a trained model as a policy folder: weights, three ONNX graphs, manifest, hashes.

The weights are stored once: the graphs refer into ``model.safetensors`` as ONNX external data,
so torch and ONNX Runtime read the same bytes under the same hash. Of a quantised policy the file
holds the graphs' own matrices, which only ONNX Runtime reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from dtvla_ros.engine.engine import Engine
from dtvla_ros.engine.graphs import build_graphs, move_to, refer_to_model
from dtvla_ros.engine.onnx_engine import OnnxEngine
from dtvla_ros.engine.policy import Policy, banned_in_thought, write_thought
from dtvla_ros.engine.proof import Agreement, Proof, wanted
from dtvla_ros.engine.published import scene
from dtvla_ros.engine.quantize import in_floats, quantize
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.policy import manifest as layout
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import PolicyManifest, new_folder, sha256
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform

MIN_COSINE = 0.999
_SAMPLES, _TOKENS = 4, 12  # of random inputs that engines are compared with


def write_graphs(model: HybridDecoder, folder: Path, weights: str = 'fp32') -> None:
    """Write the three graphs and their weights into a folder that exists.

    Of quantised ones a second set, which shares their weights, calculates in floats. ``model`` is
    a float32 one on the CPU; ``weights`` one of ``quantize.KINDS``.
    """
    graphs = quantize(build_graphs(model), model.config, weights)
    if weights == 'fp32':
        save_weights(model, folder / layout.WEIGHTS)
        refer_to_model(graphs, folder / layout.WEIGHTS, model.config)
    else:
        graphs |= {name: in_floats(graphs[of])
                   for of, name in zip(layout.GRAPHS, layout.FLOAT_GRAPHS)}
        move_to(graphs, folder / layout.WEIGHTS)
    for name, graph in graphs.items():
        onnx.save(graph, folder / name)


def gate(model: HybridDecoder, folder: Path, weights: str) -> Parity:
    """Return how closely graphs agree with their model, the worse of both sets of quantised ones.

    Raises ``UserError`` if that is not close enough, so that a policy is one on every CPU.
    """
    found = [compare(TorchEngine(model), engine)
             for engine in _exported(folder, model.config, weights)]
    for parity in found:
        parity.check(weights == 'fp32')
    return min(found)


def _exported(folder: Path, config: DecoderConfig, weights: str) -> Iterator[Engine]:
    """Yield an engine of every set of graphs."""
    for floats in (False,) if weights == 'fp32' else (False, True):
        yield OnnxEngine(folder, config, floats=floats)


def export_policy(model: HybridDecoder, transform: PolicyTransform, folder: Path | str,
                  manifest: PolicyManifest, weights: str = 'fp32',
                  observations: Proof | None = None) -> Parity:
    """Write a policy folder whole or not at all; return what the parity gate measured.

    ``manifest`` is completed with the config, statistics, kind of weights and hashes.
    ``observations``: what the policy will prove itself on where it is loaded. Raises ``UserError``
    if the exported graphs do not agree with the float32 model: exactly, or, for
    quantised weights, as closely as the gate asks.
    """
    model = model.float().cpu().eval()
    with new_folder(Path(folder)) as part:
        transform.tokenizer.save(str(part / layout.TOKENIZER))
        write_graphs(model, part, weights)
        parity = gate(model, part, weights)
        proved = {} if observations is None else record_proof(
            model, transform, part, replace(manifest, weights=weights), observations)
        files = {path.name: sha256(path) for path in sorted(part.iterdir())}
        whole = replace(
            manifest, config=transform.config, statistics=transform.statistics, files=files,
            state_in_prompt=transform.state_in_prompt, preamble=transform.preamble,
            weights=weights, proof=proved)
        (part / layout.MANIFEST).write_text(whole.to_json())
    return parity


def record_proof(model: HybridDecoder, transform: PolicyTransform, folder: Path,
                 manifest: PolicyManifest, observations: Proof) -> dict[str, float]:
    """Write what a float32 model makes of observations beside its graphs, if there are any.

    Returns what a manifest says in ``proof``: how far the graphs agree. Raises ``UserError`` where
    float32 ones do not.
    """
    proof = observations.decided_by(Policy(
        TorchEngine(model), transform, max_thought_tokens=manifest.max_thought_tokens,
        done_margin=manifest.done_margin))
    proof.write(folder / layout.PROOF)
    found = [proof.check(Policy(engine, transform, done_margin=manifest.done_margin))
             for engine in _exported(folder, model.config, manifest.weights)
             ] if (folder / layout.GRAPHS[0]).exists() else []
    least = Agreement(min((f.tokens for f in found), default=1.0),
                      min((f.bins for f in found), default=1.0), len(proof.observations), 0.0)
    if manifest.weights == 'fp32' and not least.reaches(wanted(manifest)):
        raise UserError(f'the graphs do not compute the trained policy: {least}')
    return {'tokens': least.tokens, 'bins': least.bins}


class Parity(NamedTuple):
    """Agreement over random images and prompts.

    ``cosine``: the lowest of all logit rows, text and action. ``thoughts``, ``chunks``: how many
    of ``samples`` greedy thoughts and decoded chunks are identical. ``bins``: share of action
    values within one bin of each other.
    """

    cosine: float
    thoughts: int
    chunks: int
    samples: int
    bins: float

    def __str__(self) -> str:
        return (f'parity: cosine {self.cosine:.6f}, thoughts equal {self.thoughts}/{self.samples}'
                f', chunks equal {self.chunks}/{self.samples}, action values within one bin '
                f'{self.bins:.0%}')

    def check(self, exact: bool = True) -> None:
        """Raise unless the engines agree; ``exact`` asks for equal thoughts and chunks too."""
        same = self.thoughts == self.chunks == self.samples
        if not (self.cosine >= MIN_COSINE and (same or not exact)):
            wanted = ' and equal thoughts and chunks are' if exact else ' is'
            raise UserError(f'{self}: the export does not compute the trained policy '
                            f'(cosine >= {MIN_COSINE}{wanted} required)')


def compare(reference: Engine, other: Engine, seed: int = 0) -> Parity:
    """Run both engines on the same random inputs, through every phase."""
    config, rng = reference.config, np.random.default_rng(seed)
    banned = banned_in_thought(config.ids, config.text.vocabulary)
    for engine in (reference, other):
        engine.suppress_tokens(banned)
    cosines, near, thoughts, chunks = [], [], 0, 0
    for _ in range(_SAMPLES):
        view = scene(config, _TOKENS + 3, int(rng.integers(2 ** 32)))
        given = rng.choice(np.flatnonzero(~banned), _TOKENS).tolist()
        (want_rows, want_bins, want_thought, want_chunk), (rows, bins, said, chunk) = (
            _run(engine, view.pixels, view.prompt, given) for engine in (reference, other))
        cosines += [_cosine(want_rows, rows), _cosine(want_bins, bins)]
        near.append(np.abs(want_bins.argmax(-1) - bins.argmax(-1)) <= 1)
        thoughts += want_thought == said
        chunks += bool((want_chunk == chunk).all())
    return Parity(float(np.min(cosines)), thoughts, chunks, _SAMPLES, float(np.mean(near)))


def _run(engine: Engine, pixels: NDArray[np.float32], prompt: list[int],
         given: list[int]) -> tuple[NDArray, NDArray, list[int], NDArray]:
    """Return word and action logits with a given thought, then an own thought and its bins."""
    ids = engine.config.ids
    features = engine.encode_images(pixels)
    rows = engine.logits(prompt, features, [ids.think, *given])
    _, cache = engine.prefill(prompt, features, [ids.think, *given])
    scores = engine.decode_actions(cache, [ids.think_end, ids.action])
    said, _, cache, *_ = write_thought(engine, prompt, features, [ids.think], [], lambda tokens: (
        tokens[-1] == ids.think_end or len(tokens) >= _TOKENS))
    return rows, scores, said, engine.decode_actions(cache, [said[-1], ids.action]).argmax(-1)


def _cosine(a: NDArray, b: NDArray) -> float:
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in map(np.float64, (a, b)))
    return float((a * b).sum(-1).min())
