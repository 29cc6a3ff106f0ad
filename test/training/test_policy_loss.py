"""Advantages, policy losses and KL estimates against the published recipe's numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.golden import document

from dtvla_ros.errors import UserError
from dtvla_ros.training.grpo.advantage import group_advantages, scores
from dtvla_ros.training.grpo.loss import AGGREGATIONS, aggregate, kl_estimate, policy_loss

KL_NAMES = {'k1': 'kl', 'abs': 'abs', 'k2': 'mse', 'k3': 'low_var_kl'}


@pytest.fixture(scope='module')
def data() -> dict:
    return document('rl_math')


def _tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _close(mine, wanted, atol: float = 1e-6) -> None:
    torch.testing.assert_close(mine, _tensor(wanted), atol=atol, rtol=1e-5)


def test_golden_scores_and_advantages(data):
    found = scores(_tensor(data['acc']), _tensor(data['format']), data['acc_coef'],
                   data['format_coef'])
    _close(found, data['score'])
    names = sorted(set(data['uid']))
    groups = torch.tensor([names.index(uid) for uid in data['uid']])
    advantages = group_advantages(found, groups)
    _close(advantages[:, None] * _tensor(data['mask']), data['advantages'], 1e-5)


@pytest.mark.parametrize('mode', AGGREGATIONS)
def test_golden_policy_loss(data, mode):
    log_probs = _tensor(data['log_prob'])
    found = policy_loss(
        log_probs, _tensor(data['old_log_prob']), _tensor(data['advantages']),
        _tensor(data['mask']), clip_low=data['clip_low'], clip_high=data['clip_high'],
        dual_clip=data['clip_c'], mode=mode)
    wanted = data[f'policy_loss/{mode}']
    _close(found.loss, wanted['loss'])
    _close(found.clip_fraction, wanted['clipfrac'])
    _close(found.lower_clip_fraction, wanted['clipfrac_lower'])
    _close(found.approximate_kl, wanted['approx_kl'])


@pytest.mark.parametrize('kind', KL_NAMES)
def test_golden_kl(data, kind):
    found = kl_estimate(_tensor(data['log_prob']), _tensor(data['ref_log_prob']), kind)
    _close(found, data[f'kl/{KL_NAMES[kind]}'])


def test_k3_is_clipped():
    far = kl_estimate(_tensor([0.0, -900.0, 5.0]), _tensor([30.0, 0.0, 5.0]))
    assert far.tolist() == [10.0, 10.0, 0.0]


@pytest.mark.parametrize(('baseline', 'plain'), [
    ('rloo', lambda own, others: own - np.mean(others)),
    ('dr_grpo', lambda own, others: own - np.mean([own, *others])),
    ('grpo', lambda own, others: (own - np.mean([own, *others])) / (
        np.std([own, *others], ddof=1) + 1e-6))])
def test_baselines(baseline, plain):
    values = [1.4, 0.2, 0.4, 1.0, 0.0, 1.4, 0.9]
    groups = [5, 9, 5, 5, 9, 9, 9]
    found = group_advantages(_tensor(values), torch.tensor(groups), baseline)
    for k, value in enumerate(found.tolist()):
        others = [v for j, v in enumerate(values) if groups[j] == groups[k] and j != k]
        assert value == pytest.approx(plain(values[k], others), abs=1e-5)


def test_a_group_of_equals_has_no_advantage():
    found = group_advantages(torch.full((16,), 1.4), torch.arange(16) // 8)  # inexact mean of 8
    assert found.abs().max() < 1e-6


def _token(change: float, advantage: float, **options) -> tuple[float, float, object]:
    """Return loss, its gradient by the log-prob, and the report, of one token."""
    log_prob = torch.full((1, 1), change, requires_grad=True)
    report = policy_loss(log_prob, torch.zeros(1, 1), torch.full((1, 1), advantage),
                         torch.ones(1, 1), **options)
    report.loss.backward()
    return report.loss.item(), log_prob.grad.item(), report


@pytest.mark.parametrize(('change', 'advantage', 'loss', 'slope', 'clipped', 'bounded'), [
    (math.log(1.1), 2.0, -2.2, -2.2, 0.0, 0.0),
    (math.log(1.5), 2.0, -2.56, 0.0, 1.0, 0.0),   # 1.28
    (math.log(0.5), 2.0, -1.0, -1.0, 0.0, 0.0),   # worse already: the gradient stays
    (math.log(0.5), -2.0, 1.6, 0.0, 1.0, 0.0),    # 0.8
    (math.log(2.0), -2.0, 4.0, 4.0, 0.0, 0.0),
    (math.log(5.0), -2.0, 6.0, 0.0, 0.0, 1.0),    # 3.0, the dual clip
    (500.0, -2.0, 6.0, 0.0, 0.0, 1.0)])
def test_one_token(change, advantage, loss, slope, clipped, bounded):
    found, gradient, report = _token(change, advantage)
    assert found == pytest.approx(loss, rel=1e-5)
    assert gradient == pytest.approx(slope, rel=1e-5)
    assert report.clip_fraction.item() == clipped
    assert report.lower_clip_fraction.item() == bounded


@pytest.mark.parametrize('mode', AGGREGATIONS)
def test_slices_add_up_to_the_whole(mode):
    rng = np.random.default_rng(0)
    values = _tensor(rng.normal(size=(6, 9)))
    mask = torch.tensor(rng.random((6, 9)) < 0.6)
    total = float(mask.sum()) if mode == 'token-mean' else 6.0
    parts = sum(aggregate(values[k:k + 2], mask[k:k + 2], mode, total) for k in (0, 2, 4))
    torch.testing.assert_close(parts, aggregate(values, mask, mode))


def test_pads_count_for_nothing():
    rng = np.random.default_rng(1)
    new, old, advantage = (_tensor(rng.normal(size=(3, 5))) for _ in range(3))
    mask = torch.tensor(rng.random((3, 5)) < 0.6)
    mask[2] = False
    new.requires_grad_()
    plain = policy_loss(new, old, advantage, mask, mode='seq-mean-token-mean')
    spoilt = [t.masked_fill(~mask, float('nan')) for t in (new, old, advantage)]
    found = policy_loss(*spoilt, mask, mode='seq-mean-token-mean')
    for name in ('loss', 'clip_fraction', 'lower_clip_fraction', 'approximate_kl'):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name))
    for report in (plain, found):
        gradient, = torch.autograd.grad(report.loss, new)
        assert torch.isfinite(gradient).all() and not gradient[~mask].any()


def test_bad_choices_are_named():
    one = torch.ones(2)
    with pytest.raises(UserError, match="baseline 'ppo'"):
        group_advantages(one, one.long(), 'ppo')
    with pytest.raises(UserError, match='group 4 has one'):
        group_advantages(torch.ones(3), torch.tensor([1, 4, 1]))
    with pytest.raises(UserError, match='alike'):
        group_advantages(torch.ones(3), torch.ones(2))
    with pytest.raises(UserError, match="aggregation 'sum'"):
        aggregate(one[None], one[None], 'sum')
    with pytest.raises(UserError, match="KL estimator 'k4'"):
        kl_estimate(one, one, 'k4')
    with pytest.raises(UserError, match='dual_clip'):
        _token(0.0, 1.0, dual_clip=1.0)
