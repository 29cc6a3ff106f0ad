"""Weights: every published layout in, nothing that could run code."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from support.policies import untrained
from support.released import released_name

from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import load_weights, our_name, read_tensors, save_weights
from dtvla_ros.policy.config import DecoderConfig, SpecialIds, TextConfig, VisionConfig
from dtvla_ros.policy.model import HybridDecoder

IDS = SpecialIds(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 19)


def _small() -> HybridDecoder:
    torch.manual_seed(1)
    return HybridDecoder(DecoderConfig(
        TextConfig(16, 1, 2, 2, 8, 16, 24),
        VisionConfig('siglip', ('a',), (4,), 28, width=16, layers=1, heads=2, mlp=16, patch=14),
        IDS, chunk_steps=2, action_dim=3))


def test_round_trip(tmp_path):
    model, _ = untrained(layers=1)
    save_weights(model, tmp_path / 'w.safetensors')
    other, _ = untrained(layers=1, seed=5)
    load_weights(other, tmp_path / 'w.safetensors')
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


@pytest.mark.parametrize('layout', ['old', 'new'])
@pytest.mark.parametrize('head', [False, True])
def test_published_layouts(tmp_path, layout, head):
    model = _small()
    tensors = {released_name(k): v for k, v in model.state_dict().items()}
    if head:
        tensors['language_model.lm_head.weight'] = model.embed_tokens.weight.detach().clone()
    if layout == 'new':
        tensors = {('lm_head.weight' if 'lm_head' in k else
                    'model.' + k.replace('language_model.model.', 'language_model.')): v
                   for k, v in tensors.items()}
    path = tmp_path / 'model.safetensors'
    save_file(tensors, path)
    assert {our_name(k) for k in tensors if 'lm_head' not in k} == set(model.state_dict())
    other = _small()
    with torch.no_grad():
        other.embed_tokens.weight.zero_()
    load_weights(other, tmp_path)
    assert torch.equal(other.embed_tokens.weight, model.embed_tokens.weight)
    if head:
        name = next(k for k in tensors if 'lm_head' in k)
        save_file({**tensors, name: tensors[name] + 1}, path)
        with pytest.raises(UserError, match='head differs'):
            load_weights(other, path)


@pytest.mark.parametrize('name', ['w.pt', 'pytorch_model.bin', 'w.pkl', 'w.ckpt'])
def test_pickle_is_refused_unread(tmp_path, name):
    trap = tmp_path / name
    trap.write_bytes(b'cos\nsystem\n(S"touch trapped"\ntR.')
    with pytest.raises(UserError, match='refused unread'):
        load_weights(_small(), trap)
    assert not (tmp_path / 'trapped').exists()


def test_bad_files(tmp_path):
    path = tmp_path / 'w.safetensors'
    with pytest.raises(UserError, match='no such weights'):
        read_tensors(path)
    path.write_bytes(b'\x00' * 40)
    with pytest.raises(UserError, match='not a whole safetensors'):
        read_tensors(path)
    model = _small()
    save_file({**model.state_dict(), 'spare': torch.zeros(1)}, path)
    with pytest.raises(UserError, match='1 weights unknown, first spare'):
        load_weights(model, path)


def test_bad_geometry_names_the_value():
    with pytest.raises(UserError, match='heads'):
        TextConfig(16, 1, 3, 2, 8, 16, 24)
    with pytest.raises(UserError, match="kind must be .* 'eye'"):
        VisionConfig('eye', ('a',), (4,), 28)
    with pytest.raises(UserError, match='conv tokens'):
        VisionConfig('conv', ('a',), (49,), 128, channels=(8, 8))
    with pytest.raises(UserError, match='remote code'):
        DecoderConfig.from_huggingface({'auto_map': {'AutoModel': 'x.Y'}})
    with pytest.raises(UserError, match='action_token_begin_idx'):
        DecoderConfig.from_huggingface({
            'think_start_token_index': 1, 'think_end_token_index': 1,
            'action_start_token_index': 1, 'action_end_token_index': 1})
