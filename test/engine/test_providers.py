"""What the CPU is said to be able to, and what is made of it."""

from __future__ import annotations

import pytest
import torch

from dtvla_ros.engine import providers
from dtvla_ros.engine.inference_model import Int8, Rounded, rounded


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    for name in providers._RESTRICTING:
        monkeypatch.delenv(name, raising=False)

    def pretend(text: str) -> None:
        path = tmp_path / 'cpuinfo'
        path.write_text(f'processor\t: 0\n{text}\n')
        monkeypatch.setattr(providers, 'CPUINFO', path)
        providers.flags.cache_clear()

    yield pretend
    providers.flags.cache_clear()


@pytest.mark.parametrize(('text', 'bytes_too', 'said'), [
    ('flags\t\t: fpu avx avx2 fma', False, 'AVX2'),
    ('flags\t\t: avx avx2 avx512f avx512bw', False, 'AVX512'),
    ('flags\t\t: avx2 avx512f avx512_vnni amx_int8', True, 'AVX512 with VNNI and AMX'),
    ('flags\t\t: avx2 avx_vnni', True, 'AVX2 with VNNI'),
    ('Features\t: fp asimd asimddp', True, 'NEON with dot products'),
    ('', False, 'unknown')])
def test_what_linux_names(cpu, text, bytes_too, said):
    cpu(text)
    assert (providers.multiplies_bytes(), providers.describe()) == (bytes_too, said)


@pytest.mark.parametrize('setting', [('ATEN_CPU_CAPABILITY', 'avx2'),
                                     ('ONEDNN_MAX_CPU_ISA', 'AVX2')])
def test_a_restricted_process_is_taken_at_its_word(cpu, monkeypatch, setting):
    monkeypatch.setenv(*setting)
    cpu('flags\t\t: avx avx2 avx512f avx512_vnni')
    assert not providers.multiplies_bytes()
    assert providers.describe() == f'AVX2, restricted by {setting[0]}=avx2'


def test_without_linux(tmp_path, monkeypatch):
    monkeypatch.setattr(providers, 'CPUINFO', tmp_path / 'none')
    providers.flags.cache_clear()
    assert not providers.multiplies_bytes()
    providers.flags.cache_clear()


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
