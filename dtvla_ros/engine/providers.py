"""Which of ONNX Runtime's execution providers runs a policy, and why not another."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort

from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import DecoderConfig

PROVIDERS = ('cpu', 'cuda', 'tensorrt', 'auto')
CPU = 'CPUExecutionProvider'
CUDA = 'CUDAExecutionProvider'
TENSORRT = 'TensorrtExecutionProvider'
_WANTED = {'cpu': CPU, 'cuda': CUDA, 'tensorrt': TENSORRT}
_REMEDY = {
    CUDA: 'pip install onnxruntime-gpu (instead of onnxruntime) and a CUDA 12 driver',
    TENSORRT: 'pip install onnxruntime-gpu (instead of onnxruntime) and tensorrt',
}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """Providers in order of preference, and the device where keys and values are kept."""

    providers: tuple[str, ...]
    device: str
    shapes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def options(self, graph: str) -> list[tuple[str, dict[str, Any]]]:
        """Return what a session of the graph file ``graph`` is given."""
        return [(name, self._tensorrt(graph) if name == TENSORRT else {})
                for name in self.providers]

    def _tensorrt(self, graph: str) -> dict[str, Any]:
        cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'dtvla/tensorrt'
        cache.mkdir(parents=True, exist_ok=True)
        return {'trt_engine_cache_enable': True, 'trt_engine_cache_path': str(cache),
                'trt_timing_cache_enable': True, 'trt_timing_cache_path': str(cache),
                **self.shapes.get(graph, {})}


def place(provider: str, config: DecoderConfig, capacity: int) -> Placement:
    """Return where a policy runs; a provider that is not there is replaced by the CPU.

    The reason is logged once, with what to install. 'auto' takes CUDA where it is there and
    says nothing otherwise. ``capacity``: rows that TensorRT's engines are built for.
    """
    if provider not in PROVIDERS:
        raise UserError(f'provider {provider!r} is none of {", ".join(PROVIDERS)}')
    there = ort.get_available_providers()
    if provider == 'auto':
        provider = 'cuda' if CUDA in there else 'cpu'
    wanted = _WANTED[provider]
    if wanted not in there:
        _LOG.warning('provider %s: this ONNX Runtime has no %s; running on the CPU instead. '
                     'Remedy: %s', provider, wanted, _REMEDY[wanted])
        wanted = CPU
    if wanted == CPU:
        return Placement((CPU,), 'cpu')
    if wanted == CUDA:
        return Placement((CUDA, CPU), 'cuda')
    return Placement((TENSORRT, CUDA, CPU), 'cuda', tensorrt_shapes(config, capacity))


def fallen_back(placement: Placement, session: ort.InferenceSession) -> bool:
    """Return whether a session runs on the CPU though more was wanted; log what it lacks.

    A provider that is installed can still fail to start.
    """
    running, wanted = session.get_providers(), placement.providers[0]
    if wanted in running:
        return False
    _LOG.warning('%s is installed but does not start (driver or libraries missing?); running on '
                 'the %s instead. Remedy: %s', wanted, 'GPU with CUDA' if CUDA in running else
                 'CPU', _REMEDY[wanted])
    return CUDA not in running


def tensorrt_shapes(config: DecoderConfig, capacity: int) -> dict[str, dict[str, str]]:
    """Return TensorRT's explicit profiles by graph file: smallest, usual and largest shapes.

    Without them an engine is built anew at every unseen length.
    """
    text = config.text
    names = [f'{kind}.{i}' for i in range(text.layers) for kind in ('keys', 'values')]
    tail = config.slots + 2

    def past(so_far: int) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(names, (so_far, text.kv_heads * text.head_dim))

    def decoder(new: int, seen: int, so_far: int, read: int) -> dict[str, tuple[int, ...]]:
        return {'input_ids': (new,), 'position_ids': (new,), 'mask': (new, so_far + new),
                'features': (seen, text.width), 'image_rows': (seen,), 'rows': (read,),
                'bin_rows': (0,), **past(so_far)}

    def act(new: int, so_far: int) -> dict[str, tuple[int, ...]]:
        rows = new + tail
        return {'input_ids': (new,), 'position_ids': (rows,), 'mask': (rows, so_far + rows),
                **past(so_far)}

    usual = config.image_tokens + 48
    ranges = {
        'decoder.onnx': (decoder(1, 0, 0, 1), decoder(usual, config.image_tokens, 0, 1),
                         {**decoder(capacity, config.image_tokens, capacity, capacity),
                          'bin_rows': (capacity,)}),
        'act.onnx': (act(1, 1), act(2, usual + 64), act(capacity, capacity)),
    }
    return {graph: {f'trt_profile_{kind}_shapes': ','.join(
        f'{name}:{"x".join(map(str, shape))}' for name, shape in shapes.items())
        for kind, shapes in zip(('min', 'opt', 'max'), profile, strict=True)}
        for graph, profile in ranges.items()}
