"""The loss of fine-tuning: one cross-entropy over the thought and the actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class OrdinalGroup:
    """Ids ``first .. last`` whose neighbours mean nearly the same.

    The target of such an id is a Gaussian of ``sigma`` ids around it, within the group
    (0: one-hot); ``weight`` counts its tokens that many times.
    """

    first: int
    last: int
    sigma: float
    weight: float = 1.0


def ordinal_cross_entropy(
    logits: Tensor, targets: Tensor, groups: Sequence[OrdinalGroup] = (),
) -> Tensor:
    """Cross-entropy per row, [R, V] against ids [R] -> [R] in nats, float32.

    Rows whose target lies in a group get that group's smoothed target:
    -sum_j w_j log p_j with w_j proportional to exp(-(j - target)^2 / (2 sigma^2)), summing to 1.
    """
    logp = logits.float().log_softmax(-1)  # [R, V]
    losses = -logp.gather(1, targets[:, None])[:, 0]
    for group in groups:
        if group.sigma <= 0.0:
            continue
        rows = ((targets >= group.first) & (targets <= group.last)).nonzero()[:, 0]
        ids = torch.arange(group.first, group.last + 1, device=logits.device)
        away = (ids - targets[rows, None]).float()  # [r, G]
        weight = (-0.5 * (away / group.sigma) ** 2).softmax(-1)
        smooth = -(weight * logp[rows, group.first:group.last + 1]).sum(-1)
        losses = losses.index_put((rows,), smooth)
    return losses


def token_weights(
    targets: Tensor, base: float, groups: Sequence[OrdinalGroup],
) -> Tensor:
    """Return the weight [R] of each target id: ``base``, times its group's weight."""
    weights = torch.full(targets.shape, base, device=targets.device)
    for group in groups:
        inside = (targets >= group.first) & (targets <= group.last)
        weights = torch.where(inside, weights * group.weight, weights)
    return weights


@dataclass(frozen=True, slots=True)
class LossReport:
    """The loss to minimise and what it is made of (detached scalars).

    ``thought`` and ``action``: plain means of their cross-entropies [nats].
    ``words``, ``places``: share of right thought words and of right location words;
    ``bins``: mean distance of the chosen action bin from the right one. ``seen``: share of all
    things in the picture placed within a word by the grounding head (nan without one);
    ``pointed``: share of attention on the named thing's patch (nan without pointing).
    """

    loss: Tensor
    thought: Tensor
    action: Tensor
    words: Tensor
    places: Tensor
    bins: Tensor
    seen: Tensor
    pointed: Tensor

    def numbers(self) -> list[float]:
        """Return all of it in this order, waiting for the device once."""
        return torch.stack([getattr(self, f.name).detach().float() for f in fields(self)]).tolist()


def hybrid_loss(
    token_logits: Tensor, token_targets: Tensor, action_logits: Tensor, action_targets: Tensor,
    action_mask: Tensor, *, places: Sequence[OrdinalGroup], action_sigma: float = 0.0,
    thought_weight: float = 1.0, divisor: Tensor | None = None,
) -> LossReport:
    """Weighted mean over every supervised token of one cross-entropy.

    ``token_logits`` [R, V] and ``token_targets`` [R]: thought words and tags.
    ``action_logits`` [B, S, bins], ``action_targets`` [B, S] counted from the first bin,
    ``action_mask`` [B, S] False where the chunk is padding. With all weights 1 and all sigmas
    0 this is the published mean over CoT, tags and actions. ``divisor``: the sum of all weights
    that the mean is taken over, where this batch is only a part of it.
    """
    bins = action_logits.shape[-1]
    tokens = ordinal_cross_entropy(token_logits, token_targets, places)  # [R]
    weights = token_weights(token_targets, thought_weight, places)
    group = [OrdinalGroup(0, bins - 1, action_sigma)]
    actions = ordinal_cross_entropy(
        action_logits.reshape(-1, bins), action_targets.reshape(-1), group)  # [B * S]
    real = action_mask.reshape(-1).float()
    total = (tokens * weights).sum() + (actions * real).sum()
    if divisor is None:
        divisor = (weights.sum() + real.sum()).clamp_min(1.0)
    loss = total / divisor
    with torch.no_grad():
        right = (token_logits.argmax(-1) == token_targets).float()
        place = torch.zeros_like(right)
        for span in places:
            place[(token_targets >= span.first) & (token_targets <= span.last)] = 1.0
        off = (action_logits.argmax(-1) - action_targets).abs().reshape(-1).float()
        return LossReport(
            loss=loss, thought=tokens.sum() / max(len(tokens), 1),
            action=(actions * real).sum() / real.sum().clamp_min(1.0),
            words=right.sum() / max(len(right), 1),
            places=(right * place).sum() / place.sum().clamp_min(1.0),
            bins=(off * real).sum() / real.sum().clamp_min(1.0),
            seen=torch.full((), float('nan')), pointed=torch.full((), float('nan')))
