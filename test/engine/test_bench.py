"""The benchmark: what it compares is the same work, what it prints adds up."""

import json
from io import StringIO

import pytest
from rich.console import Console
from support.decoders import small_decoder

from dtvla_ros.engine import bench, bench_report
from dtvla_ros.engine.bench import PUBLISHED, BenchOptions, Limits, pass_cost, phase_costs
from dtvla_ros.engine.bench import run_bench as run
from dtvla_ros.engine.published import geometry, random_model
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError

OPTIONS = BenchOptions(engines=('torch fp32', 'torch int8'), threads=1, rounds=2,
                       text_tokens=8, thought_tokens=9)


@pytest.fixture
def result(monkeypatch):
    config = small_decoder(1).config
    monkeypatch.setattr(bench, 'geometry', lambda name: config)
    monkeypatch.setattr(bench, 'measure_limits', lambda *_: Limits(1e10, 1e11))
    return run(OPTIONS, lambda name, model: TorchEngine(model, 'int8' if 'int8' in name else None))


def test_all_do_the_same_work(result):
    runs = result['contenders']
    assert set(runs) == {PUBLISHED, 'torch fp32', 'torch int8'}
    assert set(runs[PUBLISHED]['decisions']) == {'fresh', 'masked'}
    exact = runs['torch fp32']
    for kind in ('fresh', 'draft', 'masked'):
        row = exact['decisions'][kind]
        assert row['same_thought'] and row['same_bins'] == 1.0
        assert 0 < row['min_ms'] <= row['p50_ms'] <= row['p99_ms']
        published = runs[PUBLISHED]['decisions']['masked' if kind == 'masked' else 'fresh']
        assert row['times_faster'] == pytest.approx(published['p50_ms'] / row['p50_ms'])
    assert exact['decisions']['fresh']['drafting']['passes'] == OPTIONS.thought_tokens
    assert exact['decisions']['draft']['drafting'] == {'proposed': 9, 'accepted': 9, 'passes': 1}
    assert set(exact['phases']) == {'see', 'prefill', 'think per token', 'verify', 'act'}


def test_what_is_shown(result, tmp_path):
    json.dumps(result)
    bench_report.show(result, Console(file=StringIO(), width=140))
    lines = bench_report.markdown(result).splitlines()
    assert 'imes faster than the published scheme' in lines[0]
    names = [line.split('|')[1].strip() for line in lines if line.startswith('|')]
    assert names[2:5] == [PUBLISHED, 'torch fp32', 'torch int8'] and names[7:] == names[3:5]
    assert next(line for line in lines if '| torch fp32 ' in line).count('× ') == 3
    assert 'the same thought and 100% of the actions' in next(
        line for line in lines if line.startswith('- torch fp32: '))
    pytest.importorskip('matplotlib')
    bench_report.plot(result, tmp_path / 'bench.png')
    assert (tmp_path / 'bench.png').stat().st_size > 5000


def test_costs_are_those_of_the_geometry():
    config = geometry('bench-60m')
    assert config.text.vocabulary == 34832 and config.image_tokens == 512
    one = pass_cost(config, 1, 0, 1, 32784)
    assert one.parameters == 8 * (512 * 640 + 512 * 512 + 3 * 512 * 2048) + 512 * 32784
    costs = phase_costs(config, BenchOptions())
    assert costs['verify'].flops > costs['prefill'].flops > costs['see'].flops
    model = random_model(config, 'meta')
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(59e6, rel=0.01)


@pytest.mark.parametrize(('ask', 'word'), [
    (lambda: bench_report.contenders('jax', 'fp32', 'cpu'), 'jax'),
    (lambda: bench_report.contenders('torch', 'int4', 'cpu'), 'int4'),
    (lambda: bench_report.contenders('onnx', 'fp32', 'cuda'), 'nothing to measure'),
    (lambda: bench_report.bench(BenchOptions(geometry='bench-7b')), 'bench-7b'),
    (lambda: bench_report.bench(BenchOptions(device='tpu')), 'tpu')])
def test_choices(ask, word):
    with pytest.raises(UserError, match=word):
        ask()
    assert bench_report.contenders('torch,onnx', 'fp32,int8', 'cpu') == (
        'torch fp32', 'torch int8', 'onnx fp32', 'onnx int8')
    assert bench_report.contenders('torch,onnx', 'fp32', 'cuda') == ('torch bf16',)
