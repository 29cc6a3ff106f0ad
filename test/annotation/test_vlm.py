"""A transformers model from a folder answers questions, and learns labels through LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from support.picks import answer_frames
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dtvla_ros.annotation.fill import Classes
from dtvla_ros.annotation.label import LABELS, LabelOptions, label
from dtvla_ros.annotation.question import SYSTEM, build_question
from dtvla_ros.annotation.rules import label_frames
from dtvla_ros.annotation.source import Source
from dtvla_ros.annotation.vlm import LocalProvider, VlmLabeller, encode, load_vlm
from dtvla_ros.errors import UserError

FRAMES = [0, 12]
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
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token='<pad>', eos_token='<eos>', unk_token='<unk>',
        extra_special_tokens={'image_token': '<image>'})
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={'shortest_edge': SIZE}, crop_size=SIZE), tokenizer,
        patch_size=PATCH, vision_feature_select_strategy='default', image_token='<image>',
        num_additional_image_tokens=1, chat_template=TEMPLATE)
    torch.manual_seed(0)
    layers = {'num_hidden_layers': 2, 'num_attention_heads': 2}
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **layers, hidden_size=16, intermediate_size=16, image_size=SIZE, patch_size=PATCH),
        text_config=transformers.LlamaConfig(
            **layers, vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
            num_key_value_heads=2,
            initializer_range=0.2,  # frozen features that adapters can read something from
            max_position_embeddings=4096, pad_token_id=0, eos_token_id=1, bos_token_id=None),
        image_token_index=tokenizer.convert_tokens_to_ids('<image>')))
    model.generation_config.update(eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def question(source):
    return build_question(source, 0, FRAMES, FRAMES, None, True)


@pytest.fixture(scope='module')
def folder(root, tmp_path_factory):
    """Return the folder of an untrained model that knows the words."""
    asked = question(Source(root))
    texts = [SYSTEM, json.dumps(asked.schema), *[json.dumps(answer_frames(2))] * 20,
             *(part for part in asked.turns[0][1] if isinstance(part, str))]
    return make_vlm(tmp_path_factory.mktemp('vlm') / 'tiny', texts)


def test_a_local_model_labels(source, folder, tmp_path):
    """A model that was taught one answer gives it; nonsense is a named failure."""
    provider = LocalProvider(folder, max_tokens=400)
    assert provider.name == 'local:tiny'

    def labelled(folder):
        return label(source, {0: FRAMES}, tmp_path / folder / LABELS, provider, LabelOptions())

    rows, failed, _ = labelled('untaught')
    assert not rows and 'Invalid JSON' in failed[0]
    model, processor, asked = provider.model, provider.processor, question(source)
    inputs = encode(
        processor, [('system', (asked.system_with_schema,)), *asked.turns], model.device)
    answer = processor.tokenizer(
        json.dumps(answer_frames(2)) + '<eos>', return_tensors='pt').input_ids
    ids = torch.cat([inputs['input_ids'], answer], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(80):
        logits = model(input_ids=ids, pixel_values=inputs['pixel_values'],
                       logits_to_keep=answer.shape[1] + 1).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, answer[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    rows, failed, _ = labelled('taught')
    assert len(rows) == 1 and len(rows[0]['labels']) == 2 and not failed


def test_adapters_learn_labels(source, folder, tmp_path):
    goal = source.goal(0)
    accepted = list(enumerate(label_frames(source.motion(0), goal)))[::6]
    classes = Classes.of({0: accepted}, {0: goal})
    targets = {frame: classes.number(row, goal) for frame, row in accepted}
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    labeller = VlmLabeller(folder, tmp_path / 'adapters', epochs=6, learning_rate=5e-3, batch=3)
    labeller._classes = classes

    def right():
        scores = labeller.scores(source, 0)
        assert scores.shape == (len(source.motion(0)), len(classes.keys))
        return sum(scores[frame, number] for frame, number in targets.items())

    untaught = right()
    labeller.fit(source, classes, {0: targets})
    assert right() > untaught + 3
    assert (tmp_path / 'adapters/adapter_model.safetensors').exists()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_code_and_pickles_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match='config.json'):
        load_vlm(tmp_path)
    for remedy, spoil in (
            ('auto_map', lambda f: (f / 'config.json').write_text('{"auto_map": {"a": "b"}}')),
            ('refused', lambda f: (f / 'pytorch_model.bin').write_bytes(b'x')),
            ('chat template', lambda f: (f / 'chat_template.jinja').unlink())):
        bad = tmp_path / remedy
        shutil.copytree(folder, bad)
        spoil(bad)
        with pytest.raises(UserError, match=remedy):
            load_vlm(bad)
