"""Load a policy folder, ready to infer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dtvla_ros.conventions import DEVICES, ENGINES
from dtvla_ros.engine import proof
from dtvla_ros.engine.engine import Engine
from dtvla_ros.engine.policy import Policy
from dtvla_ros.engine.providers import PROVIDERS, describe, multiplies_bytes
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import FLOAT_GRAPHS, GRAPHS, MANIFEST, PROOF, PolicyManifest
from dtvla_ros.policy.transform import transform_of

if TYPE_CHECKING:
    from rich.table import Table

DTYPES = ('float32', 'bfloat16', 'float16')


def load_policy(path: Path | str, engine: str = 'onnx', threads: int = 1, device: str = 'cpu',
                dtype: str | None = None, mode: str = 'full',
                max_thought_tokens: int | None = None, max_think_seconds: float = math.inf,
                on_verified: Callable[[PolicyManifest], None] | None = None,
                prove: bool = True) -> tuple[Policy, PolicyManifest]:
    """Load a policy folder, ready to infer; every file is hashed before it is parsed.

    ``device`` is one of ``DEVICES``; on the CPU ``threads`` threads are used. ``engine`` 'onnx'
    imports no torch; without the GPU that is asked for it logs why and runs on the CPU. 'torch'
    runs in ``dtype`` (None: float32 on the CPU, elsewhere as stored) and knows no TensorRT; on
    CUDA all of its passes are recorded here; the engine's ``ready`` says what that took.
    ``max_thought_tokens`` None: as the manifest says. ``on_verified`` is called when every file
    is known to be intact, before the weights are read. ``prove``: run the recorded observations
    that the folder carries, if any, and refuse an engine that computes something else.
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
    if PROOF in manifest.files:
        manifest.verified(folder, PROOF)
    if on_verified is not None:
        on_verified(manifest)
    run: Engine
    warm_up: Callable[[int], object] | None = None
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
        warm_up = run.warm_up if device == 'cuda' else None
    policy = Policy(run, transform, mode, max_thought_tokens or manifest.max_thought_tokens,
                    max_think_seconds, calibration=manifest.calibration,
                    executed=manifest.action.replan_steps, done_margin=manifest.done_margin)
    if warm_up is not None:
        warm_up(policy.max_thought_tokens)
    if prove:
        proof.require(folder, policy, manifest)
    return policy, manifest


def prove_everywhere(folder: Path, threads: int = 1) -> tuple[Table, bool]:
    """Return what every engine and device here makes of a policy's recorded observations.

    The second value says whether all reach what is wanted. Raises ``UserError`` if nothing is
    recorded.
    """
    from rich.markup import escape
    from rich.table import Table

    manifest = PolicyManifest.read(folder)
    if PROOF not in manifest.files:
        raise UserError(f'{folder}: carries no {PROOF}; export the policy again with '
                        '--observations DATASET')
    want, all_reach = proof.wanted(manifest), True
    table = Table('engine', 'on', 'observations', 'tokens equal', 'values within a bin', 'seconds',
                  title='Proof', title_justify='left', caption_justify='left', caption=(
                      f'wanted: {want.tokens:.1%} and {want.bins:.1%}; CPU: {describe()}'))
    for engine, device in _candidates(manifest):
        try:
            policy, _ = load_policy(folder, engine, threads, device, prove=False)
            found = proof.Proof.read(folder / PROOF, policy.transform).check(policy)
        except UserError as error:
            table.add_row(engine, device, escape(str(error)), style='red')
            all_reach = False
            continue
        reaches = found.reaches(want)
        all_reach &= reaches
        table.add_row(engine, policy.engine.where, str(found.observations),
                      f'{found.tokens:.2%}', f'{found.bins:.2%}', f'{found.seconds:.2f}',
                      style='' if reaches else 'red')
    return table, all_reach


def _candidates(manifest: PolicyManifest) -> Iterator[tuple[str, str]]:
    """Yield engines that can read the policy, each with the devices there are for it."""
    if all(name in manifest.files for name in GRAPHS):
        import onnxruntime

        there = onnxruntime.get_available_providers()
        yield from (('onnx', device) for device, name in PROVIDERS.items() if name in there)
    if manifest.weights == 'fp32' and find_spec('torch'):
        import torch

        yield from (('torch', device) for device in ('cpu', 'cuda')
                    if device == 'cpu' or torch.cuda.is_available())
