"""Results come from the device and with the settings that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.command import device_there, look_at
from dtvla_ros.evaluation.workers import PolicySetup, load
from dtvla_ros.rollout.env import SceneSetup

ROOT = Path(__file__).resolve().parents[2]


def test_a_result_never_comes_from_another_device_than_it_says(monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['CPUExecutionProvider'])
    assert device_there('onnx', 'auto') == device_there('onnx', 'cpu') == 'cpu'
    with pytest.raises(UserError, match='--device cuda: the engine onnx .* it has: cpu$'):
        device_there('onnx', 'cuda')
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: [
        'CUDAExecutionProvider', 'CPUExecutionProvider'])
    assert device_there('onnx', 'auto') == device_there('onnx', 'cuda') == 'cuda'
    with pytest.raises(UserError, match='tensorrt.* it has: cpu, cuda$'):
        device_there('onnx', 'tensorrt')
    with pytest.raises(UserError, match='engine torch'):
        device_there('torch', 'tensorrt')


def test_an_engine_that_falls_back_to_the_cpu_gives_no_result(caplog):
    setup = PolicySetup(
        SceneSetup('tabletop'), str(ROOT / 'models/nano'), 'onnx', 'full', device='cuda')
    with pytest.raises(UserError, match='--device cuda: the engine onnx fell back to the CPU'):
        load(setup)
    assert 'running on the CPU instead' in caplog.text


def test_what_differs_from_the_suites_own_is_in_the_flags(libero):
    usual = look_at(SceneSetup('libero_10'), ()).flags
    assert (usual['msaa_samples'], usual['shadows'], usual['max_steps']) == (4, True, 520)
    other = look_at(
        SceneSetup('libero_10', antialiasing=False, shadows=False, max_steps=620), ()).flags
    assert (other['msaa_samples'], other['shadows'], other['max_steps']) == (0, False, 620)
    assert look_at(SceneSetup('libero_10', shadows=False), ()).flags['msaa_samples'] == 4
    assert 'max_steps' not in look_at(SceneSetup('tabletop'), ()).flags
    assert look_at(SceneSetup('tabletop', max_steps=90), ()).flags['max_steps'] == 90
