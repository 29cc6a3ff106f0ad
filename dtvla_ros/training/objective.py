"""The decoder with its loss: what one training step computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dtvla_ros.policy.decoder import HybridDecoder
from dtvla_ros.training.batches import Batch
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.grounding import PlaceHead, PlaceReport, place_loss
from dtvla_ros.training.losses import LossReport, OrdinalGroup, hybrid_loss


class Objective(nn.Module):
    """Maps a batch to its loss; logits are taken only at supervised rows.

    ``spans``: (first, last) ids of each ordered group of location words. ``things``: how many
    places the first camera's rows are asked for besides (0: none).
    """

    def __init__(self, model: HybridDecoder, config: SftConfig,
                 spans: Sequence[tuple[int, int]], things: int = 0):
        super().__init__()
        self.model = model
        self.head = PlaceHead(model.config.text.width, things) if things else None
        self.place_sigma = config.place_sigma
        self.grounding_weight = config.grounding_weight
        self.places = [OrdinalGroup(first, last, config.place_sigma, config.place_weight)
                       for first, last in spans]
        self.action_sigma = config.action_sigma
        self.thought_weight = config.thought_weight

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return token logits [R, V] and action logits [B, S, bins]."""
        return self._read(batch, self.model.encode_images(batch.pixels()))

    def _read(self, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.model.read(batch.input_ids, batch.attention_mask, features)  # [B, L, w]
        rows = torch.arange(self.model.config.slots, device=hidden.device)
        rows = batch.action_start[:, None] + rows  # [B, S]
        acting = hidden[torch.arange(len(rows), device=hidden.device)[:, None], rows]
        telling = hidden[batch.token_rows[0], batch.token_rows[1]]  # [R, w]
        return self.model.token_logits(telling), self.model.action_logits(acting)

    def seen(self, rows: Tensor, places: Tensor) -> PlaceReport:
        """Return how well ``places`` [B, E, 2] are read off the first camera's rows."""
        return place_loss(self.head(rows), places, self.place_sigma)

    def forward(self, batch: Batch) -> LossReport:
        """Return the loss and what it is made of."""
        features = self.model.encode_images(batch.pixels())  # [B, image_tokens, w]
        token_logits, action_logits = self._read(batch, features)
        report = hybrid_loss(
            token_logits, batch.token_targets, action_logits, batch.action_targets,
            batch.action_mask, places=self.places, action_sigma=self.action_sigma,
            thought_weight=self.thought_weight)
        if self.head is None:
            return report
        first = features[:, :self.model.config.vision.tokens[0]]
        seen = self.seen(first, batch.places)
        return replace(report, loss=report.loss + self.grounding_weight * seen.loss,
                       seen=seen.within_one)
