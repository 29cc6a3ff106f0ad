"""The hybrid loss against a plain computation, one token at a time, and its learning rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from support.golden import document

from dtvla_ros.training.config import warm_cosine
from dtvla_ros.training.loss import OrdinalGroup, hybrid_loss, ordinal_cross_entropy


def plain(logits, target, group=None):
    """Cross-entropy of one row [V] by the formula of the docstring."""
    logp = log_softmax(logits.astype(np.float64))
    if group is None or not group.first <= target <= group.last:
        return -logp[target]
    weights = {j: math.exp(-(j - target) ** 2 / (2 * group.sigma ** 2))
               for j in range(group.first, group.last + 1)}
    total = sum(weights.values())
    return -sum(w / total * logp[j] for j, w in weights.items())


def test_each_row_follows_the_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 30)).astype(np.float32)
    targets = rng.integers(0, 30, 40)
    groups = [OrdinalGroup(5, 12, 1.0), OrdinalGroup(20, 29, 2.0)]
    got = ordinal_cross_entropy(torch.tensor(logits), torch.tensor(targets), groups)
    for row, target, value in zip(logits, targets, got, strict=True):
        group = next((g for g in groups if g.first <= target <= g.last), None)
        assert float(value) == pytest.approx(plain(row, target, group), abs=1e-5)


def test_all_tokens_share_one_mean():
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(9, 50)).astype(np.float32)
    said = rng.integers(0, 50, 9)
    bins = rng.normal(size=(3, 4, 16)).astype(np.float32)
    right = rng.integers(0, 16, (3, 4))
    mask = rng.random((3, 4)) < 0.7
    location = OrdinalGroup(10, 20, 1.5, 3.0)
    action = OrdinalGroup(0, 15, 2.0)
    total = weight = 0.0
    for row, target in zip(tokens, said, strict=True):
        w = 2.0 * (3.0 if 10 <= target <= 20 else 1.0)
        total += w * plain(row, target, location)
        weight += w
    for b, s in np.argwhere(mask):
        total += plain(bins[b, s], right[b, s], action)
        weight += 1.0
    loss, _ = hybrid_loss(
        torch.tensor(tokens), torch.tensor(said), torch.tensor(bins), torch.tensor(right),
        torch.tensor(mask), locations=[location], action_sigma=2.0, thought_weight=2.0)
    assert float(loss) == pytest.approx(total / weight, abs=1e-5)


def test_without_weights_and_smoothing_it_is_the_published_mean():
    rng = np.random.default_rng(2)
    tokens, bins = (torch.tensor(rng.normal(size=s), requires_grad=True)
                    for s in ((5, 30), (2, 3, 8)))
    said, right = torch.tensor(rng.integers(0, 30, 5)), torch.tensor(rng.integers(0, 8, (2, 3)))
    loss, _ = hybrid_loss(
        tokens, said, bins, right, torch.ones(2, 3, dtype=torch.bool), locations=[])
    cross = torch.nn.functional.cross_entropy
    wanted = (cross(tokens, said, reduction='sum')
              + cross(bins.reshape(-1, 8), right.reshape(-1), reduction='sum')) / 11
    torch.testing.assert_close(loss, wanted.float())
    got = torch.autograd.grad(loss, (tokens, bins))
    for a, b in zip(got, torch.autograd.grad(wanted, (tokens, bins)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_batch_without_thoughts_still_learns_actions():
    loss, _ = hybrid_loss(
        torch.zeros(0, 30), torch.zeros(0, dtype=torch.long), torch.zeros(2, 3, 8),
        torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool), locations=[])
    assert float(loss) == pytest.approx(math.log(8))


def test_the_published_schedule_is_a_warm_cosine_that_falls_after_the_warm_up():
    data = document('lr_schedule')
    total, warmup, floor = data['total'], data['warmup'], data['min_lr'] / data['base_lr']

    def published(step):
        return warm_cosine(step, warmup + 1, max(step - warmup, 0) / (total - warmup), floor)
    for step, factor in data['factor'].items():
        assert published(int(step)) == pytest.approx(factor, abs=1e-9), step
    assert published(0) == pytest.approx(data['init_rate'], abs=1e-12)


def test_the_rate_warms_up_and_falls():
    assert warm_cosine(0, 200, 0.0, 0.02) == pytest.approx(1 / 200)
    assert warm_cosine(99, 200, 0.5, 0.02) == pytest.approx(0.5 * (0.02 + 0.98 * 0.5))
    assert warm_cosine(9999, 200, 1.3, 0.02) == pytest.approx(0.02)
    assert warm_cosine(0, 0, 0.0, 0.1) == 1.0
