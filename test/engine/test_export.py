"""Exports: weights stored once, quantised variants behind the gate, policies exported again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from policies import untrained
from typer.testing import CliRunner

from dtvla_ros.cli import app
from dtvla_ros.engine import export as exporting
from dtvla_ros.engine.graphs import build_graphs
from dtvla_ros.engine.load import load_policy
from dtvla_ros.engine.quantize import quantize
from dtvla_ros.errors import UserError
from dtvla_ros.policy.manifest import GRAPHS, PolicyManifest
from dtvla_ros.training.finish import ExportOptions, export


@pytest.fixture(scope='module')
def traced() -> dict[str, bytes]:
    model, _ = untrained()
    return {name: graph.SerializeToString() for name, graph in build_graphs(model).items()}


@pytest.fixture(autouse=True)
def traced_once(traced, monkeypatch):
    """Tracing takes seconds, and here it is always the same model."""
    monkeypatch.setattr(exporting, 'build_graphs', lambda model: {
        name: onnx.ModelProto.FromString(data) for name, data in traced.items()})


def write(folder: Path, weights: str = 'fp32') -> exporting.Parity:
    model, transform = untrained()
    manifest = PolicyManifest('untrained', 'MIT', transform.config, transform.statistics, {},
                              max_thought_tokens=9, success={'total': 1})
    return exporting.export_policy(model, transform, folder, manifest, weights)


@pytest.mark.parametrize('weights', ['fp32', 'int8', 'w8a8'])
def test_the_gate_is_passed(tmp_path, weights):
    parity = write(tmp_path / 'policy', weights)
    assert parity.cosine >= 0.999
    assert 'cosine' in str(parity) and 'chunks' in str(parity)
    engine, _, manifest = load_policy(tmp_path / 'policy')
    assert manifest.weights == weights
    sizes = {path.name: path.stat().st_size for path in (tmp_path / 'policy').iterdir()}
    assert sum(sizes[name] for name in GRAPHS) < 250_000
    assert engine.see(np.zeros((2, 3, 128, 128), np.float32)).shape() == [80, 192]
    for name in GRAPHS:
        assert b'site-packages' not in (tmp_path / 'policy' / name).read_bytes()


def test_coarse_weights_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match='does not compute the trained policy'):
        write(tmp_path / 'policy', 'int4')
    assert not list(tmp_path.iterdir())


def test_unknown_weights(tmp_path):
    with pytest.raises(UserError, match="weights 'int3'"):
        write(tmp_path / 'policy', 'int3')


@pytest.mark.parametrize(('weights', 'bits'), [('int8', {8}), ('int4', {4, 8})])
def test_every_matrix_is_quantised(traced, weights, bits):
    graphs = {name: onnx.ModelProto.FromString(data) for name, data in traced.items()}
    _, transform = untrained()
    found = set()
    for name, graph in quantize(graphs, transform.config, weights).items():
        constants = {tensor.name for tensor in graph.graph.initializer}
        for node in graph.graph.node:
            assert not (node.op_type == 'MatMul' and node.input[1] in constants)
            found |= {a.i for a in node.attribute if node.op_type == 'MatMulNBits'
                      and a.name == 'bits'}
        gathers = [n for n in graph.graph.node if n.op_type == 'GatherBlockQuantized']
        assert len(gathers) == (name != 'vision.onnx')
    assert found == bits


def saturating(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Multiply bytes [n, in] by signed ones [in, out] as AVX2 does: pairs in sixteen bits."""
    wide = rows.astype(np.int64)[:, :, None] * columns.astype(np.int64)  # [n, in, out]
    pairs = wide[:, ::2] + wide[:, 1::2]
    return pairs.clip(-2**15, 2**15 - 1).sum(1)


def test_integer_products_do_not_saturate_without_vnni(traced):
    """Exact on every CPU: the worst row of each column, and rows as they are met."""
    graphs = {name: onnx.ModelProto.FromString(data) for name, data in traced.items()}
    _, transform = untrained()
    rng = np.random.default_rng(0)
    seen, lost = 0, False
    for graph in quantize(graphs, transform.config, 'w8a8').values():
        constants = {t.name: t for t in graph.graph.initializer}
        for node in graph.graph.node:
            if node.op_type != 'MatMulInteger':
                continue
            columns = onnx.numpy_helper.to_array(constants[node.input[1]])  # [in, out]
            assert columns.dtype == np.int8
            few = columns[:, rng.permutation(columns.shape[1])[:48]]
            rows = np.concatenate([255 * (few > 0).T, 255 * (few < 0).T, rng.integers(
                0, 256, (8, len(few)))]).astype(np.uint8)
            exact = rows.astype(np.int64) @ few.astype(np.int64)
            np.testing.assert_array_equal(saturating(rows, few), exact)
            full = np.rint(few / np.abs(few).max(0) * 127).astype(np.int8)  # as coarse as 8 bits
            lost |= (saturating(rows, full) != rows.astype(np.int64) @ full.astype(np.int64)).any()
            seen += 1
    assert seen > 4 and lost


def test_a_damaged_quantised_policy_is_refused(tmp_path):
    write(tmp_path / 'policy', 'int8')
    path = tmp_path / 'policy' / 'model.safetensors'
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match='model.safetensors: SHA-256 differs'):
        load_policy(tmp_path / 'policy')


def test_only_onnx_reads_quantised_weights(tmp_path):
    write(tmp_path / 'policy', 'int8')
    with pytest.raises(UserError, match='int8 weights; use the engine onnx'):
        load_policy(tmp_path / 'policy', 'torch')
    with pytest.raises(UserError, match='int8 already'):
        export(tmp_path / 'policy', ExportOptions())


def test_a_policy_is_exported_again(tmp_path):
    write(tmp_path / 'policy')
    result = CliRunner().invoke(app, ['export', str(tmp_path / 'policy'), '--weights', 'int8'])
    assert result.exit_code == 0, result.output
    assert 'policy-int8: parity: cosine 0.99' in ' '.join(result.output.split())
    old, new = (PolicyManifest.read(tmp_path / name) for name in ('policy', 'policy-int8'))
    assert new.weights == 'int8'
    for field in ('name', 'license', 'config', 'statistics', 'max_thought_tokens', 'success',
                  'action', 'images'):
        assert getattr(new, field) == getattr(old, field)
    small, large = ((tmp_path / name / 'model.safetensors').stat().st_size
                    for name in ('policy-int8', 'policy'))
    assert small < 0.7 * large


def test_a_policy_replaces_itself(tmp_path):
    write(tmp_path / 'policy')
    out, _ = export(tmp_path / 'policy', ExportOptions(out=tmp_path / 'policy', name='other'))
    assert out == tmp_path / 'policy'
    assert PolicyManifest.read(out).name == 'other'
    load_policy(out)
    load_policy(out, 'torch')


def test_a_checkpoint_does_not_replace_itself(tmp_path):
    write(tmp_path / 'policy')
    manifest = PolicyManifest.read(tmp_path / 'policy')
    files = {name: digest for name, digest in manifest.files.items() if name not in GRAPHS}
    text = manifest.__class__(**{name: getattr(manifest, name) for name in manifest.__slots__}
                              | {'files': files}).to_json()
    (tmp_path / 'policy' / 'manifest.json').write_text(text)
    with pytest.raises(UserError, match='choose another folder'):
        export(tmp_path / 'policy', ExportOptions(out=tmp_path / 'policy'))
    with pytest.raises(UserError, match='is this the folder of a training run'):
        export(tmp_path, ExportOptions(out=tmp_path / 'out'))
