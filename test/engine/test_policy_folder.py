"""A policy folder: exported, hashed, loaded by both engines, and refused when damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.policies import observation, rehash, write_untrained

from dtvla_ros.engine.export import compare
from dtvla_ros.engine.load import load_policy
from dtvla_ros.engine.onnx_engine import OnnxEngine
from dtvla_ros.engine.policy import Policy, banned_in_thought
from dtvla_ros.errors import UserError
from dtvla_ros.policy.confidence import FEATURES, OF_ACTIONS, Calibration
from dtvla_ros.policy.inspect import inspect
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest, sha256

POINTER = (b'version https://git-lfs.github.com/spec/v1\n'
           b'oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n'
           b'size 12345\n')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('policies') / 'untrained'
    write_untrained(path)
    return path


@pytest.fixture(scope='module')
def opened(folder):
    policy, _ = load_policy(folder)
    return policy.engine, policy.transform


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / 'policy'))


def test_engines_agree(folder):
    for mode in ('full', 'masked'):
        mine, theirs = (load_policy(folder, kind, mode=mode, max_thought_tokens=10)[0].infer(
            observation()) for kind in ('torch', 'onnx'))
        assert mine.thought_tokens == theirs.thought_tokens
        np.testing.assert_array_equal(mine.chunk, theirs.chunk)
        assert mine.chunk.shape == (8, 7) and mine.outcome == theirs.outcome
        for said in ('thought_log_probs', 'action_log_probs'):
            np.testing.assert_allclose(getattr(mine, said), getattr(theirs, said), atol=1e-4)
        assert mine.certainty == pytest.approx(theirs.certainty, abs=1e-4)
        assert tuple(mine.certainty) == (FEATURES if mode == 'full' else ())


def test_an_engine_that_differs_is_noticed(folder, opened):
    engine, transform = opened
    other = OnnxEngine(folder, engine.config)
    act = other.decode_actions
    other.decode_actions = lambda *given: np.roll(act(*given), 1, -1)
    with pytest.raises(UserError, match='does not compute the trained policy'):
        compare(engine, other).check()
    other.decode_actions = lambda *_: np.full((engine.config.slots, 2), np.nan)
    with pytest.raises(FloatingPointError, match='not finite'):
        Policy(other, transform, 'masked').infer(observation())


def test_decision(folder):
    policy, manifest = load_policy(folder)
    heard: list[str] = []
    decision = policy.infer(observation(), heard.append)
    ids = manifest.config.ids
    assert decision.thought_tokens[0] == ids.think and decision.thought_tokens[-1] == ids.think_end
    banned = banned_in_thought(ids, manifest.config.text.vocabulary)
    assert not banned[list(decision.thought_tokens[1:])].any()
    assert heard[-1] == decision.reasoning and len(heard[0]) <= len(heard[-1])
    assert set(decision.timings) == {'prepare', 'see', 'prefill', 'think', 'act'}
    written = len(decision.thought_tokens) - (1 if decision.outcome == 'complete' else 2)
    assert decision.drafting.passes == written and decision.drafting.proposed == 0
    again = policy.infer(observation())
    assert again.thought_tokens == decision.thought_tokens
    np.testing.assert_array_equal(again.chunk, decision.chunk)
    assert again.drafting.passes == 1 and again.drafting.accepted == again.drafting.proposed
    assert again.decoded == () and set(decision.decoded) == {*policy.fields(
        decision.thought_tokens[1:written + 1])} - {''}


def test_drafts_change_no_decision(opened):
    with_drafts, without = (Policy(*opened, draft=d) for d in (True, False))
    for seed in (0, 0, 1, 0, 2):
        mine, theirs = (p.infer(observation(seed)) for p in (with_drafts, without))
        assert mine.thought_tokens == theirs.thought_tokens
        np.testing.assert_array_equal(mine.chunk, theirs.chunk)
        np.testing.assert_allclose(mine.thought_log_probs, theirs.thought_log_probs, atol=1e-5)


def calibrate(folder: Path, **weights: float) -> Calibration:
    """Let a policy's manifest say what its features are worth."""
    fitted = Calibration(0.3, weights, 0.05, 10, 200, (2_000_000, 2_000_004), 'tabletop')
    manifest = PolicyManifest.read(folder)
    (folder / MANIFEST).write_text(replace(manifest, calibration=fitted).to_json())
    return fitted


