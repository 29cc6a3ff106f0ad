"""What the CPU calculates with: it decides which kernels are worth their while."""

from __future__ import annotations

import functools
import os
from pathlib import Path

CPUINFO = Path('/proc/cpuinfo')
# Products of bytes summed in 32 bits at once: x86's VNNI and AMX, Arm's dot products.
_BYTES = {'avx512_vnni': 'VNNI', 'avx_vnni': 'VNNI', 'amx_int8': 'AMX', 'asimddp': 'dot products',
          'i8mm': 'matrix products of bytes'}
_WIDTHS = {'avx512f': 'AVX512', 'avx2': 'AVX2', 'avx': 'AVX', 'asimd': 'NEON'}
_RESTRICTING = ('ATEN_CPU_CAPABILITY', 'ONEDNN_MAX_CPU_ISA', 'DNNL_MAX_CPU_ISA')


@functools.cache
def flags() -> frozenset[str]:
    """Return the features that Linux names, empty where it can not be asked.

    Where torch (``ATEN_CPU_CAPABILITY``) or oneDNN (``ONEDNN_MAX_CPU_ISA``) are held to less
    than AVX512, the rest of the process is taken to be: with AVX2 goes no product of bytes.
    """
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    names = next((line.partition(':')[2] for line in lines
                  if line.startswith(('flags', 'Features'))), '')
    found = frozenset(names.split())
    if restricted():
        return frozenset(name for name in found
                         if not name.startswith(('avx512', 'amx')) and name not in _BYTES)
    return found


def restricted() -> str:
    """Return the setting that keeps this process from AVX512, '' if there is none."""
    for name in _RESTRICTING:
        value = os.environ.get(name, '').lower()
        if value in ('default', 'sse41', 'avx', 'avx2'):
            return f'{name}={value}'
    return ''


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
