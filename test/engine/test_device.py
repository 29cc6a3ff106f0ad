"""The script that measures a GPU, tried on a CPU: steps, what it keeps, where it goes on."""

import json

import numpy as np
import pytest
from support.decoders import small_decoder

from benchmarks import device
from dtvla_ros.engine import static_passes
from dtvla_ros.engine.bench import BenchOptions, Limits
from dtvla_ros.errors import UserError

OPTIONS = BenchOptions(geometry='small', engines=tuple(device.WEIGHTS), threads=1, rounds=1,
                       text_tokens=6, thought_tokens=5, record=True)


@pytest.fixture
def small(monkeypatch):
    config = small_decoder(1).config
    monkeypatch.setattr(device, 'geometry', lambda _: config)
    monkeypatch.setattr(device, 'measure_limits', lambda *_: Limits(1e10, 1e11))
    monkeypatch.setattr(static_passes, 'TEXT', (16,))
    monkeypatch.setattr(static_passes, 'DRAFT', (8,))


def test_steps_are_saved_and_a_second_call_goes_on(small, tmp_path, monkeypatch):
    file = tmp_path / 'device.json'

    def broken(*_):
        raise RuntimeError('the device is gone')

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='gone'):
        patch.setattr(device, 'ours', broken)
        device.measure(file, OPTIONS, 600.0)
    assert list(json.loads(file.read_text())['steps']) == ['limits', 'published']
    monkeypatch.setattr(device, 'published', broken)  # and is not asked again
    assert list(device.measure(file, OPTIONS, -1.0)) == ['limits', 'published'], 'no time left'
    done = device.measure(file, OPTIONS, 600.0)
    assert json.loads(file.read_text())['steps'] == json.loads(json.dumps(done))
    exact, coarse = (done[name] for name in device.WEIGHTS)
    assert exact['difference'] is None and exact['parity'] is None
    for kind in ('fresh', 'draft', 'masked'):
        assert exact['decisions'][kind]['same_thought']
        assert exact['decisions'][kind]['same_bins'] == 1.0
    assert exact['warm_up']['passes'] == 6 and 'limit_ms' in exact['phases']['think per token']
    assert 'cosine' in coarse['parity'] and set(coarse['phases']) == set(exact['phases'])
    table = device.rows(done)
    assert len(table) == 2 * 8 and ['torch fp8', 'think per token'] in [row[:2] for row in table]
    assert {row[4] for row in table if row[1] == 'masked'} == {'10', '8'}
    said = device.told(done)
    assert said[1] == 'torch bf16: thoughts as published' and 'required' in said[2]


def test_what_can_not_be_measured_is_refused(small, tmp_path):
    file = tmp_path / 'device.json'
    device.Steps(file, OPTIONS).add('limits', {})
    with pytest.raises(UserError, match='device.json: measured with other options; give another'):
        device.Steps(file, BenchOptions(rounds=3))
    with pytest.raises(UserError, match='--device cuda: there is no such GPU here'):
        device.measure(file, BenchOptions(device='cuda'), 1.0)


def test_a_difference_is_told_with_the_gap_between_both_words():
    class Engine:
        def encode_images(self, pixels):
            return pixels

        def logits(self, prompt, features, thought):
            assert thought == [5, 6]
            return [[0.0]] * 2 + [scores]

    scores = np.array([0.0, 8.0, 8.0625, 1.0])
    view = type('View', (), {'prompt': [1], 'pixels': None})
    assert device.difference(Engine(), view, [5, 6, 1], [5, 6, 1]) is None
    assert device.difference(Engine(), view, [5, 6, 1, 9], [5, 6, 2, 9]) == {
        'at': 2, 'words': [1, 2], 'gap': 0.0625, 'step': 0.0625, 'tie': True}
    assert not device.difference(Engine(), view, [5, 6, 1], [5, 6, 3])['tie']
    assert device.difference(Engine(), view, [5, 6], [5, 6, 3]) == {
        'at': 2, 'words': [], 'tie': False}
