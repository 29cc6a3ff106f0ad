"""The decoder against the golden vectors of the published class."""

from __future__ import annotations

import json

import pytest
import torch
from golden import document, golden, tensors

from dtvla_ros.policy.attention import sequence_mask
from dtvla_ros.policy.checkpoint import load_weights
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.decoder import HybridDecoder


@pytest.fixture(scope='module')
def model() -> HybridDecoder:
    torch.set_num_threads(1)
    decoder = HybridDecoder(DecoderConfig.from_huggingface(document('config')))
    load_weights(decoder, golden('weights_random.safetensors'))
    return decoder


def _pixels(case: dict, model: HybridDecoder) -> torch.Tensor:
    size = model.config.vision.image_size
    return case['in.pixel_values'].view(-1, len(model.config.vision.cameras), 3, size, size)


def _losses(model: HybridDecoder, case: dict, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    labels = case['in.labels'][:, 1:]
    logits = model.token_logits(hidden[:, :-1])
    rows = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction='none').view(labels.shape)
    ids = model.config.ids
    action = (labels >= ids.bins_first) & (labels <= ids.bins_last)
    text = (labels != -100) & ~action
    return rows, rows.sum() / (labels != -100).sum(), rows[text].mean(), rows[action].mean()


def test_training_forward_loss_and_gradients(model):
    case = tensors('case_train_nopad')
    ids, mask = case['in.input_ids'], case['in.attention_mask']
    assert torch.equal(sequence_mask(ids, mask, model.config.ids),
                       case['mask.visible'].bool())
    features = model.encode_images(_pixels(case, model))
    scale = model.config.text.width ** 0.5
    torch.testing.assert_close(features.view(case['image_features'].shape) / scale,
                               case['image_features'], atol=1e-4, rtol=0)
    model.zero_grad()
    hidden = model(ids, mask, _pixels(case, model))
    row = case['out.rows']
    torch.testing.assert_close(model.token_logits(hidden)[row[:, 0], row[:, 1]],
                               case['out.logits_rows'], atol=1e-4, rtol=0)
    bins = model.action_logits(hidden)
    span = slice(model.config.ids.bins_first, model.config.ids.bins_last + 1)
    torch.testing.assert_close(bins, model.token_logits(hidden)[..., span])
    rows, loss, text, action = _losses(model, case, hidden)
    torch.testing.assert_close(-rows, case['out.label_logprob'], atol=1e-4, rtol=0)
    for mine, name in ((loss, 'loss'), (text, 'loss_text'), (action, 'loss_action')):
        torch.testing.assert_close(mine, case[f'out.{name}'][0], atol=1e-4, rtol=0)
    loss.backward()
    total = torch.stack([p.grad.double().norm() for p in model.parameters()]).norm()
    torch.testing.assert_close(total, case['out.grad_norm'][0], atol=0, rtol=1e-3)
    names = dict(model.named_parameters())
    for theirs, ours in (
            ('language_model.model.layers.0.self_attn.k_proj.weight',
             'layers.0.self_attn.k_proj.weight'),
            ('multi_modal_projector.linear.bias', 'vision.projector.bias')):
        want = case[f'grad.{theirs}']
        torch.testing.assert_close(names[ours].grad, want, atol=1e-3 * want.abs().max().item(),
                                   rtol=1e-3)


def test_padded_batch_gives_the_unpadded_numbers(model):
    case = tensors('case_train_pad')
    with torch.no_grad():
        hidden = model(case['in.input_ids'], case['in.attention_mask'], _pixels(case, model))
    rows, loss, *_ = _losses(model, case, hidden)
    torch.testing.assert_close(-rows, case['clean.label_logprob'], atol=1e-4, rtol=0)
    torch.testing.assert_close(loss, case['clean.loss'][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(('left', 'right'), [(7, 0), (0, 9), (4, 5)])
def test_padding_on_either_side_changes_nothing(model, left, right):
    case = tensors('case_train_nopad')
    ids, mask = case['in.input_ids'], case['in.attention_mask']
    pixels = _pixels(case, model)
    width = ids.shape[1]
    with torch.no_grad():
        plain = model(ids, mask, pixels)
        pad = torch.nn.functional.pad
        padded = model(pad(ids, (left, right), value=model.config.ids.pad),
                       pad(mask, (left, right)), pixels)[:, left:left + width]
    torch.testing.assert_close(padded, plain, atol=1e-4, rtol=0)


def test_labels_in_the_slots_do_not_leak(model):
    case = tensors('case_train_nopad')
    ids, mask = case['in.input_ids'].clone(), case['in.attention_mask']
    with torch.no_grad():
        before = model(ids, mask, _pixels(case, model))
        spec = model.config.ids
        slots = (ids >= spec.bins_first) & (ids <= spec.bins_last)
        assert slots.sum() == 2 * model.config.slots
        ids[slots] = spec.bins_first
        after = model(ids, mask, _pixels(case, model))
    assert torch.equal(before, after)


def test_config_round_trip(model):
    data = json.loads(json.dumps(model.config.to_dict()))
    assert DecoderConfig.from_dict(data) == model.config
