"""The decoder with its loss: what one training step computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dtvla_ros.policy.decoder import HybridDecoder
from dtvla_ros.training.batches import Batch
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.losses import LossReport, OrdinalGroup, hybrid_loss


class Objective(nn.Module):
    """Maps a batch to its loss; logits are taken only at supervised rows.

    ``spans``: (first, last) ids of each ordered group of location words.
    """

    def __init__(self, model: HybridDecoder, config: SftConfig,
                 spans: Sequence[tuple[int, int]]):
        super().__init__()
        self.model = model
        self.places = [OrdinalGroup(first, last, config.place_sigma, config.place_weight)
                       for first, last in spans]
        self.action_sigma = config.action_sigma
        self.thought_weight = config.thought_weight

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return token logits [R, V] and action logits [B, S, bins]."""
        hidden = self.model(batch.input_ids, batch.attention_mask, batch.pixels())  # [B, L, w]
        rows = torch.arange(self.model.config.slots, device=hidden.device)
        rows = batch.action_start[:, None] + rows  # [B, S]
        acting = hidden[torch.arange(len(rows), device=hidden.device)[:, None], rows]
        telling = hidden[batch.token_rows[0], batch.token_rows[1]]  # [R, w]
        return self.model.token_logits(telling), self.model.action_logits(acting)

    def forward(self, batch: Batch) -> LossReport:
        """Return the loss and what it is made of."""
        token_logits, action_logits = self.logits(batch)
        return hybrid_loss(
            token_logits, batch.token_targets, action_logits, batch.action_targets,
            batch.action_mask, places=self.places, action_sigma=self.action_sigma,
            thought_weight=self.thought_weight)
