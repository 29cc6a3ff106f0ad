"""Load a policy folder, ready to infer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from dtvla_ros.conventions import DEVICES, ENGINES
from dtvla_ros.engine.engine import Engine
from dtvla_ros.engine.policy import Policy
from dtvla_ros.engine.providers import multiplies_bytes
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import FLOAT_GRAPHS, GRAPHS, MANIFEST, PolicyManifest
from dtvla_ros.policy.transform import transform_of

DTYPES = ('float32', 'bfloat16', 'float16')


def load_policy(path: Path | str, engine: str = 'onnx', threads: int = 1, device: str = 'cpu',
                dtype: str | None = None, mode: str = 'full',
                max_thought_tokens: int | None = None, max_think_seconds: float = math.inf,
                on_verified: Callable[[PolicyManifest], None] | None = None,
                ) -> tuple[Policy, PolicyManifest]:
    """Load a policy folder, ready to infer; every file is hashed before it is parsed.

    ``device`` is one of ``DEVICES``; on the CPU ``threads`` threads are used. ``engine`` 'onnx'
    imports no torch; without the GPU that is asked for it logs why and runs on the CPU. 'torch'
    runs in ``dtype`` (None: float32 on the CPU, elsewhere as stored) and knows no TensorRT.
    ``max_thought_tokens`` None: as the manifest says. ``on_verified`` is called when every file
    is known to be intact, before the weights are read.
    Raises ``UserError`` naming the file or value and what is wrong with it.
    """
    folder = Path(path)
    for what, value, known in (('engine', engine, ENGINES), ('device', device, DEVICES),
                               ('type', dtype or DTYPES[0], DTYPES)):
        if value not in known:
            raise UserError(f'{what} {value!r} is none of {", ".join(known)}')
    manifest = PolicyManifest.read(folder)
    if engine == 'onnx' and not any(name in manifest.files for name in GRAPHS):
        raise UserError(f'{folder / MANIFEST}: lists no ONNX graphs; use the engine torch')
    if engine == 'torch' and manifest.weights != 'fp32':
        raise UserError(f'{folder / MANIFEST}: {manifest.weights} weights; use the engine onnx')
    transform = transform_of(folder, manifest)
    weights = manifest.verified_weights(folder)
    floats = not multiplies_bytes() and all(name in manifest.files for name in FLOAT_GRAPHS)
    if manifest.weights == 'w8a8' and device == 'cpu' and not floats and not multiplies_bytes():
        raise UserError(f'{folder / MANIFEST}: w8a8 weights of before they were made for a CPU '
                        'without VNNI; export the policy again')
    if engine == 'onnx':
        for name in (*GRAPHS, *(FLOAT_GRAPHS if floats else ())):
            manifest.verified(folder, name)
    if on_verified is not None:
        on_verified(manifest)
    run: Engine
    if engine == 'onnx':
        from dtvla_ros.engine.onnx_engine import OnnxEngine

        run = OnnxEngine(folder, manifest.config, threads, device, floats=floats)
    else:
        import torch

        from dtvla_ros.engine.torch_engine import TorchEngine
        from dtvla_ros.policy.checkpoint import load_model

        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        if device == 'tensorrt' or (device == 'cuda' and not torch.cuda.is_available()):
            raise UserError(f'device {device!r}: the torch engine does not have it here; use cpu, '
                            'or cuda with a CUDA build of torch, or the engine onnx')
        if device == 'cpu':
            torch.set_num_threads(threads)
        model = load_model(manifest.config, weights, device, getattr(torch, dtype or '', None))
        run = TorchEngine(model, release=True)
    return Policy(run, transform, mode, max_thought_tokens or manifest.max_thought_tokens,
                  max_think_seconds), manifest
