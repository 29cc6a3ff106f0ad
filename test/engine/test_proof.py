"""A policy proves itself where it is loaded: recorded tokens are found again, or it is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.policies import rehash, tamper, write_proven

from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.engine.load import load_policy
from dtvla_ros.engine.proof import FEWEST, Proof, wanted
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.nodes import inference_worker
from dtvla_ros.policy.manifest import MANIFEST, PROOF, PolicyManifest
from dtvla_ros.ros.settings import VlaSettings
from dtvla_ros.training.export import export
from dtvla_ros.training.observations import sample

MODELS = Path(__file__).resolve().parents[2] / 'models'
COUNT = 6
DIFFERS = 'does not compute the exported policy'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('policies') / 'proven'
    write_proven(path, COUNT)
    return path


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / 'policy'))


def without_proof(folder: Path, parent: Path) -> Path:
    """Return a copy as of before there were recorded observations."""
    bare = Path(shutil.copytree(folder, parent / 'bare'))
    manifest = PolicyManifest.read(bare)
    files = {name: digest for name, digest in manifest.files.items() if name != PROOF}
    (bare / MANIFEST).write_text(replace(manifest, files=files, proof={}).to_json())
    (bare / PROOF).unlink()
    return bare


@pytest.mark.parametrize('engine', ['onnx', 'torch'])
def test_engines_find_the_recorded_tokens_again(folder, engine):
    policy, manifest = load_policy(folder, engine)
    proof = Proof.read(folder / PROOF, policy.transform)
    found = proof.check(policy)
    assert found[:3] == (1.0, 1.0, COUNT) and found.reaches(wanted(manifest))
    assert manifest.proof == {'tokens': 1.0, 'bins': 1.0}
    assert proof.check(policy, seconds=0.0).observations == FEWEST
    assert proof.observations[0].images['primary'].shape == (128, 128, 3)
    assert (proof.thoughts >= 0).sum() > 2 * COUNT and proof.actions.shape == (COUNT, 56)


@pytest.mark.parametrize(('engine', 'other'), [('onnx', 'torch'), ('torch', 'onnx')])
def test_an_engine_that_computes_something_else_is_refused(copy, engine, other):
    tamper(copy)
    with pytest.raises(UserError, match=(
            rf'policy: the engine {engine}, .* on this CPU \(.*\) {DIFFERS}: .*% of the thought '
            r'tokens equal, .*over 6 recorded observations, wanted 99% and 99%; use the engine '
            f'{other}, or copy the policy again')):
        load_policy(copy, engine)
    load_policy(copy, engine, prove=False)


def test_what_writes_thoughts_is_proven_too(folder, monkeypatch):
    """Where it is broken alone, no length of a thought and no type lets the policy pass."""
    def stuck(self, cache, tokens, done):
        tokens.append(tokens[-1])
        return [0.0], cache

    monkeypatch.setattr(TorchEngine, 'generate', stuck)
    with pytest.raises(UserError, match=rf'torch, cpu bfloat16 on this CPU .* {DIFFERS}'):
        load_policy(folder, 'torch', dtype='bfloat16')


def test_whatever_loads_it_refuses_it(copy, dtvla):
    tamper(copy)
    for words in (['eval', '--episodes', '1', '--workers', '1'],
                  ['bench', '--rounds', '1', '--engine', 'onnx']):
        code, _, error = dtvla(*words, '--policy', copy)
        assert code == 2 and error.splitlines()[-1].startswith('error: ') and DIFFERS in error
        assert 'Traceback' not in error
    with pytest.raises(UserError, match=DIFFERS):
        inference_worker.load(VlaSettings(policy=str(copy)))
    assert dtvla('inspect', copy, '--prove')[0] == 1


def test_inspect_says_what_is_recorded_and_runs_it(folder, tmp_path, dtvla):
    code, said, _ = dtvla('inspect', folder, '--prove')
    assert code == 0 and f'dtvla inspect {folder} --prove runs it' in said
    assert said.count('100.00%') == 4 and 'CPUExecutionProvider' in said and 'cpu float32' in said
    bare = without_proof(folder, tmp_path)
    load_policy(bare)
    code, said, error = dtvla('inspect', bare)
    assert code == 0 and 'Nothing is missing' in said and 'none; dtvla export' in said
    code, _, error = dtvla('inspect', bare, '--prove')
    assert code == 2 and f'carries no {PROOF}' in error


def test_coarser_weights_are_asked_for_what_their_export_reached(folder, tmp_path):
    out, _ = export(folder, tmp_path / 'int8', weights='int8')  # takes the observations over
    policy, manifest = load_policy(out)
    found = Proof.read(out / PROOF, policy.transform).check(policy)
    want = wanted(manifest)
    assert manifest.proof['tokens'] - want.tokens == pytest.approx(0.02)
    assert manifest.proof['bins'] - want.bins == pytest.approx(0.02)
    assert found.reaches(want) and found.observations == COUNT
    (out / MANIFEST).write_text(replace(manifest, proof={'tokens': 1.0, 'bins': 1.0}).to_json())
    fp32 = PolicyManifest.read(folder)
    assert wanted(fp32)[:2] == (0.99, 0.99) and wanted(fp32, halved=True)[:2] == (0.97, 0.97)


def test_observations_come_from_a_dataset_and_other_files_stay(folder, tmp_path, dataset, dtvla):
    bare = without_proof(folder, tmp_path)
    before = PolicyManifest.read(bare).files
    code, _, error = dtvla('export', bare, '--observations', dataset, '--proof-only')
    assert code == 0, error
    manifest = PolicyManifest.read(bare)
    assert {k: v for k, v in manifest.files.items() if k != PROOF} == before
    policy, _ = load_policy(bare)
    proof, reader = Proof.read(bare / PROOF, policy.transform), DatasetReader(dataset)
    assert len(proof.observations) == min(24, len(reader.table))
    first, state = proof.observations[0], reader.column('observation.state')[0]
    np.testing.assert_allclose(first.ee_position, state[:3])
    assert first.instruction == reader.task(0)
    assert abs(first.gripper_opening - (state[6] - state[7])) < 1e-9
    assert len(sample([reader, reader], policy.transform).observations) <= 24
    code, _, error = dtvla('export', bare, '--proof-only')
    assert code == 2 and '--observations DATASET' in error


def edited(change):
    """Return a damage that changes the recorded tensors and keeps the hash right."""
    def edit(folder):
        tensors = load_file(folder / PROOF)
        change(tensors)
        save_file(tensors, folder / PROOF, {'instructions': json.dumps(['put the can'] * COUNT)})
    return edit


@pytest.mark.parametrize('damage', [
    lambda folder: (folder / PROOF).write_bytes(b'nothing'),
    lambda folder: save_file(load_file(folder / PROOF), folder / PROOF),  # no instructions
    edited(lambda tensors: tensors.pop('state')),
    edited(lambda tensors: tensors.update(state=np.zeros((COUNT, 7)))),
    edited(lambda tensors: tensors.update({'images.wrist': np.zeros((COUNT, 9, 9, 3), 'u1')})),
    edited(lambda tensors: tensors.update(actions=tensors['actions'][:2])),
    edited(lambda tensors: tensors.update(actions=tensors['actions'][:, :0])),
    edited(lambda tensors: tensors.update(thoughts=tensors['thoughts'] + 9999)),
    edited(lambda tensors: tensors.update(state=np.full((COUNT, 8), np.nan)))])
def test_what_was_not_recorded_for_this_policy_is_refused(copy, damage):
    damage(copy)
    with pytest.raises(UserError, match=f'{PROOF}: SHA-256 differs'):
        load_policy(copy)
    rehash(copy, PROOF)
    with pytest.raises(UserError, match=r'policy.*; (copy|export)'):
        load_policy(copy)


@pytest.mark.parametrize('engine', ['onnx', 'torch'])
@pytest.mark.parametrize('name', ['nano', 'libero', 'libero4'])
def test_the_policies_here_prove_themselves(name, engine):
    policy, manifest = load_policy(MODELS / name, engine)
    found = Proof.read(MODELS / name / PROOF, policy.transform).check(policy)
    assert found.observations >= 16 and found.tokens >= 0.99 and found.bins >= 0.99
    assert sum(path.stat().st_size for path in (MODELS / name).iterdir()) < 25e6
