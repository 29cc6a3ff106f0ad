"""The losses of reinforcement learning, on log-probs per token.

Shapes: N sequences of n tokens, padded; every ``mask`` [N, n] is 1 (or True) at real tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtvla_ros.errors import UserError

AGGREGATIONS = ('token-mean', 'seq-mean-token-sum', 'seq-mean-token-mean')
ESTIMATORS = ('k1', 'abs', 'k2', 'k3')
LOG_RATIO_LIMIT = 20.0  # exp of more is infinite in the end, and its gradient NaN


def aggregate(values: Tensor, mask: Tensor, mode: str, total: float | None = None) -> Tensor:
    """Return the scalar mean of ``values`` [N, n] over the real tokens.

    'token-mean': over all tokens alike. 'seq-mean-token-sum': of each sequence's sum, so long
    sequences weigh more. 'seq-mean-token-mean': of each sequence's mean. The names are verl's
    (``core_algos.agg_loss``). ``total``: number of tokens ('token-mean') or of sequences to
    divide by, where the batch is back-propagated in slices whose losses are added; by default
    those of ``values``.
    """
    if mode not in AGGREGATIONS:
        raise UserError(f'aggregation {mode!r} is none of {", ".join(AGGREGATIONS)}')
    real = mask.to(values.dtype)
    kept = values.masked_fill(real == 0, 0.0)  # what a pad holds may be anything
    if mode == 'token-mean':
        return kept.sum() / (real.sum().clamp_min(1.0) if total is None else total)
    rows = kept.sum(1)  # [N]
    if mode == 'seq-mean-token-mean':
        rows = rows / real.sum(1).clamp_min(1.0)
    return rows.sum() / (len(rows) if total is None else total)


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss to minimise and what it is made of (detached scalars).

    ``clip_fraction``: share of tokens where the clipped term was the larger loss, so that they
    give no gradient; ``lower_clip_fraction``: share where the dual clip bounded the loss;
    ``approximate_kl``: mean of old minus new log-prob [nats].
    """

    loss: Tensor
    clip_fraction: Tensor
    lower_clip_fraction: Tensor
    approximate_kl: Tensor


def policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, *,
                clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float = 3.0,
                mode: str = 'token-mean', total: float | None = None) -> PolicyLoss:
    """Return the dual-clip PPO loss; all tensors [N, n], ``log_probs`` with gradient.

    With r = exp(new - old log-prob) and A the advantage, a token's loss is

        L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high));  min(L, -A dual_clip) if A < 0.

    Clipping: Schulman et al. 2017 (arXiv 1707.06347), the higher upper bound Yu et al. 2025
    (DAPO, arXiv 2503.14476), the dual clip Ye et al. 2020 (arXiv 1912.09729). ``mode`` and
    ``total``: see ``aggregate``.
    """
    if not dual_clip > 1.0:
        raise UserError(f'dual_clip must be above 1, got {dual_clip}')
    change = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)
    ratio = change.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    plain = -advantages * ratio  # [N, n]
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    upper = torch.maximum(plain, clipped)
    bound = -advantages * dual_clip
    worse = advantages < 0
    losses = torch.where(worse, torch.minimum(upper, bound), upper)
    with torch.no_grad():
        def share(where: Tensor) -> Tensor:
            return aggregate(where.to(losses.dtype), mask, 'token-mean')

        diagnostics = (share(clipped > plain), share((upper > bound) & worse),
                       aggregate(-change, mask, 'token-mean'))
    return PolicyLoss(aggregate(losses, mask, mode, total), *diagnostics)


def kl_estimate(log_probs: Tensor, reference: Tensor, kind: str = 'k3',
                limit: float = 10.0) -> Tensor:
    """Estimate KL(policy || reference) per token from tokens the policy drew; any one shape.

    With d = policy minus reference log-prob: 'k1' d; 'abs' |d|; 'k2' d^2 / 2; 'k3'
    exp(-d) + d - 1, clipped to +-``limit``. k1..k3: Schulman 2020, "Approximating KL
    divergence"; k3 is unbiased, and never negative.
    """
    if kind not in ESTIMATORS:
        raise UserError(f'KL estimator {kind!r} is none of {", ".join(ESTIMATORS)}')
    d = log_probs - reference
    if kind == 'k1':
        return d
    if kind == 'abs':
        return d.abs()
    if kind == 'k2':
        return 0.5 * d ** 2
    back = (-d).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (back.exp() - back - 1.0).clamp(-limit, limit)
