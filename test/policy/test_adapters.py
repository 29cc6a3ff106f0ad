"""LoRA adapters: the merged weights do what base and adapter did, and bad adapters are named."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.released import WIDTH, write_checkpoint
from torch.nn import functional as F  # noqa: N812

from dtvla_ros.engine.load import load_policy
from dtvla_ros.errors import UserError
from dtvla_ros.policy.adapters import read_adapter
from dtvla_ros.policy.checkpoint import our_name, read_headers, read_tensors
from dtvla_ros.policy.convert import convert

RANK = 4
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-3)  # sums of order 10, float32
QUERY = 'language_model.model.layers.1.self_attn.q_proj'
DOWN = 'language_model.model.layers.0.mlp.down_proj'
PROJECTOR = 'multi_modal_projector.linear'
EMBED = 'language_model.model.embed_tokens'
PATCHES = 'vision_tower.vision_model.embeddings.patch_embedding'
HEAD = 'language_model.lm_head'


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('lora') / 'deepthinkvla_base'
    write_checkpoint(folder)
    return folder


def factors(base: Path, modules: list[str], rank: int = RANK) -> dict[str, torch.Tensor]:
    """Return random factors for modules, named as peft names them."""
    torch.manual_seed(3)
    weights, out = read_tensors(base), {}
    for module in modules:
        rows, *into = weights[f'{EMBED if module == HEAD else module}.weight'].shape
        name = f'base_model.model.{module}'
        if module == EMBED:
            out[f'{name}.lora_embedding_A'] = torch.randn(rank, rows)
            out[f'{name}.lora_embedding_B'] = torch.randn(into[0], rank)
        else:
            out[f'{name}.lora_A.weight'] = torch.randn(rank, *into)
            out[f'{name}.lora_B.weight'] = torch.randn(rows, rank, *(1 for _ in into[1:]))
    return out


def write(folder: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'adapter_config.json').write_text(json.dumps({
        'peft_type': 'LORA', 'r': RANK, 'lora_alpha': 16, 'use_rslora': False,
        'fan_in_fan_out': False, 'bias': 'none', 'base_model_name_or_path': 'nobody/base',
        'target_modules': ['q_proj'], 'modules_to_save': None, **config}))
    save_file(tensors, folder / 'adapter_model.safetensors')
    return folder


@pytest.mark.parametrize(('rslora', 'scale', 'layout'), [(False, 4.0, 'old'), (True, 8.0, 'new')])
def test_merged_weights_do_what_base_and_adapter_did(base, tmp_path, rslora, scale, layout):
    stored = factors(base, [QUERY, DOWN, PROJECTOR, EMBED, PATCHES])
    a, b = {}, {}
    for name, tensor in stored.items():
        module, _, side = name.removeprefix('base_model.model.').partition('.lora_')
        (a if 'A' in side else b)[module] = tensor
    if layout == 'new':
        stored = {name.replace('base_model.model.', 'base_model.model.model.').replace(
            'language_model.model.', 'language_model.'): t for name, t in stored.items()}
    adapter = read_adapter(write(tmp_path, stored, use_rslora=rslora))
    adapter.check(read_headers(base))
    weights = {name: tensor.float() for name, tensor in read_tensors(base).items()}
    for module in (QUERY, DOWN, PROJECTOR, PATCHES):
        weight = weights[f'{module}.weight']
        x, into, out = ((torch.randn(1, 3, 28, 28), partial(F.conv2d, stride=14), F.conv2d)
                        if module == PATCHES else
                        (torch.randn(5, weight.shape[1]), F.linear, F.linear))
        close(into(x, adapter.merged(f'{module}.weight', weight)),
              into(x, weight) + scale * out(into(x, a[module]), b[module]))
    weight = weights[f'{EMBED}.weight']
    ids = torch.tensor([0, 7, weight.shape[0] - 1])
    expected = weight[ids] + scale * F.embedding(ids, a[EMBED].T) @ b[EMBED].T
    close(adapter.merged(f'{EMBED}.weight', weight)[ids], expected)
    assert torch.equal(*(adapter.merged(name, weight)
                         for name in ('lm_head.weight', f'{EMBED}.weight')))
    untouched = 'language_model.model.norm.weight'
    assert adapter.merged(untouched, weights[untouched]) is weights[untouched]


def test_patterns_and_weights_trained_whole(base, tmp_path):
    whole = torch.randn(WIDTH)
    adapter = read_adapter(write(tmp_path, {
        **factors(base, [QUERY], rank=2), **factors(base, [DOWN]),
        'base_model.model.language_model.model.norm.weight': whole,
        f'base_model.model.{PROJECTOR}.modules_to_save.default.bias': torch.randn(WIDTH),
        f'base_model.model.{PROJECTOR}.original_module.weight': torch.zeros(1)},
        rank_pattern={'layers.1.self_attn.q_proj': 2}, alpha_pattern={'q_proj': 6}))
    assert adapter.updates[our_name(f'{QUERY}.weight')].scale == 3.0
    assert adapter.updates[our_name(f'{DOWN}.weight')].scale == 4.0
    assert torch.equal(adapter.merged('language_model.model.norm.weight', torch.zeros(WIDTH)),
                       whole)
    assert set(adapter.replaced) == {'norm.weight', 'vision.projector.bias'}
    adapter.check(read_headers(base))


def test_non_lora_weights_as_safetensors(base, tmp_path):
    write(tmp_path, factors(base, [QUERY]))
    (tmp_path / 'non_lora_state_dict.bin').write_bytes(b'cos\nsystem\n')
    with pytest.raises(UserError, match=r'bin: .*refused unread; .* as non_lora_state_dict.saf'):
        read_adapter(tmp_path)
    (tmp_path / 'non_lora_state_dict.bin').unlink()
    (tmp_path / 'training_args.bin').write_bytes(b'cos\nsystem\n')  # no weights in there
    new = torch.randn(WIDTH, WIDTH)
    save_file({f'base_model.model.{QUERY}.base_layer.weight': new},
              tmp_path / 'non_lora_state_dict.safetensors')
    adapter = read_adapter(tmp_path)
    close(adapter.merged(f'{QUERY}.weight', torch.zeros_like(new)),
          new + adapter.updates[our_name(f'{QUERY}.weight')].delta())


def test_convert_writes_a_policy_with_merged_weights(base, tmp_path):
    adapter = write(tmp_path / 'lora', factors(base, [QUERY, EMBED]))
    out = tmp_path / 'models' / 'merged'
    with pytest.raises(UserError, match='give --out'):
        convert(base, adapter=adapter)
    convert(base, adapter=adapter, out=out)
    assert not (base / 'manifest.json').exists()
    _, manifest = load_policy(out, 'torch')
    assert manifest.name == 'merged' and 'config.json' not in manifest.files
    before, after = read_tensors(base), read_tensors(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f'{QUERY}.weight', f'{EMBED}.weight'}
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    exact = before[f'{QUERY}.weight'].double() + read_adapter(adapter).updates[
        our_name(f'{QUERY}.weight')].delta().double()  # the sum is taken in float32
    assert torch.equal(after[f'{QUERY}.weight'], exact.to(torch.bfloat16))
    assert list(tmp_path.rglob('*.part')) == []


def test_the_base_may_be_named_by_the_adapter(base, tmp_path):
    adapter = write(tmp_path / 'lora', factors(base, [QUERY]))
    with pytest.raises(UserError, match="'nobody/base' is no folder here; name it: dtvla convert"):
        convert(adapter, out=tmp_path / 'merged')
    write(adapter, factors(base, [QUERY]), base_model_name_or_path=str(base))
    convert(adapter, out=tmp_path / 'merged')
    assert f'{QUERY}.weight' in read_tensors(tmp_path / 'merged')


@pytest.mark.parametrize(('changes', 'word'), [
    ({'peft_type': 'LOHA'}, 'peft_type is "LOHA".*merge this adapter with peft'),
    ({'use_dora': True}, 'use_dora is true'), ({'lora_bias': True}, 'lora_bias'),
    ({'init_lora_weights': 'pissa_niter_4'}, 'init_lora_weights is "pissa_niter_4"'),
    ({'r': 8}, 'rank 4, adapter_config.json says 8'), ({'lora_alpha': None}, 'lora_alpha is None'),
    ({'r': 0}, 'r is 0'), ({'auto_mapping': {'auto_map': 'x'}}, 'remote code'),
    ({f'{DOWN}.lora_A.weight': (RANK, 64)}, 'down_proj has only the factor A'),
    ({f'{QUERY}.lora_magnitude_vector': (1,)}, 'lora_magnitude_vector is no factor'),
    ({f'{QUERY}.lora_B.bias': (1,)}, 'lora_B.bias is no factor'), (None, 'holds no LoRA factors'),
    ({f'{HEAD}.lora_A.weight': (RANK, WIDTH), f'{HEAD}.lora_B.weight': (8, RANK)},
     'lm_head.weight was trained apart from the embedding'),
    ({f'{HEAD}.weight': (8, WIDTH)}, 'lm_head.weight was trained apart')])
def test_bad_configs_and_factors(base, tmp_path, changes, word):
    config = {key: value for key, value in (changes or {}).items() if '.' not in key}
    tensors = {} if changes is None else factors(base, [QUERY]) | {
        f'base_model.model.{name}': torch.ones(changes[name]) for name in changes.keys() - config}
    with pytest.raises(UserError, match=word):
        read_adapter(write(tmp_path, tensors, **config))


def test_an_untrained_head_does_no_harm(base, tmp_path):
    tensors = factors(base, [QUERY, HEAD])
    tensors[f'base_model.model.{HEAD}.lora_B.weight'].zero_()
    assert set(read_adapter(write(tmp_path, tensors)).updates) == {our_name(f'{QUERY}.weight')}


@pytest.mark.parametrize(('name', 'shape', 'word'), [
    ('language_model.model.layers.7.mlp.up_proj', (64, WIDTH), 'do not fit layers.7.* None'),
    (QUERY, (48, WIDTH), r'do not fit layers.1.self_attn.q_proj.weight \(32, 32\)')])
def test_an_adapter_of_another_base(base, tmp_path, name, shape, word):
    adapter = read_adapter(write(tmp_path, {
        f'base_model.model.{name}.lora_A.weight': torch.ones(RANK, shape[1]),
        f'base_model.model.{name}.lora_B.weight': torch.ones(shape[0], RANK)}))
    with pytest.raises(UserError, match=word + '.*the base checkpoint'):
        adapter.check(read_headers(base))
