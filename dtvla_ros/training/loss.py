"""The loss of fine-tuning: one cross-entropy over the thought and the actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.training.collate import Batch
from dtvla_ros.training.config import SftConfig

Metrics = dict[str, Tensor]


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

    def holds(self, ids: Tensor) -> Tensor:
        """Return where ``ids`` lie in the group, bool of their shape."""
        return (ids >= self.first) & (ids <= self.last)


def ordinal_cross_entropy(logits: Tensor, targets: Tensor,
                          groups: Sequence[OrdinalGroup] = ()) -> Tensor:
    """Cross-entropy per row, [R, V] against ids [R] -> [R] in nats, float32.

    Rows whose target lies in a group get that group's smoothed target:
    -sum_j w_j log p_j with w_j proportional to exp(-(j - target)^2 / (2 sigma^2)), summing to 1.
    """
    logp = logits.float().log_softmax(-1)  # [R, V]
    losses = -logp.gather(1, targets[:, None])[:, 0]
    for group in (group for group in groups if group.sigma > 0.0):
        rows = group.holds(targets).nonzero()[:, 0]
        ids = torch.arange(group.first, group.last + 1, device=logits.device)
        away = (ids - targets[rows, None]).float()  # [r, G]
        weight = (-0.5 * (away / group.sigma) ** 2).softmax(-1)
        smooth = -(weight * logp[rows, group.first:group.last + 1]).sum(-1)
        losses = losses.index_put((rows,), smooth)
    return losses


def token_weights(targets: Tensor, base: float, groups: Sequence[OrdinalGroup]) -> Tensor:
    """Return the weight [R] of each target id: ``base``, times its group's weight."""
    weights = torch.full(targets.shape, base, device=targets.device)
    for group in groups:
        weights = torch.where(group.holds(targets), weights * group.weight, weights)
    return weights


def hybrid_loss(token_logits: Tensor, token_targets: Tensor, action_logits: Tensor,
                action_targets: Tensor, action_mask: Tensor, *, locations: Sequence[OrdinalGroup],
                action_sigma: float = 0.0, thought_weight: float = 1.0,
                divisor: Tensor | None = None) -> tuple[Tensor, Metrics]:
    """Weighted mean over every supervised token of one cross-entropy.

    ``token_logits`` [R, V] and ``token_targets`` [R]: thought tokens and tags. ``action_logits``
    [B, S, bins], ``action_targets`` [B, S] counted from the first bin, ``action_mask`` [B, S]
    False where the chunk is padding. With all weights 1 and all sigmas 0 this is the published
    mean over CoT, tags and actions. ``divisor``: the sum of weights of a whole of which this batch
    is a part.

    Metrics, detached: ``thought`` and ``action``, plain means of their cross-entropies [nats];
    ``tokens`` and ``locations``, shares of right thought and location tokens; ``bins``, mean
    distance of the chosen action bin from the right one.
    """
    bins = action_logits.shape[-1]
    tokens = ordinal_cross_entropy(token_logits, token_targets, locations)  # [R]
    weights = token_weights(token_targets, thought_weight, locations)
    actions = ordinal_cross_entropy(
        action_logits.reshape(-1, bins), action_targets.reshape(-1),
        [OrdinalGroup(0, bins - 1, action_sigma)])  # [B * S]
    real = action_mask.reshape(-1).float()
    total = (tokens * weights).sum() + (actions * real).sum()
    if divisor is None:
        divisor = (weights.sum() + real.sum()).clamp_min(1.0)
    with torch.no_grad():
        right = (token_logits.argmax(-1) == token_targets).float()
        location = torch.zeros_like(right)
        for span in locations:
            location[span.holds(token_targets)] = 1.0
        off = (action_logits.argmax(-1) - action_targets).abs().reshape(-1).float()
        metrics = {
            'thought': tokens.sum() / max(len(tokens), 1),
            'action': (actions * real).sum() / real.sum().clamp_min(1.0),
            'tokens': right.sum() / max(len(right), 1),
            'locations': (right * location).sum() / location.sum().clamp_min(1.0),
            'bins': (off * real).sum() / real.sum().clamp_min(1.0)}
    return total / divisor, metrics


class Objective(nn.Module):
    """Maps a batch to its loss; logits are taken only at supervised rows.

    ``spans``: (first, last) ids of each ordered group of location tokens. ``auxiliary``: modules
    that map a batch and its image rows [B, image_tokens, w], after the decoder's pass, to a loss,
    of which the sum takes their ``weight``, and metrics.
    """

    # What FSDP shards one by one.
    _no_split_modules = ('GemmaDecoderLayer', 'SiglipEncoderLayer')

    def __init__(self, model: HybridDecoder, config: SftConfig,
                 spans: Sequence[tuple[int, int]] = (),
                 auxiliary: Mapping[str, nn.Module] | None = None):
        super().__init__()
        self.model = model
        self.auxiliary = nn.ModuleDict(auxiliary or {})
        self.locations = [OrdinalGroup(first, last, config.place_sigma, config.place_weight)
                          for first, last in spans]
        self.config = config

    def forward(self, batch: Batch, divisor: Tensor | None = None,
                share: float = 1.0) -> tuple[Tensor, Metrics]:
        """Return the loss and its metrics.

        ``divisor``: the ``weight`` of the whole step; ``share``: this part's of the auxiliary
        losses.
        """
        features = self.model.encode_images(batch.pixels())  # [B, image_tokens, w]
        hidden = self.model.read(batch.input_ids, batch.attention_mask, features)  # [B, L, w]
        token_logits, action_logits = self.logits(batch, hidden)
        loss, metrics = hybrid_loss(
            token_logits, batch.token_targets, action_logits, batch.action_targets,
            batch.action_mask, locations=self.locations, action_sigma=self.config.action_sigma,
            thought_weight=self.config.thought_weight, divisor=divisor)
        for auxiliary in cast(Any, self.auxiliary).values():
            extra, more = auxiliary(batch, features)
            loss, metrics = loss + share * auxiliary.weight * extra, metrics | more
        return loss, metrics

    def logits(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return token logits [R, V] and action logits [B, S, bins] of ``hidden`` [B, L, w]."""
        slots = batch.action_start[:, None] + torch.arange(
            self.model.config.slots, device=hidden.device)  # [B, S]
        acting = hidden[torch.arange(len(slots), device=hidden.device)[:, None], slots]
        thinking = hidden[batch.token_rows[0], batch.token_rows[1]]  # [R, w]
        return self.model.token_logits(thinking), self.model.action_logits(acting)

    def weight(self, batch: Batch) -> Tensor:
        """Return the sum of the weights of everything the batch supervises."""
        tokens = token_weights(batch.token_targets, self.config.thought_weight, self.locations)
        return tokens.sum() + batch.action_mask.sum()
