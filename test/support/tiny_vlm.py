"""A vision-language model small enough to be made and trained in a test."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    '{% for m in messages %}<{{ m.role }}>{% for c in m.content %}'
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    '{% if add_generation_prompt %}<assistant>{% endif %}')
SIZE, PATCH = 32, 16


def make_vlm(folder: Path, texts: list[str], width: int = 48) -> Path:
    """Write an untrained LLaVA and its processor; words are learned from ``texts``."""
    words = Tokenizer(models.BPE(unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words.decoder = decoders.ByteLevel()
    special = ['<pad>', '<eos>', '<unk>', '<image>', '<user>', '<assistant>', '<system>']
    words.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token='<pad>', eos_token='<eos>', unk_token='<unk>',
        extra_special_tokens={'image_token': '<image>'})
    processor = LlavaProcessor(
        CLIPImageProcessor(size={'shortest_edge': SIZE}, crop_size=SIZE), tokenizer,
        patch_size=PATCH, vision_feature_select_strategy='default', image_token='<image>',
        num_additional_image_tokens=1, chat_template=TEMPLATE)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            image_size=SIZE, patch_size=PATCH),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            initializer_range=0.2,  # frozen features that adapters can read something from
            max_position_embeddings=4096, pad_token_id=0, eos_token_id=1, bos_token_id=None),
        image_token_index=tokenizer.convert_tokens_to_ids('<image>')))
    model.generation_config.update(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