def test_a_calibrated_policy_tells_its_confidence_where_it_thinks(copy):
    assert 'calibration' not in json.loads((copy / MANIFEST).read_text())
    assert load_policy(copy)[0].infer(observation()).confidence is None
    fitted = calibrate(copy, thought_mean=0.7, action_least=0.1)
    policy, manifest = load_policy(copy)
    assert manifest.calibration == fitted and policy.tells_confidence
    decision = policy.infer(observation())
    assert decision.confidence == fitted.confidence(decision.certainty)
    rows = decision.action_log_probs.reshape(8, 7)[:manifest.action.replan_steps]
    assert decision.certainty['action_least'] == rows.min()
    masked, _ = load_policy(copy, mode='masked')
    assert not masked.tells_confidence and masked.infer(observation()).confidence is None


def test_graphs_without_log_probs_run_and_tell_of_their_actions_alone(copy, opened):
    path = copy / 'decoder.onnx'
    graph = onnx.load(path, load_external_data=False)
    assert graph.graph.output.pop().name == 'log_probs'
    onnx.save(graph, path)
    rehash(copy, path.name)
    want = Policy(*opened, max_thought_tokens=32).infer(observation())
    for weights, told in (({'action_mean': 0.2}, True), ({'thought_mean': 0.7}, False)):
        calibrate(copy, **weights)
        policy, _ = load_policy(copy)
        decision = policy.infer(observation())
        assert decision.thought_tokens == want.thought_tokens
        assert decision.thought_log_probs == () and tuple(decision.certainty) == OF_ACTIONS
        assert policy.tells_confidence == told == (decision.confidence is not None)


@pytest.mark.parametrize('cap', [{'max_thought_tokens': 3}, {'max_think_seconds': 1e-6}])
def test_a_truncated_thought_says_so(opened, cap):
    engine, transform = opened
    policy, ids = Policy(engine, transform, **cap), transform.config.ids
    banned = banned_in_thought(ids, transform.config.text.vocabulary)
    banned[ids.think_end] = True
    engine.suppress_tokens(banned)
    decision = policy.infer(observation())
    assert decision.outcome == 'truncated' and decision.thought_tokens[-1] == ids.think_end
    assert np.isfinite(decision.chunk).all()


@pytest.mark.parametrize(('options', 'word'), [
    ({'mode': 'loud'}, 'loud'), ({'max_thought_tokens': 0}, 'at least 1'),
    ({'max_think_seconds': 0.0}, 'positive')])
def test_bad_options(opened, options, word):
    with pytest.raises(UserError, match=word):
        Policy(*opened, **options)


@pytest.mark.parametrize(('engine', 'name'), [
    ('onnx', 'model.safetensors'), ('onnx', 'tokenizer.json'), ('onnx', 'act.onnx'),
    ('torch', 'model.safetensors'), ('torch', 'tokenizer.json')])
def test_wrong_hash(copy, engine, name):
    data = bytearray((copy / name).read_bytes())
    data[100] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=f'{name}: SHA-256 differs'):
        load_policy(copy, engine)


def test_missing_file(copy):
    (copy / 'decoder.onnx').unlink()
    with pytest.raises(UserError, match='decoder.onnx: missing'):
        load_policy(copy)
    with pytest.raises(UserError, match='nowhere.manifest.json: no such file'):
        load_policy('nowhere')
    with pytest.raises(UserError, match="engine 'jax'"):
        load_policy(copy, 'jax')


