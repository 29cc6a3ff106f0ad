"""What the CPU is said to be able to, and what is made of it."""

import pytest
import torch

from dtvla_ros.engine import providers
from dtvla_ros.engine.inference_model import Int8, Rounded, rounded

VNNI = 'flags\t\t: avx avx2 avx512f avx512_vnni'


@pytest.mark.parametrize(('text', 'setting', 'bytes_too', 'said'), [
    ('flags\t\t: fpu avx avx2 fma', '', False, 'AVX2'),
    ('flags\t\t: avx avx2 avx512f avx512bw', '', False, 'AVX512'),
    (f'{VNNI} amx_int8', '', True, 'AVX512 with VNNI and AMX'),
    ('flags\t\t: avx2 avx_vnni', '', True, 'AVX2 with VNNI'),
    ('Features\t: fp asimd asimddp', '', True, 'NEON with dot products'),
    ('', '', False, 'unknown'), (None, '', False, 'unknown'),
    (VNNI, 'ATEN_CPU_CAPABILITY', False, 'AVX2, restricted by ATEN_CPU_CAPABILITY=avx2'),
    (VNNI, 'ONEDNN_MAX_CPU_ISA', False, 'AVX2, restricted by ONEDNN_MAX_CPU_ISA=avx2')])
def test_what_linux_names(tmp_path, monkeypatch, request, text, setting, bytes_too, said):
    for name in providers._RESTRICTING:
        monkeypatch.setenv(name, 'AVX2' if name == setting else '')
    monkeypatch.setattr(providers, 'CPUINFO', tmp_path / 'cpuinfo')
    if text is not None:  # None: no Linux
        providers.CPUINFO.write_text(f'processor\t: 0\n{text}\n')
    providers.flags.cache_clear()
    request.addfinalizer(providers.flags.cache_clear)
    assert (providers.multiplies_bytes(), providers.describe()) == (bytes_too, said)


@pytest.mark.parametrize('rows', [1, 3, 8, 9, 40])
@pytest.mark.parametrize('bias', [False, True])
def test_rounded_weights_are_those_of_integer_products(rows, bias):
    torch.manual_seed(rows)
    weight, x = torch.randn(96, 64), torch.randn(rows, 64)
    b = torch.randn(96) if bias else None
    want = x @ rounded(weight).t() + (b if bias else 0)
    torch.testing.assert_close(Rounded(weight, b)(x), want, rtol=1e-5, atol=1e-5)
    assert (rounded(weight) - weight).abs().max() <= 0.51 * weight.abs().max() / 127
    integer = Int8(weight, b)
    steps = (integer.matrix.t().float() * integer.scale[:, None])
    torch.testing.assert_close(steps, rounded(weight), rtol=0, atol=0)
