"""Detects the CPU's integer products and selects ONNX Runtime's execution providers."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dtvla_ros.conventions import DEVICES
from dtvla_ros.errors import UserError

CPUINFO = Path('/proc/cpuinfo')
# Products of bytes summed in 32 bits at once: x86's VNNI and AMX, Arm's dot products.
_BYTES = {'avx512_vnni': 'VNNI', 'avx_vnni': 'VNNI', 'amx_int8': 'AMX', 'asimddp': 'dot products',
          'i8mm': 'matrix products of bytes'}
_WIDTHS = {'avx512f': 'AVX512', 'avx2': 'AVX2', 'avx': 'AVX', 'asimd': 'NEON'}
_RESTRICTING = ('ATEN_CPU_CAPABILITY', 'ONEDNN_MAX_CPU_ISA', 'DNNL_MAX_CPU_ISA')

CPU = 'CPUExecutionProvider'
CUDA = 'CUDAExecutionProvider'
TENSORRT = 'TensorrtExecutionProvider'
PROVIDERS = {'cpu': CPU, 'cuda': CUDA, 'tensorrt': TENSORRT}  # by device
_REMEDY = {kind: f'pip install onnxruntime-gpu (instead of onnxruntime) and {more}'
           for kind, more in ((CUDA, 'a CUDA 12 driver'), (TENSORRT, 'tensorrt'))}
_LOG = logging.getLogger(__name__)


@functools.cache
def flags() -> frozenset[str]:
    """Return the features that Linux names, empty where it can not be asked.

    Where torch (``ATEN_CPU_CAPABILITY``) or oneDNN (``ONEDNN_MAX_CPU_ISA``) are held to less
    than AVX512, the rest of the process is taken to be: with AVX2 goes no product of bytes.
    """
    if not CPUINFO.exists():
        return frozenset()
    found = re.search(r'^(?:flags|Features).*?:(.*)', CPUINFO.read_text(), re.M)
    names = found[1].split() if found else []
    return frozenset(name for name in names if not restricted() or not (
        name.startswith(('avx512', 'amx')) or name in _BYTES))


def restricted() -> str:
    """Return the setting that keeps this process from AVX512, '' if there is none."""
    values = {name: os.environ.get(name, '').lower() for name in _RESTRICTING}
    return next((f'{name}={value}' for name, value in values.items()
                 if value in ('default', 'sse41', 'avx', 'avx2')), '')


def multiplies_bytes() -> bool:
    """Return whether the CPU has products of bytes that do not saturate."""
    return not flags().isdisjoint(_BYTES)


def describe() -> str:
    """Return for instance 'AVX512 with VNNI' or 'AVX2, restricted by ATEN_CPU_CAPABILITY=avx2'."""
    found = flags()
    width = next((text for name, text in _WIDTHS.items() if name in found), 'unknown')
    names = ' and '.join(dict.fromkeys(text for name, text in _BYTES.items() if name in found))
    why = restricted()
    return width + (f' with {names}' if names else '') + (f', restricted by {why}' if why else '')


def place(provider: str) -> tuple[str, ...]:
    """Return execution providers in order of preference; one that is not there becomes the CPU.

    The reason is logged once, with what to install. 'auto' takes CUDA where it is there and
    says nothing otherwise. CUDA and TensorRT have not been tried with these graphs, which is
    logged, too; what they compute is judged by the policy's proof.
    """
    import onnxruntime as ort

    if provider not in DEVICES:
        raise UserError(f'provider {provider!r} is none of {", ".join(DEVICES)}')
    there = ort.get_available_providers()
    if provider == 'auto':
        provider = 'cuda' if CUDA in there else 'cpu'
    wanted = PROVIDERS[provider]
    if wanted not in there:
        _LOG.warning('provider %s: this ONNX Runtime has no %s; running on the CPU instead. '
                     'Remedy: %s', provider, wanted, _REMEDY[wanted])
        wanted = CPU
    if wanted != CPU:
        _LOG.warning('provider %s: untested with these graphs; the engine torch has been measured '
                     'on CUDA', provider)
    return {CPU: (CPU,), CUDA: (CUDA, CPU), TENSORRT: (TENSORRT, CUDA, CPU)}[wanted]


def options(providers: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return what a session is given; TensorRT keeps its engines in the user's cache."""
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'dtvla/tensorrt'
    if TENSORRT in providers:
        cache.mkdir(parents=True, exist_ok=True)
    tensorrt = {key: value for kind in ('engine', 'timing') for key, value in (
        (f'trt_{kind}_cache_enable', True), (f'trt_{kind}_cache_path', str(cache)))}
    return [(name, tensorrt if name == TENSORRT else {}) for name in providers]


def fallen_back(wanted: str, running: Sequence[str]) -> bool:
    """Return whether a session runs on the CPU though more was wanted; log what it lacks.

    ``running``: the session's providers. One that is installed can still fail to start.
    """
    if wanted in running:
        return False
    _LOG.warning('%s is installed but does not start (driver or libraries missing?); running on '
                 'the %s instead. Remedy: %s', wanted, 'GPU with CUDA' if CUDA in running else
                 'CPU', _REMEDY[wanted])
    return CUDA not in running
