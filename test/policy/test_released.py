"""The released 2.9 B geometry, name by name and shape by shape, and what lies beside it."""

from __future__ import annotations

import json
import re
import struct
from math import prod

import pytest
import torch
from safetensors import safe_open
from support.golden import golden
from support.released import STATISTICS, gemma_like_tokenizer, released_name, write_checkpoint
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from dtvla_ros.engine.export import write_graphs
from dtvla_ros.engine.published import RELEASED_IDS, geometry, random_model
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import empty_model, fit, load_model, our_name, read_headers
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.convert import read_config, read_statistics
from dtvla_ros.policy.inspect import _sizes, inspect
from dtvla_ros.policy.manifest import GRAPHS, WEIGHTS
from dtvla_ros.policy.model import HybridDecoder

PARAMETERS = 2_923_466_480
NORM = 'language_model.model.norm.weight'
TWO = {'libero_10': STATISTICS, 'libero_goal': STATISTICS}


@pytest.fixture(scope='module')
def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device('meta'):
        model = HybridDecoder(DecoderConfig.from_huggingface(RELEASED_IDS))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def new_layout(name: str) -> str:
    return 'model.' + name.replace('language_model.model.', 'language_model.')


def test_every_name_and_shape(shapes):
    """The released names are those of the golden weights; their shapes are transformers' own."""
    config = DecoderConfig.from_huggingface(RELEASED_IDS)
    assert config.image_tokens == 512 and config.slots == 70 and config.ids.bins == 2048
    released = {released_name(name): shape for name, shape in shapes.items()}
    with safe_open(golden('weights_random.safetensors'), 'np') as file:
        assert {re.sub(r'\.\d+\.', '.0.', name) for name in file.keys()} == {  # noqa: SIM118
            re.sub(r'\.\d+\.', '.0.', name) for name in released}
    newer = {new_layout(name): shape for name, shape in released.items()}
    newest = {name.replace('.vision_model.', '.'): shape for name, shape in newer.items()}
    assert newest.keys().isdisjoint(released)
    for layout in (released, newer, newest):
        assert {our_name(name): shape for name, shape in layout.items()} == shapes
    config = PaliGemmaConfig(text_config={
        'model_type': 'gemma', 'hidden_size': 2048, 'num_hidden_layers': 18, 'vocab_size': 257216,
        'intermediate_size': 16384, 'num_attention_heads': 8, 'num_key_value_heads': 1,
    }, vision_config={
        'model_type': 'siglip_vision_model', 'hidden_size': 1152, 'num_hidden_layers': 27,
        'num_attention_heads': 16, 'intermediate_size': 4304, 'patch_size': 14,
        'image_size': 224, 'vision_use_head': False})
    with torch.device('meta'):
        theirs = PaliGemmaForConditionalGeneration(config).state_dict()
    assert {our_name(name): tuple(tensor.shape) for name, tensor in theirs.items()
            if 'lm_head' not in name} == shapes


def test_a_checkpoint_of_six_gigabytes_is_inspected_by_its_header(shapes, tmp_path):
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[released_name(name)] = {
            'dtype': 'BF16', 'shape': shape, 'data_offsets': [begin, end]}
    path = tmp_path / 'model.safetensors'

    def write() -> None:
        text = json.dumps(header).encode()
        with path.open('wb') as file:  # sparse: the file system stores the header alone
            file.write(struct.pack('<Q', len(text)) + text)
            file.truncate(8 + len(text) + end)

    write()
    (tmp_path / 'config.json').write_text(json.dumps(RELEASED_IDS))
    found = inspect(tmp_path)
    weights, memory = found.weights, found.memory
    assert found.parameters['total'] == weights['parameters']['total'] == PARAMETERS
    assert weights['types'] == {'BF16': len(header)}
    assert not (weights['missing'] or weights['unexpected'] or weights['wrong_shape'])
    assert path.stat().st_blocks * 512 < 1 << 20
    assert memory['float32'] == 2 * memory['bfloat16'] == 4 * PARAMETERS
    assert memory['cache of a decision, bfloat16'] < 20e6
    del header[NORM]
    write()
    with pytest.raises(UserError, match='not a whole safetensors'):
        read_headers(path)  # a hole in the data: the last tensor's bytes belong to nobody


def test_the_memory_of_int8_is_what_its_graphs_take(tmp_path):
    model = random_model(geometry('nano'))
    write_graphs(model, tmp_path, 'int8')
    # Without the second set of graphs, which a CPU without products of bytes loads beside these.
    written = sum((tmp_path / name).stat().st_size for name in (WEIGHTS, *GRAPHS))
    told = _sizes(model.config, 100)['memory']
    assert written == pytest.approx(told['int8 (onnx)'], rel=0.05)


@pytest.fixture
def download(tmp_path):
    tensors = write_checkpoint(tmp_path)
    return tensors, read_config(tmp_path / 'config.json', gemma_like_tokenizer())


def test_loading_leaves_nothing_on_the_meta_device(download, tmp_path):
    tensors, config = download
    model, plain = load_model(config, tmp_path), HybridDecoder(config)
    for name, buffer in plain.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32 and weight.requires_grad
        assert torch.equal(weight, tensors[released_name(name)].float())
    half = load_model(config, tmp_path, dtype=torch.bfloat16)
    assert {w.dtype for w in half.parameters()} == {torch.bfloat16}
    assert half.embed_scale.dtype == half.rotary.inv_freq.dtype == torch.float32
    ids = config.ids
    batch = torch.tensor([[ids.bos, ids.semicolon, ids.newline, ids.action]])
    features = torch.zeros(1, config.image_tokens, config.text.width)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.read(batch, batch > -1, features),
                       plain.read(batch, batch > -1, features))


def test_the_weights_do_not_follow_their_file(download, tmp_path):
    model = load_model(download[1], tmp_path, dtype=torch.bfloat16)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for shard in tmp_path.glob('*.safetensors'):
        with shard.open('r+b') as file:
            file.seek(-2000, 2)
            file.write(b'\x77' * 2000)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name


def test_a_weight_stored_under_two_names_is_unexpected(download, tmp_path):
    headers = read_headers(tmp_path)
    found = fit({**headers, new_layout(NORM): headers[NORM]}, empty_model(download[1]))
    assert found.unexpected == ('norm.weight',) and not found.missing


def test_statistics_by_suite(tmp_path):
    path = tmp_path / 'norm_stats.json'
    path.write_text(json.dumps(STATISTICS))
    plain = read_statistics(path, dim=7)
    assert plain.q01[0] == -0.70446 and plain.q99[0] == 0.9375
    path.write_text(json.dumps({'libero': STATISTICS}))
    assert read_statistics(path) == read_statistics(path, 'libero') == plain


@pytest.mark.parametrize(('data', 'key', 'word'), [
    (STATISTICS, 'libero_10', 'leave the key out'),
    (TWO, None, 'libero_10, libero_goal; choose one with --suite-key'),
    (TWO, 'kitchen', '--suite-key'), ([1], None, 'no JSON object'),
    ({'state': STATISTICS['state']}, None, 'of no actions;.*--statistics'),
    ({'action': {'q01': [0.0] * 7}}, None, 'q99 is missing; give the right file'),
    ({'action': {'q01': [0.0] * 6, 'q99': [1.0] * 6}}, None, 'q01 has 6 channels')])
def test_bad_statistics(tmp_path, data, key, word):
    path = tmp_path / 'norm_stats.json'
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=f'norm_stats.json: .*{word}'):
        read_statistics(path, key, dim=7)
