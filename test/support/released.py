"""A tiny checkpoint of exactly the released layout, for tests that can not have the real one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from dtvla_ros.policy.convert import PREAMBLE, read_config
from dtvla_ros.policy.model import HybridDecoder

BINS = 16
WIDTH, VISION = 32, 24
TAGS = ('<think>', '</think>', '<action>', '</action>')
STATISTICS = {
    'state': {'mean': [0.0] * 8, 'std': [1.0] * 8, 'q01': [-1.0] * 8, 'q99': [1.0] * 8},
    'action': {'mean': [0.1] * 7, 'std': [0.2] * 7, 'q99': [0.9375, 0.8, 0.7, 0.1, 0.2, 0.3, 1.0],
               'q01': [-0.70446, -0.8, -0.9, -0.1, -0.2, -0.3, -1.0]}}


def released_name(name: str) -> str:
    """Return a parameter's name in the released (old Hugging Face) layout."""
    for ours, theirs in (('vision.tower.', 'vision_tower.vision_model.'),
                         ('vision.projector.', 'multi_modal_projector.linear.')):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return f'language_model.model.{name}'


def gemma_like_tokenizer() -> Tokenizer:
    """Return byte-fallback BPE over '▁' for spaces, newline and tags added, as Gemma's is."""
    trained = Tokenizer(BPE())
    trained.normalizer = normalizers.Replace(' ', '▁')
    text = PREAMBLE.replace('<', ' ').replace('>', ' ').replace('/', ' ')
    trained.train_from_iterator(
        [text, 'Task: push the red cube onto the plate', 'The gripper holds the butter.'] * 3,
        BpeTrainer(vocab_size=160, initial_alphabet=[chr(c) for c in range(33, 127)],
                   show_progress=False))
    model = json.loads(trained.to_str())['model']
    words = ['<pad>', '<eos>', '<bos>', '<unk>', *(f'<0x{k:02X}>' for k in range(256)),
             *sorted(model['vocab'], key=model['vocab'].get)]
    tokenizer = Tokenizer(BPE(
        {word: k for k, word in enumerate(words)}, [tuple(pair) for pair in model['merges']],
        unk_token='<unk>', fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(' ', '▁')
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(words[:3])
    for words in (['\n', *(f'<loc{k:04}>' for k in range(BINS))], ['<image>'], TAGS):
        tokenizer.add_tokens([AddedToken(word, normalized=False, special=word == '<image>')
                              for word in words])
    return tokenizer


def config_json(tokenizer: Tokenizer) -> dict:
    """Return a ``config.json`` with the released keys and tiny sizes."""
    first = tokenizer.token_to_id('<loc0000>')
    layers = {'num_hidden_layers': 2, 'num_attention_heads': 2}
    return {
        'architectures': ['DeepThinkVLA'], 'model_type': 'paligemma', 'torch_dtype': 'bfloat16',
        'pad_token_id': 0, 'eos_token_id': 1, 'bos_token_id': 2, 'ignore_index': -100,
        **{f'{name}_token_index': tokenizer.token_to_id(tag) for name, tag in zip(
            ('image', 'think_start', 'think_end', 'action_start', 'action_end'),
            ('<image>', *TAGS), strict=True)},
        'action_token_begin_idx': first, 'action_token_end_idx': first + BINS - 1,
        'text_config': {
            **layers, 'hidden_size': WIDTH, 'intermediate_size': 64, 'num_key_value_heads': 1,
            'head_dim': 16, 'vocab_size': tokenizer.get_vocab_size() + 3},
        'vision_config': {**layers, 'hidden_size': VISION, 'intermediate_size': 40,
                          'image_size': 28, 'patch_size': 14}}


def write_checkpoint(folder: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """Write config, tokenizer, statistics and two bfloat16 shards; return the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = gemma_like_tokenizer()
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'config.json').write_text(json.dumps(config_json(tokenizer)))
    (folder / 'norm_stats.json').write_text(json.dumps(STATISTICS))
    torch.manual_seed(seed)
    model = HybridDecoder(read_config(folder / 'config.json', tokenizer))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if 'norm' in name:
                weight.normal_(0.0, 0.2)
    tensors = {released_name(name): weight.to(torch.bfloat16)
               for name, weight in model.state_dict().items()}
    names, places = sorted(tensors), {}
    for k, part in enumerate((names[:len(names) // 2], names[len(names) // 2:]), 1):
        shard = f'model-{k:05}-of-00002.safetensors'
        save_file({name: tensors[name] for name in part}, folder / shard, {'format': 'pt'})
        places |= dict.fromkeys(part, shard)
    size = sum(tensor.nbytes for tensor in tensors.values())
    (folder / 'model.safetensors.index.json').write_text(json.dumps(
        {'metadata': {'total_size': size}, 'weight_map': places}))
    return tensors
