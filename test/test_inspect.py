"""From a downloaded checkpoint to a decision; a damaged one is refused with a remedy."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.policies import observation, rehash
from support.released import STATISTICS, write_checkpoint
from tokenizers import Tokenizer

from dtvla_ros.engine.load import load_policy
from dtvla_ros.errors import UserError
from dtvla_ros.policy.convert import convert
from dtvla_ros.policy.inspect import inspect
from dtvla_ros.policy.manifest import PolicyManifest
from dtvla_ros.policy.transform import transform_of

TASK = 'Push the red_cube onto the plate'
INDEX = 'model.safetensors.index.json'
SHARD = 'model-00002-of-00002.safetensors'
SENTENCE = ('First output the thinking process in <think></think> tags and then output the final '
            'action in <action></action>.Task: push the red cube onto the plate;\n')


@pytest.fixture(scope='module')
def download(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('hub') / 'deepthinkvla_libero_cot_rl'
    write_checkpoint(folder)
    return folder


@pytest.fixture
def copy(download, tmp_path) -> Path:
    return Path(shutil.copytree(download, tmp_path / download.name))


def issues(path: Path) -> str:
    """Return problem and remedy of every issue, one a line."""
    return '\n'.join(f'{issue.problem} -> {issue.remedy}' for issue in inspect(path).issues)


def test_from_download_to_decision(copy, dtvla):
    assert issues(copy) == f'{copy}/manifest.json: no such file -> dtvla convert {copy}'
    code, said, _ = dtvla('convert', copy, '--license', 'MIT')
    assert code == 0 and '4 files hashed' in said
    assert issues(copy) == ''
    policy, manifest = load_policy(copy, 'torch', max_thought_tokens=5)
    assert (manifest.name, manifest.license) == (copy.name, 'MIT')
    assert set(manifest.files) == {INDEX, SHARD, SHARD.replace('-00002-', '-00001-'),
                                   'tokenizer.json'}
    assert (manifest.action.replan_steps, manifest.max_thought_tokens) == (10, 300)
    assert not manifest.state_in_prompt and manifest.images.mirrored and manifest.images.upright
    decision = policy.infer(observation(instruction=TASK))
    low, high = (STATISTICS['action'][key][:6] for key in ('q01', 'q99'))
    assert decision.chunk.shape == (10, 7)
    assert (decision.chunk[:, :6] >= low).all() and (decision.chunk[:, :6] <= high).all()
    assert load_policy(copy, 'torch')[0].max_thought_tokens == 300
    half, _ = load_policy(copy, 'torch', dtype='bfloat16', mode='masked')
    assert np.isfinite(half.infer(observation(instruction=TASK)).chunk).all()
    with pytest.raises(UserError, match="type 'int8' is none of"):
        load_policy(copy, 'torch', dtype='int8')
    with pytest.raises(UserError, match='manifest.json: lists no ONNX graphs; use the engine'):
        load_policy(copy)


def test_published_prompt(copy):
    convert(copy)
    manifest = PolicyManifest.read(copy)
    transform = transform_of(copy, manifest)
    ids, prompt = manifest.config.ids, transform.prompt_ids(TASK)
    whole = Tokenizer.from_file(str(copy / 'tokenizer.json')).encode(
        '<image>' * 8 + '<bos>' + SENTENCE, add_special_tokens=False)
    assert prompt == whole.ids
    tags = [ids.think, ids.think_end, ids.action, ids.action_end]
    assert [i for i in prompt if i in tags] == tags
    with pytest.raises(UserError, match='<action>'):
        transform.prompt_ids('push the <action> cube')
    thought = 'The gripper holds the butter; é.'
    assert transform.decode_thought(transform.encode_thought(thought)) == thought


def test_inspection_of_a_checkpoint(copy, dtvla, tmp_path):
    file = tmp_path / 'found.json'
    code, said, _ = dtvla('inspect', copy, '--json', file)
    assert code == 0
    found = json.loads(file.read_text())
    weights, total = found['weights'], sum(
        t.numel() for shard in copy.glob('*.safetensors') for t in load_file(shard).values())
    assert found['kind'] == 'checkpoint' and found['parameters']['total'] == total
    assert weights['parameters']['total'] == total
    assert weights['types'] == {'BF16': weights['tensors']}
    assert weights['missing'] == weights['unexpected'] == []
    assert found['config']['ids']['think'] > 0 and found['statistics']['q01'][0] == -0.70446
    assert found['lacks'] == [{'what': found['issues'][0]['problem'],
                               'remedy': found['issues'][0]['remedy']}]
    for word in (f'{total:,}', 'as released', '-0.70446', 'OSC_POSE', 'bins first',
                 'dtvla convert', SHARD):
        assert word in said, word
    code, _, error = dtvla('inspect', copy, '--json', copy / 'config.json' / 'x')
    assert code == 2 and 'cannot write' in error


def test_inspection_of_one_file_and_of_an_adapter(copy, dtvla):
    found = inspect(copy / SHARD)
    assert found.kind == 'weights' and found.weights['missing'] is None
    assert 'image tower' in found.weights['parameters']
    lora = copy / 'lora'
    lora.mkdir()
    (lora / 'adapter_config.json').write_text(json.dumps({
        'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4, 'base_model_name_or_path': 'nobody/base'}))
    name = 'base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_'
    save_file({f'{name}A.weight': torch.ones(2, 32), f'{name}B.weight': torch.ones(32, 2)},
              lora / 'adapter_model.safetensors')
    found = inspect(lora)
    assert found.kind == 'adapter' and found.adapter['adapted'] == {'q_proj': 1}
    assert "'nobody/base' is no folder here -> download it, then dtvla convert BASE --adapter" in (
        issues(lora))
    assert 'nobody/base' in dtvla('inspect', lora)[1]


def test_what_holds_no_policy_is_refused(tmp_path, dtvla):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'weights.bin').write_bytes(b'cos\nsystem\n')
    (tmp_path / 'letter.txt').write_text('dear')
    for path in ('nowhere', 'empty', 'weights.bin', 'letter.txt'):
        code, said, error = dtvla('inspect', tmp_path / path)
        assert (code, said, error.count('\n')) == (2, '', 1) and path in error


@pytest.mark.parametrize('name, told', [
    ('manifest.json', 'is a policy already; dtvla inspect'),
    ('model.bin', 'holds no config.json')])
def test_what_is_no_checkpoint_is_not_converted(tmp_path, dtvla, name, told):
    (folder := tmp_path / 'other').mkdir()
    (folder / name).write_text('{"model_type": "smolvla"}')
    code, _, error = dtvla('convert', folder)
    assert code == 2 and str(folder) in error and told in error


def test_a_tokenizer_that_was_damaged_before_it_was_hashed_is_told(copy, dtvla):
    assert dtvla('convert', copy)[0] == 0
    (copy / 'tokenizer.json').write_bytes(b'\xef\xbb\xbf' + (copy / 'tokenizer.json').read_bytes())
    rehash(copy, 'tokenizer.json')
    assert 'not a tokenizer file' in issues(copy)


def without(name):
    """Return a damage that takes a file away."""
    return lambda folder: (folder / name).unlink()


def edited(name, change):
    """Return a damage that changes the data of a JSON file."""
    def edit(folder):
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))
    return edit


def rewritten(change):
    """Change the tensors of a shard by the end of a name: None takes it out."""
    def rewrite(folder):
        tensors = load_file(folder / SHARD)
        for end, new in change.items():
            name = next(n for n in tensors if n.endswith(end))
            tensors[name] = new
        save_file({n: t for n, t in tensors.items() if t is not None}, folder / SHARD)
    return rewrite


DAMAGE = {
    'shard missing': (without(SHARD), f'{SHARD}: missing, though {INDEX} lists it'),
    'shard truncated': (lambda folder: os.truncate(folder / SHARD, 5000), 'not a whole safe'),
    'weight missing': (rewritten({'vision_model.post_layernorm.bias': None}),
                       '1 weights missing, first vision.tower.post_layernorm.bias'),
    'wrong shape': (rewritten({'encoder.layers.0.mlp.fc1.bias': torch.zeros(3)}),
                    r'vision.tower.encoder.layers.0.mlp.fc1.bias.* \(3,\), the config says \(40,'),
    'config of another': (edited('config.json', lambda d: d['text_config'].update(
        num_hidden_layers=3)), '9 weights missing, first layers.2'),
    'statistics missing': (without('norm_stats.json'), 'norm_stats.json: no such.*--statistics'),
    'suite ambiguous': (edited('norm_stats.json', lambda d: (
        d.update(a={'action': d['action']}, b={'action': d['action']}), d.pop('action'))),
        'norm_stats.json: holds statistics of a, b.*--suite-key'),
    'tokenizer missing': (without('tokenizer.json'), 'tokenizer.json: no such'),
    'tokenizer of another': (edited('tokenizer.json', lambda d: d['added_tokens'].pop()),
                             "'</action>' is token None"),
    'pickle present': (lambda folder: (folder / 'pytorch_model.bin').write_bytes(b'cos\nsystem'),
                       'pytorch_model.bin: pickle-like'),
    'index leaves the folder': (edited(INDEX, lambda d: d['weight_map'].update(
        x='../x.safetensors')), "shard '../x.safetensors' lies outside"),
    'index without shards': (edited(INDEX, lambda d: d.update(weight_map={})), 'lists no shard')}


@pytest.mark.parametrize('case', DAMAGE)
def test_damaged_checkpoint(copy, case):
    damage, words = DAMAGE[case]
    damage(copy)
    before = sorted(copy.iterdir())
    with pytest.raises(UserError, match=words):
        convert(copy)
    assert sorted(copy.iterdir()) == before, 'something was half-written'
    if case == 'tokenizer missing':  # then the newline is Gemma's, which needs Gemma's vocabulary
        edited('config.json', lambda d: d['text_config'].update(vocab_size=257216))(copy)
    found = inspect(copy)
    assert len(found.issues) > 1 and all(issue.remedy for issue in found.issues)


def test_config_without_the_tags_is_no_deepthinkvla(copy):
    edited('config.json', lambda d: d.pop('think_end_token_index'))(copy)
    for act in (inspect, convert):
        with pytest.raises(UserError, match=r"config.json: .*'think_end_token_index'"):
            act(copy)


def test_damaged_after_conversion(copy):
    convert(copy)

    def refused(words):
        with pytest.raises(UserError, match=words):
            load_policy(copy, 'torch')
    for name in (SHARD, INDEX, 'tokenizer.json'):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        refused(f'{name}: SHA-256 differs')
        (copy / name).unlink()
        refused(f'{name}: missing, though the manifest lists it')
        assert f'{name}: missing, though the manifest lists it -> copy' in issues(copy)
        (copy / name).write_bytes(whole)
    load_policy(copy, 'torch')
    edited('manifest.json', lambda d: d['files'].pop(SHARD))(copy)
    refused(f'lists no {SHARD}')  # and so does not open it
    assert 'does not list all weights' in issues(copy)


def test_a_policy_apart_from_the_download(download, tmp_path, monkeypatch, dtvla):
    before = {path.name: path.read_bytes() for path in download.iterdir()}
    out = tmp_path / 'models' / 'released'
    code, said, _ = dtvla('convert', download, '--out', out)
    assert code == 0 and f'next: dtvla eval --policy {out} --engine torch' in said
    assert (out / SHARD).samefile(download / SHARD), 'no second 6 GB on the disk'
    assert issues(out) == '' and PolicyManifest.read(out).name == 'released'
    assert load_policy(out, 'torch')[1].max_thought_tokens == 300
    with pytest.raises(UserError, match='exists already; replace it with --force'):
        convert(download, out=out)
    convert(download, out=out, name='again', force=True)
    assert PolicyManifest.read(out).name == 'again'
    with pytest.raises(UserError, match='is the folder of the checkpoint'):
        convert(download, out=download / '.', force=True)
    assert {path.name: path.read_bytes() for path in download.iterdir()} == before

    def no_links(*_):
        raise OSError('another file system')
    monkeypatch.setattr(Path, 'hardlink_to', no_links)
    convert(download, out=tmp_path / 'copied')
    assert issues(tmp_path / 'copied') == ''
    assert not (tmp_path / 'copied' / SHARD).samefile(download / SHARD)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'letters').write_text('dear')
    with pytest.raises(UserError, match='holds files but no policy'):
        convert(download, out=tmp_path / 'full')


def test_options_reach_the_manifest(copy, tmp_path, dtvla):
    other = {'action': {**STATISTICS['action'], 'q99': [2.0] * 7}}
    file = tmp_path / 'all.json'
    file.write_text(json.dumps({'libero_10': STATISTICS, 'libero_goal': other}))
    assert dtvla('convert', copy, '--cameras', 'third', '--name', 'one', '--statistics', file,
                 '--suite-key', 'libero_goal')[0] == 0
    manifest = PolicyManifest.read(copy)
    assert (manifest.name, manifest.config.vision.cameras) == ('one', ('third',))
    assert (manifest.config.image_tokens, manifest.statistics.q99[0]) == (4, 2.0)
