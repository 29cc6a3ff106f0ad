"""The decoder against the golden vectors of the published class, and against itself padded."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoders import by_sample, golden_decoder, images, padded, sequence, small_decoder
from support.golden import document, golden, tensors

from dtvla_ros.policy.attention import sequence_mask
from dtvla_ros.policy.checkpoint import our_name
from dtvla_ros.policy.model import HybridDecoder


@pytest.fixture(scope='module')
def model() -> HybridDecoder:
    return golden_decoder('random')


def _close(mine: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(mine, wanted, atol=atol, rtol=0)


def _losses(model: HybridDecoder, case: dict, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    labels = case['in.labels'][:, 1:]
    logits = model.token_logits(hidden[:, :-1])
    rows = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction='none').view(labels.shape)
    ids = model.config.ids
    action = (labels >= ids.bins_first) & (labels <= ids.bins_last)
    text = (labels != -100) & ~action
    return rows, rows.sum() / (labels != -100).sum(), rows[text].mean(), rows[action].mean()


def _watched(model: HybridDecoder, ids: torch.Tensor, mask: torch.Tensor,
             pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return what enters each layer and leaves the last norm, and the positions."""
    entered: list[tuple] = []
    hooks = [layer.register_forward_pre_hook(
        lambda _, inputs, named: entered.append((inputs[0], named['position_ids'])),
        with_kwargs=True) for layer in model.layers]
    with torch.no_grad():
        out = model(ids, mask, pixels)
    for hook in hooks:
        hook.remove()
    return [x for x, _ in entered] + [out], entered[0][1]


def test_training_forward_loss_and_gradients(model):
    case = tensors('case_train_nopad')
    ids, mask = case['in.input_ids'], case['in.attention_mask']
    pixels = by_sample(case['in.pixel_values'], model)
    assert torch.equal(sequence_mask(ids, mask, model.config.ids), case['mask.visible'].bool())
    features = model.encode_images(pixels)
    scale = model.config.text.width ** 0.5
    _close(features.view(case['image_features'].shape) / scale, case['image_features'])
    seen, positions = _watched(model, ids, mask, pixels)
    _close(seen[0] / scale, case['in.inputs_embeds'])
    assert torch.equal(positions, case['position_ids'].expand_as(positions))
    model.zero_grad()
    hidden, row = model(ids, mask, pixels), case['out.rows']
    _close(model.token_logits(hidden)[row[:, 0], row[:, 1]], case['out.logits_rows'])
    bins = model.action_logits(hidden)
    span = slice(model.config.ids.bins_first, model.config.ids.bins_last + 1)
    torch.testing.assert_close(bins, model.token_logits(hidden)[..., span])
    rows, loss, text, action = _losses(model, case, hidden)
    _close(-rows, case['out.label_logprob'])
    for mine, name in ((loss, 'loss'), (text, 'loss_text'), (action, 'loss_action')):
        _close(mine, case[f'out.{name}'][0])
    loss.backward()
    total = torch.stack([p.grad.double().norm() for p in model.parameters()]).norm()
    torch.testing.assert_close(total, case['out.grad_norm'][0], atol=0, rtol=1e-3)
    named = dict(model.named_parameters())
    wanted = {name: t for name, t in case.items() if name.startswith('grad.')}
    assert wanted
    for name, want in wanted.items():
        grad = named[our_name(name.removeprefix('grad.'))].grad
        torch.testing.assert_close(grad, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())
    model.zero_grad()


def test_padded_batch_gives_the_unpadded_numbers(model):
    case = tensors('case_train_pad')
    pixels = by_sample(case['in.pixel_values'], model)
    with torch.no_grad():
        hidden = model(case['in.input_ids'], case['in.attention_mask'], pixels)
        features = model.encode_images(pixels)
    _close(features.view(case['image_features'].shape) / model.config.text.width ** 0.5,
           case['image_features'])
    rows, loss, *_ = _losses(model, case, hidden)
    _close(-rows, case['clean.label_logprob'])
    _close(loss, case['clean.loss'][0])
    row = case['out.text_rows']
    _close(model.token_logits(hidden[row[:, 0], row[:, 1]]), case['clean.logits_text_rows'])


def test_action_pass_layer_by_layer(model):
    case = tensors('case_action_pass')
    prefix, spec = case['in.input_ids'], model.config.ids
    assert int(case['action_start_idx'][0]) == prefix.shape[1] - 1
    slots = prefix.new_full((1, model.config.slots), spec.bins_first)
    ids = torch.cat([prefix, slots, prefix.new_tensor([[spec.action_end, spec.eos]])], 1)
    mask = torch.ones_like(ids)
    assert torch.equal(sequence_mask(ids, mask, spec), case['mask.visible'].bool())
    seen, positions = _watched(model, ids, mask, by_sample(case['in.pixel_values'], model))
    assert torch.equal(positions, case['position_ids'])
    _close(seen[0] / model.config.text.width ** 0.5, case['in.inputs_embeds'])
    _close(torch.cat(seen), case['hidden_states'])


@pytest.mark.parametrize('kv_heads', [1, 2])
@settings(max_examples=25, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12), st.integers(0, 8)),
                       min_size=1, max_size=4),
       right=st.integers(0, 8), image_size=st.sampled_from([28, 42]),
       seed=st.integers(0, 2 ** 16))
def test_ragged_batches_give_the_numbers_of_one_at_a_time(kv_heads, shapes, right, image_size,
                                                          seed):
    model = small_decoder(kv_heads, image_size)
    rng, pad = np.random.default_rng(seed), model.config.ids.pad
    rows = [sequence(model.config, rng, words, thought) for words, thought, _ in shapes]
    left = [shape[2] for shape in shapes]
    ids, mask = padded(rows, left, max(map(len, rows)) + max(left) + right, pad)
    pixels = images(model.config, rng, len(rows))
    with torch.no_grad():
        batch = model(ids, mask, pixels)
        for k, (row, first) in enumerate(zip(rows, left, strict=True)):
            alone = model(*padded([row], [0], len(row), pad), pixels[k:k + 1])
            _close(batch[k, first:first + len(row)], alone[0])


def test_labels_in_the_slots_do_not_leak(model):
    case, spec = tensors('case_train_nopad'), model.config.ids
    ids = case['in.input_ids']
    slots = (ids >= spec.bins_first) & (ids <= spec.bins_last)
    assert slots.sum() == len(ids) * model.config.slots
    mask, pixels = case['in.attention_mask'], by_sample(case['in.pixel_values'], model)
    with torch.no_grad():
        before, after = (model(x, mask, pixels)
                         for x in (ids, ids.masked_fill(slots, spec.bins_first)))
    assert torch.equal(before, after)


def test_every_golden_file_is_the_one_that_was_dumped():
    for name, digest in document('sha256').items():
        assert hashlib.sha256(golden(name).read_bytes()).hexdigest() == digest, name
