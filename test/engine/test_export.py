"""Exports: weights stored once, quantised variants behind the gate, policies exported again."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.policies import untrained
from support.small import small_policy
from typer.testing import CliRunner

from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.cli import app
from dtvla_ros.engine import bench
from dtvla_ros.engine import export as exporting
from dtvla_ros.engine import load as loading
from dtvla_ros.engine.graphs import build_graphs
from dtvla_ros.engine.load import load_policy
from dtvla_ros.engine.policy import banned_in_thought, write_thought
from dtvla_ros.engine.published import scene
from dtvla_ros.engine.quantize import in_floats, quantize, rewrite
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.manifest import FLOAT_GRAPHS, GRAPHS, PolicyManifest
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import write_transform
from dtvla_ros.thought import FINISHED
from dtvla_ros.training.export import export, read_source


@pytest.fixture(scope='module')
def traced():
    """Return what makes the graphs of the untrained policy anew."""
    made = {name: graph.SerializeToString() for name, graph in build_graphs(
        untrained()[0]).items()}
    return lambda *_: {name: onnx.ModelProto.FromString(data) for name, data in made.items()}


@pytest.fixture(autouse=True)
def traced_once(traced, monkeypatch):
    """Tracing takes seconds, and here it is always the same model."""
    monkeypatch.setattr(exporting, 'build_graphs', traced)


def constants(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}


def write(folder: Path, weights: str = 'fp32') -> exporting.Parity:
    model, transform = untrained()
    manifest = PolicyManifest('untrained', 'MIT', transform.config, transform.statistics, {},
                              max_thought_tokens=9, success={'total': 1}, tasks=('stack it',))
    return exporting.export_policy(model, transform, folder, manifest, weights)


@pytest.mark.parametrize('weights', ['fp32', 'int8', 'w8a8'])
def test_the_gate_is_passed(tmp_path, weights):
    parity = write(tmp_path / 'policy', weights)
    assert parity.cosine >= 0.999 and 'cosine' in str(parity) and 'chunks' in str(parity)
    policy, manifest = load_policy(tmp_path / 'policy')
    engine = policy.engine
    assert manifest.weights == weights
    sizes = {path.name: path.stat().st_size for path in (tmp_path / 'policy').iterdir()}
    assert sum(sizes[name] for name in GRAPHS) < 250_000
    assert engine.encode_images(np.zeros((2, 3, 128, 128), np.float32)).shape() == [80, 192]
    for name in GRAPHS:
        assert b'site-packages' not in (tmp_path / 'policy' / name).read_bytes()


@pytest.mark.parametrize('weights', ['int8', 'int4'])
def test_floats_are_the_same_weights(traced, weights):
    """What the runtime makes of the bytes when it loads the second set of graphs."""
    graph = quantize(traced(), untrained()[1].config, weights)['act.onnx']
    stored, floats, want = constants(graph), in_floats(graph), []
    del floats.graph.output[:]
    for node in (n for n in graph.graph.node if n.op_type == 'MatMulNBits'):
        sizes = {a.name: a.i for a in node.attribute}
        steps = stored[node.input[1]].reshape(sizes['N'], -1)
        if sizes['bits'] == 4:
            steps = np.stack([steps & 15, steps >> 4], -1).reshape(sizes['N'], -1)
        scales = stored[node.input[2]].reshape(sizes['N'], -1).repeat(sizes['block_size'], 1)
        want.append((steps - 2.0 ** (sizes['bits'] - 1)) * scales)  # [out, in]
        floats.graph.output.append(onnx.helper.make_tensor_value_info(
            f'{node.input[1]}.floats', onnx.TensorProto.FLOAT, None))
    assert want and not any(n.op_type == 'MatMulNBits' for n in floats.graph.node)
    del floats.graph.input[:]  # the weights depend on none
    made = {t.name for t in floats.graph.initializer}
    nodes = [n for n in floats.graph.node
             if made.issuperset(n.input) and not made.update(n.output)]
    rewrite(floats, nodes, list(floats.graph.initializer))
    got = onnxruntime.InferenceSession(floats.SerializeToString()).run(None, {})
    for mine, wanted in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, wanted.T, rtol=1e-6)


def unlist(folder: Path, graphs: tuple[str, ...]) -> None:
    """Make a policy one that was exported without some graphs."""
    manifest = PolicyManifest.read(folder)
    files = {name: digest for name, digest in manifest.files.items() if name not in graphs}
    (folder / 'manifest.json').write_text(replace(manifest, files=files).to_json())


@pytest.mark.parametrize('integers', [False, True])
@pytest.mark.parametrize('weights', ['int8', 'w8a8'])
def test_the_cpu_chooses_the_graphs(tmp_path, monkeypatch, integers, weights):
    folder = tmp_path / 'policy'
    write(folder, weights)
    monkeypatch.setattr(loading, 'multiplies_bytes', lambda: integers)
    engine = load_policy(folder)[0].engine
    assert (engine._prefill.session is engine._token.session) == integers
    for name in FLOAT_GRAPHS:
        (folder / name).unlink()
    if not integers:
        with pytest.raises(UserError, match='vision.float.onnx: missing'):
            load_policy(folder)
    unlist(folder, FLOAT_GRAPHS)  # as exported before there was a second set
    if weights == 'w8a8' and not integers:  # then its products would saturate
        with pytest.raises(UserError, match='export the policy again'):
            load_policy(folder)
        return
    old = load_policy(folder)[0].engine
    assert old._prefill.session is old._token.session


def test_the_fastest_weights_that_pass(tmp_path, monkeypatch):
    write(tmp_path / 'policy')
    monkeypatch.setattr(bench, '_CANDIDATES', ('int4', 'int8'))  # int4 is refused
    export(tmp_path / 'policy', weights='auto')
    assert PolicyManifest.read(tmp_path / 'policy-int8').weights == 'int8'
    monkeypatch.setattr(bench, '_CANDIDATES', ('fp32', 'int8'))
    now = [0.0]

    class Slow(bench.OnnxEngine):
        def __init__(self, folder, *args, **options):
            super().__init__(folder, *args, **options)
            self.seconds = 1.0 if folder.name == 'int8' else 2.0

        def encode_images(self, pixels):
            now[0] += self.seconds
            return super().encode_images(pixels)

    monkeypatch.setattr(bench, 'OnnxEngine', Slow)
    monkeypatch.setattr(bench.time, 'perf_counter', lambda: now[0])
    assert bench.fastest_weights(untrained()[0], 3) == 'int8'


@pytest.mark.parametrize(('weights', 'word'), [
    ('int4', 'does not compute the trained policy'), ('int3', "weights 'int3'")])
def test_coarse_weights_are_refused_and_nothing_is_written(tmp_path, weights, word):
    with pytest.raises(UserError, match=word):
        write(tmp_path / 'policy', weights)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('weights', 'bits'), [('int8', {8}), ('int4', {4, 8})])
def test_every_matrix_is_quantised(traced, weights, bits):
    found = set()
    for name, graph in quantize(traced(), untrained()[1].config, weights).items():
        stored = constants(graph)
        for node in graph.graph.node:
            assert not (node.op_type == 'MatMul' and node.input[1] in stored)
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
    rng = np.random.default_rng(0)
    seen, lost = 0, False
    for graph in quantize(traced(), untrained()[1].config, 'w8a8').values():
        stored = constants(graph)
        for node in (n for n in graph.graph.node if n.op_type == 'MatMulInteger'):
            columns = stored[node.input[1]]  # [in, out]
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


def test_only_onnx_reads_quantised_weights(tmp_path):
    write(tmp_path / 'policy', 'int8')
    with pytest.raises(UserError, match='int8 weights; use the engine onnx'):
        load_policy(tmp_path / 'policy', 'torch')
    with pytest.raises(UserError, match='int8 already'):
        export(tmp_path / 'policy')


def test_a_policy_is_exported_again(tmp_path):
    write(tmp_path / 'policy')
    result = CliRunner().invoke(app, ['export', str(tmp_path / 'policy'), '--weights', 'int8'])
    assert result.exit_code == 0, result.output
    assert 'policy-int8: parity: cosine 0.99' in ' '.join(result.output.split())
    old, new = (PolicyManifest.read(tmp_path / name) for name in ('policy', 'policy-int8'))
    assert new.weights == 'int8'
    for field in ('name', 'license', 'config', 'statistics', 'max_thought_tokens', 'success',
                  'action', 'images', 'tasks'):
        assert getattr(new, field) == getattr(old, field)
    small, large = ((tmp_path / name / 'model.safetensors').stat().st_size
                    for name in ('policy-int8', 'policy'))
    assert small < 0.7 * large


def test_a_policy_is_given_a_margin_and_keeps_it(tmp_path):
    write(tmp_path / 'policy')
    assert 'done_margin' not in (tmp_path / 'policy/manifest.json').read_text()
    for given, out in (('policy', 'sure'), ('sure', 'again')):
        more = ['--done-margin', '2.5'] if given == 'policy' else []
        result = CliRunner().invoke(
            app, ['export', str(tmp_path / given), '--out', str(tmp_path / out), *more])
        assert result.exit_code == 0, result.output
        assert PolicyManifest.read(tmp_path / out).done_margin == 2.5
    policy, _ = load_policy(tmp_path / 'again')
    word = policy.transform.tokenizer.token_to_id(FINISHED)
    ids = policy.transform.config.ids
    assert policy.engine._penalty[word - ids.bins * (word > ids.bins_last)] == -2.5


def test_a_margin_is_a_number_of_nats(tmp_path):
    write(tmp_path)
    path = tmp_path / 'manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'done_margin': -1.0}))
    with pytest.raises(UserError, match='done_margin -1.0 is no number of nats from 0 on'):
        PolicyManifest.read(tmp_path)


def test_a_policy_replaces_itself_and_a_checkpoint_does_not(tmp_path):
    out = tmp_path / 'policy'
    write(out)
    assert export(out, out, 'other')[0] == out and PolicyManifest.read(out).name == 'other'
    load_policy(out)
    load_policy(out, 'torch')
    unlist(out, GRAPHS)
    with pytest.raises(UserError, match='choose another folder'):
        export(out, out)
    with pytest.raises(UserError, match='is this the folder of a training run'):
        export(tmp_path, tmp_path / 'out')


def test_weights_of_policies_are_averaged_if_they_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, 'build_graphs', build_graphs)
    weights = []
    model, transform = small_policy()
    for name in ('one', 'two', 'three'):
        with torch.no_grad():
            for value in model.parameters():
                value += 0.01 * torch.randn_like(value)
        write_transform(tmp_path / name, transform)
        save_weights(model, tmp_path / name / 'model.safetensors')
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
    result = CliRunner().invoke(app, [
        'export', str(tmp_path / 'one'), '--average-with', str(tmp_path / 'two'),
        '--average-with', str(tmp_path / 'three'), '--out', str(tmp_path / 'mean')])
    assert result.exit_code == 0, result.output
    for name, value in read_source(tmp_path / 'mean')[0].state_dict().items():
        wanted = torch.stack([state[name].double() for state in weights]).mean(0)
        torch.testing.assert_close(value, wanted.float(), rtol=0, atol=1e-7)
    statistics = ActionStatistics((-0.7,) * 6 + (-1.0,), (0.9,) * 6 + (1.0,))
    for other, what in ((replace(transform, statistics=statistics), 'other action statistics'),
                        (untrained()[1], 'another size')):
        write_transform(tmp_path / 'two', other)
        save_weights(HybridDecoder(other.config), tmp_path / 'two/model.safetensors')
        with pytest.raises(UserError, match=f'two: {what} than .*mean; only policies'):
            export(tmp_path / 'mean', tmp_path / 'out', average_with=[tmp_path / 'two'])
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('weights', ['int8', 'w8a8'])
@pytest.mark.parametrize('floats', [False, True])
def test_drafts_change_no_thought_of_quantised_weights(tmp_path, monkeypatch, weights, floats):
    """Whichever set of graphs reads the prompt: words are written and verified by one of them."""
    model, _ = untrained()
    model.norm.weight.data.normal_(-1.0, 1.0)  # many words, at narrow margins
    monkeypatch.setattr(exporting, 'build_graphs', build_graphs)  # of this model
    exporting.write_graphs(model, tmp_path, weights)
    engine = exporting.OnnxEngine(tmp_path, model.config, floats=floats)
    engine.suppress_tokens(banned_in_thought(model.config.ids, model.config.text.vocabulary))
    said = set()
    for turn in range(8):
        view = scene(model.config, 12, seed=turn)
        wrote = partial(write_thought, engine, view.prompt, engine.encode_images(view.pixels), [],
                        done=lambda t: len(t) >= 16)
        plain = wrote(draft=[])[0]
        draft = list(plain)
        draft[turn] += 1
        assert wrote(draft=plain)[0] == wrote(draft=draft)[0] == plain
        said |= set(plain)
    assert len(said) > 8
