"""Log-probs, policy loss and KL against the published recipe's numbers and plain definitions."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from support.decoders import by_sample, golden_decoder
from support.golden import document, tensors

from dtvla_ros.training.grpo.config import LossAggMode
from dtvla_ros.training.grpo.loss import (
    TokenBatch,
    kl_divergence,
    normalizers,
    policy_loss,
    sequence_log_probs,
)

MODES = get_args(LossAggMode)


def test_golden_log_probs():
    case, model = tensors('case_rl_logprob'), golden_decoder('random')
    prefix, actions, ids = case['in.input_ids'], case['in.responses'], model.config.ids
    tail = torch.tensor([[ids.action_end, ids.eos]]).expand(len(prefix), 2)
    real = torch.nn.functional.pad(case['in.attention_mask'], (0, actions.shape[1] + 2), value=1)
    window = case['out.cot_mask'].bool()
    end = prefix.shape[1]
    thought = slice(end - window.shape[1], end)
    mask = torch.zeros(real.shape, dtype=torch.bool)
    mask[:, thought] = window
    banned = torch.zeros(model.config.text.vocabulary, dtype=torch.bool)
    banned[[*range(ids.bins_first, ids.bins_last + 1), ids.eos]] = True  # as published
    with torch.no_grad():
        found, _ = sequence_log_probs(
            model, TokenBatch(torch.cat([prefix, actions, tail], 1), real, mask),
            model.encode_images(by_sample(case['in.pixel_values'], model)),
            banned=banned, action_temperature=1.6)
    width = mask.shape[1]
    torch.testing.assert_close(found[:, thought], case['clean.cot_logprob'], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, width:], case['clean.action_logprob'], atol=1e-4, rtol=0)
    assert not found[:, :width][~mask].any()


@pytest.fixture(scope='module')
def data() -> dict:
    """Return verl's numbers for a batch of eight sequences."""
    return {name: torch.tensor(value) if isinstance(value, list) and name != 'uid' else value
            for name, value in document('rl_math').items()}


@pytest.mark.parametrize('mode', MODES)
def test_golden_policy_loss(data, mode):
    mask = data['mask'].bool()
    lengths = mask.sum(1).double()
    loss, diagnostics = policy_loss(
        data['log_prob'], data['old_log_prob'], data['advantages'], mask,
        normalizers(mode, float(mask.sum()), len(mask), lengths), epsilon=data['clip_low'],
        epsilon_high=data['clip_high'], clip_ratio_c=data['clip_c'])
    wanted = data[f'policy_loss/{mode}']
    assert loss.item() == pytest.approx(wanted['loss'], rel=1e-5, abs=1e-6)
    for mine, name in (('clip_fraction', 'clipfrac'), ('lower_clip_fraction', 'clipfrac_lower'),
                       ('approximate_kl', 'approx_kl')):
        found = diagnostics[mine][mask].float().mean().item()
        assert found == pytest.approx(wanted[name], rel=1e-5, abs=1e-6)


def test_golden_kl(data):
    torch.testing.assert_close(kl_divergence(data['log_prob'], data['ref_log_prob']),
                               data['kl/low_var_kl'], atol=1e-6, rtol=1e-5)
    far = kl_divergence(torch.tensor([0.0, -900.0, 5.0]), torch.tensor([30.0, 0.0, 5.0]))
    assert far.tolist() == [10.0, 10.0, 0.0]


@pytest.mark.parametrize(('change', 'advantage', 'loss', 'slope', 'clipped', 'bounded'), [
    (1.5, 2.0, -2.56, 0.0, 1.0, 0.0),  # 1.28
    (0.5, 2.0, -1.0, -1.0, 0.0, 0.0),  # worse already: the gradient stays
    (0.5, -2.0, 1.6, 0.0, 1.0, 0.0),   # 0.8
    (math.exp(500.0), -2.0, 6.0, 0.0, 0.0, 1.0)])  # 3.0, the dual clip
def test_one_token(change, advantage, loss, slope, clipped, bounded):
    log_prob = torch.full((1, 1), math.log(change), requires_grad=True)
    one = torch.ones(1, 1)
    found, diagnostics = policy_loss(log_prob, 0 * one, advantage * one, one, one[0])
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert log_prob.grad.item() == pytest.approx(slope, rel=1e-5)
    assert diagnostics['clip_fraction'].item() == clipped
    assert diagnostics['lower_clip_fraction'].item() == bounded


@pytest.mark.parametrize('mode', MODES)
def test_pads_count_for_nothing_and_slices_add_up(mode):
    rng = np.random.default_rng(1)
    new, old, advantage = (torch.tensor(rng.normal(size=(4, 5)), dtype=torch.float32)
                           for _ in range(3))
    mask = torch.tensor(rng.random((4, 5)) < 0.6)
    mask[2] = False
    new.requires_grad_()
    normalizer = normalizers(mode, float(mask.sum()), 4.0, mask.sum(1).double())
    whole, _ = policy_loss(new, old, advantage, mask, normalizer)
    spoilt = [t.masked_fill(~mask, float('nan')) for t in (new, old, advantage)]
    parts = sum(policy_loss(*(t[k:k + 2] for t in (*spoilt, mask, normalizer)))[0] for k in (0, 2))
    torch.testing.assert_close(parts, whole)
    for loss in (whole, parts):
        gradient, = torch.autograd.grad(loss, new)
        assert torch.isfinite(gradient).all() and not gradient[~mask].any()