@pytest.mark.parametrize(('change', 'word'), [
    (lambda d: d['files'].update({'weights.pt': 'x'}), 'weights.pt.* refused unread'),
    (lambda d: d['files'].update({'../a.onnx': 'x'}), 'outside the policy folder'),
    (lambda d: d.update(auto_map={}), 'remote code'), (lambda d: d.update(novel=1), 'novel'),
    (lambda d: d.update(format=9), 'format'), (lambda d: d.pop('statistics'), 'statistics'),
    (lambda d: d['statistics']['q01'].pop(), 'q01 has 6 channels'),
    (lambda d: d['statistics']['q01'].__setitem__(2, 0.9), 'channel 2'),
    (lambda d: d['config']['text'].update(heads=0), 'heads'),
    (lambda d: d['config']['text'].update(colour='red'), 'colour'),
    (lambda d: d['config']['ids'].update(eos=99999), 'eos=99999'),
    (lambda d: d['action'].update(replan_steps=9), 'replan_steps 9'),
    (lambda d: d['action'].update(rate_hz=0), 'rate_hz'),
    *((lambda d, bad=bad: d.update(tasks=bad), 'tasks: expected a list of sentences')
      for bad in ('stack', ['stack', ''], [3], {'stack': 1}, None)),
    (lambda d: d['files'].pop('tokenizer.json'), 'lists no tokenizer.json')])
def test_bad_manifest(folder, tmp_path, change, word):
    data = json.loads((folder / 'manifest.json').read_text())
    change(data)
    (tmp_path / 'manifest.json').write_text(json.dumps(data))
    with pytest.raises(UserError, match=word):
        load_policy(tmp_path)
    (tmp_path / 'manifest.json').write_text('{')
    with pytest.raises(UserError, match='not readable JSON'):
        load_policy(tmp_path)


def test_the_onnx_engine_imports_no_torch(folder):
    code = ('import sys; from dtvla_ros.engine.load import load_policy; '
            f'load_policy({str(folder)!r}); '
            'print([m for m in ("torch", "transformers", "onnx") if m in sys.modules])')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'


def test_export_spares_a_folder_that_is_no_policy(tmp_path):
    (tmp_path / 'letter.txt').write_text('dear')
    with pytest.raises(UserError, match='holds files but no policy'):
        write_untrained(tmp_path)
    assert (tmp_path / 'letter.txt').exists()


def linked(folder: Path, store: Path, layout: str) -> None:
    """Move files of a policy into a store as some tool has it, and leave links."""
    for path in sorted(folder.iterdir()):
        if layout == 'weights alone' and path.suffix != '.safetensors':
            continue
        place = {'hugging face': store / 'blobs' / path.stem}.get(
            layout, store / sha256(path) / 'data')
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)
        path.symlink_to(place)


@pytest.mark.parametrize('layout', ['hugging face', 'a folder per hash', 'weights alone'])
def test_links_into_a_store(copy, tmp_path, layout):
    linked(copy, tmp_path / 'store', layout)
    assert not inspect(copy).issues
    for engine in ('onnx', 'torch'):
        decision = load_policy(copy, engine, max_thought_tokens=4)[0].infer(observation())
        assert np.isfinite(decision.chunk).all()


def test_a_link_to_nothing(copy):
    (copy / 'act.onnx').rename(copy.parent / 'act.onnx')
    (copy / 'act.onnx').symlink_to(copy.parent / 'gone')
    with pytest.raises(UserError, match='act.onnx: a link to nothing; copy the policy again'):
        load_policy(copy)
    assert 'act.onnx: a link to nothing' in inspect(copy).issues[0].problem


@pytest.mark.parametrize('name', ['model.safetensors', 'tokenizer.json', 'vision.onnx',
                                  'manifest.json'])
def test_git_lfs_pointers(copy, name):
    (copy / name).write_bytes(POINTER)
    said = f'{name}: a Git LFS pointer, not the file itself; run git lfs pull'
    with pytest.raises(UserError, match=said):
        load_policy(copy)
    if name == 'manifest.json':
        return
    assert any(f'{name}: a Git LFS pointer' in issue.problem and 'git lfs pull' in issue.remedy
               for issue in inspect(copy).issues)


def test_weights_alone_that_are_a_pointer(tmp_path):
    (tmp_path / 'weights.safetensors').write_bytes(POINTER)
    with pytest.raises(UserError, match='weights.safetensors: a Git LFS pointer'):
        inspect(tmp_path / 'weights.safetensors')
