"""Weights: every published layout in, nothing that could run code."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.decoders import small_decoder
from support.released import released_name

from dtvla_ros.engine.published import random_model
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import load_weights, read_tensors, save_weights
from dtvla_ros.policy.config import DecoderConfig, TextConfig, VisionConfig


@pytest.mark.parametrize('layout', ['ours', 'old', 'new'])
@pytest.mark.parametrize('head', ['', 'language_model.lm_head.weight', 'lm_head.weight'])
def test_layouts(tmp_path, layout, head):
    model, path = small_decoder(), tmp_path / 'model.safetensors'
    if layout == 'ours':
        save_weights(model, path)
    else:
        tensors = {released_name(k): v for k, v in model.state_dict().items()}
        if layout == 'new':
            tensors = {'model.' + k.replace('language_model.model.', 'language_model.'): v
                       for k, v in tensors.items()}
        if head:
            tensors[head] = model.embed_tokens.weight.detach().clone()
        save_file(tensors, path)
    load_weights(other := random_model(model.config), tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    if head:
        save_file({**load_file(path), head: model.embed_tokens.weight.detach() + 1}, path)
        with pytest.raises(UserError, match='head differs'):
            load_weights(other, path)


def test_bad_files(tmp_path):
    for name in ('w.pt', 'pytorch_model.bin', 'w.pkl', 'w.ckpt'):
        (tmp_path / name).write_bytes(b'cos\nsystem\n')
        with pytest.raises(UserError, match='refused unread'):
            read_tensors(tmp_path / name)
    path = tmp_path / 'w.safetensors'
    with pytest.raises(UserError, match='no such weights'):
        read_tensors(path)
    path.write_bytes(b'\x00' * 40)
    with pytest.raises(UserError, match='not a whole safetensors'):
        read_tensors(path)
    model = small_decoder()
    save_file({**model.state_dict(), 'spare': torch.zeros(1)}, path)
    with pytest.raises(UserError, match='1 weights unknown, first spare'):
        load_weights(model, path)


@pytest.mark.parametrize(('make', 'word'), [
    (lambda: TextConfig(16, 1, 3, 2, 8, 16, 24), 'heads'),
    (lambda: VisionConfig('eye', ('a',), (4,), 28), "kind must be .* 'eye'"),
    (lambda: VisionConfig('conv', ('a',), (49,), 128, channels=(8, 8)), 'conv tokens'),
    (lambda: VisionConfig('lite0', ('a',), (64,), 128, layers=6), 'layers must be 1 to 5'),
    (lambda: VisionConfig('lite0', ('a',), (64,), 120, layers=4), 'a multiple of 16'),
    (lambda: VisionConfig('lite0', ('a',), (36,), 128, layers=4), 'square of a divisor of 8'),
    (lambda: DecoderConfig.from_huggingface({'auto_map': {'AutoModel': 'x.Y'}}), 'remote code'),
    (lambda: DecoderConfig.from_huggingface({'text_config': {}}), 'think_start_token_index')])
def test_bad_geometry_names_the_value(make, word):
    with pytest.raises(UserError, match=word):
        make()
