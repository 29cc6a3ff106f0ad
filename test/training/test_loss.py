"""The hybrid loss against a plain computation, one token at a time, and its learning rate."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from support.golden import document

from dtvla_ros.training.config import warm_cosine
from dtvla_ros.training.loss import OrdinalGroup, hybrid_loss


def plain(logits, target, group):
    """Cross-entropy of one row [V] by the formula of the docstring."""
    logp = log_softmax(logits.astype(np.float64))
    if not group.sigma or not group.first <= target <= group.last:
        return -logp[target]
    weights = {j: math.exp(-(j - target) ** 2 / (2 * group.sigma ** 2))
               for j in range(group.first, group.last + 1)}
    return -sum(w / sum(weights.values()) * logp[j] for j, w in weights.items())


@pytest.mark.parametrize(('words', 'sigma', 'weight', 'thought'), [
    (40, 1.5, 3.0, 2.0), (9, 0.0, 1.0, 1.0), (0, 0.0, 1.0, 1.0)],
    ids=['smoothed', 'published', 'no thought'])
def test_all_tokens_share_one_mean(words, sigma, weight, thought):
    """Without weights and smoothing it is the published mean, in its gradient too."""
    rng = np.random.default_rng(1)
    tokens, bins = (rng.normal(size=size).astype(np.float32) for size in ((words, 50), (3, 4, 16)))
    said, right = rng.integers(0, 50, words), rng.integers(0, 16, (3, 4))
    mask = rng.random((3, 4)) < 0.7
    groups = [OrdinalGroup(10, 20, sigma, weight), OrdinalGroup(30, 49, sigma, 1.0)]
    weights = np.where((said >= 10) & (said <= 20), thought * weight, thought)
    total = sum(w * plain(row, target, groups[int(target >= 30)])
                for row, target, w in zip(tokens, said, weights, strict=True))
    total += sum(plain(bins[b, s], right[b, s], OrdinalGroup(0, 15, sigma))
                 for b, s in np.argwhere(mask))
    inputs = [torch.tensor(x, requires_grad=True) for x in (tokens, bins)]
    loss, _ = hybrid_loss(
        inputs[0], torch.tensor(said), inputs[1], torch.tensor(right), torch.tensor(mask),
        locations=groups, action_sigma=sigma, thought_weight=thought)
    assert loss.item() == pytest.approx(total / (weights.sum() + mask.sum()), abs=1e-5)
    if not sigma:
        cross = torch.nn.functional.cross_entropy
        wanted = (cross(inputs[0], torch.tensor(said), reduction='sum') + cross(
            inputs[1][mask], torch.tensor(right[mask]), reduction='sum')) / (words + mask.sum())
        for a, b in zip(*(torch.autograd.grad(x, inputs) for x in (loss, wanted)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_published_schedule_is_a_warm_cosine_that_falls_after_the_warm_up():
    data = document('lr_schedule')
    total, warmup, floor = data['total'], data['warmup'], data['min_lr'] / data['base_lr']
    found = {step: warm_cosine(int(step), warmup + 1, max(int(step) - warmup, 0)
                               / (total - warmup), floor) for step in ('0', *data['factor'])}
    assert found == pytest.approx(data['factor'] | {'0': data['init_rate']}, abs=1e-9)
    assert warm_cosine(99, 200, 0.5, 0.02) == pytest.approx(0.5 * (0.02 + 0.98 * 0.5))
    assert warm_cosine(9999, 200, 1.3, 0.02) == pytest.approx(0.02)
    assert warm_cosine(0, 0, 0.0, 0.1) == 1.0
