"""From a policy folder to something that decides."""

from __future__ import annotations

from pathlib import Path

from dtvla_ros.engine.engine import Engine
from dtvla_ros.engine.think_act import ThinkAct
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import GRAPHS, TOKENIZER, WEIGHTS, PolicyManifest
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import load_tokenizer

ENGINES = ('onnx', 'torch')


def load_policy(path: Path | str, engine: str = 'onnx', threads: int = 1,
                device: str = 'cpu') -> tuple[Engine, PolicyTransform, PolicyManifest]:
    """Load a policy folder; every file is hashed before it is parsed.

    ``engine`` 'onnx' imports no torch and runs on the CPU with ``threads`` threads; 'torch'
    runs on ``device``. Raises ``UserError`` naming the file and what is wrong with it.
    """
    folder = Path(path)
    if engine not in ENGINES:
        raise UserError(f'engine {engine!r} is none of {", ".join(ENGINES)}')
    manifest = PolicyManifest.read(folder)
    transform = PolicyTransform(
        manifest.config, load_tokenizer(manifest.verified(folder, TOKENIZER)),
        manifest.statistics, manifest.state_in_prompt, manifest.preamble)
    weights = manifest.verified(folder, WEIGHTS)
    if engine == 'onnx':
        for name in GRAPHS:
            manifest.verified(folder, name)
        from dtvla_ros.engine.onnx_engine import OnnxEngine

        return OnnxEngine(folder, manifest.config, threads), transform, manifest
    import torch

    from dtvla_ros.engine.torch_engine import TorchEngine
    from dtvla_ros.policy.checkpoint import load_weights
    from dtvla_ros.policy.decoder import HybridDecoder

    if device == 'cpu':
        torch.set_num_threads(threads)
    model = HybridDecoder(manifest.config)
    load_weights(model, weights)
    return TorchEngine(model.to(device)), transform, manifest


def load_think_act(path: Path | str, engine: str = 'onnx', threads: int = 1, device: str = 'cpu',
                   mode: str = 'full', seed: int = 0) -> tuple[ThinkAct, PolicyManifest]:
    """Load a policy folder ready to decide, with its own thought length."""
    run, transform, manifest = load_policy(path, engine, threads, device)
    return ThinkAct(run, transform, mode, manifest.max_thought_tokens, seed=seed), manifest
