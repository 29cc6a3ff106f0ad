"""The decoder with its loss: what one training step computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer

from dtvla_ros.errors import UserError
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.training.auxiliary.attention import (
    AttentionProbe,
    pointing_loss,
    pointing_targets,
)
from dtvla_ros.training.auxiliary.localisation import PlaceHead, PlaceReport, place_loss
from dtvla_ros.training.collate import Batch
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.loss import LossReport, OrdinalGroup, hybrid_loss, token_weights


class Objective(nn.Module):
    """Maps a batch to its loss; logits are taken only at supervised rows.

    ``spans``: (first, last) ids of each ordered group of location words. ``things``: how many
    places the first camera's rows are asked for besides (0: none). ``pointing``: whether the data
    say where the things appear, so that ``config.pointing_weight`` can have its effect.
    """

    # What FSDP shards one by one.
    _no_split_modules = ('GemmaDecoderLayer', 'SiglipEncoderLayer')

    def __init__(self, model: HybridDecoder, config: SftConfig,
                 spans: Sequence[tuple[int, int]], things: int = 0, pointing: bool = False):
        super().__init__()
        self.model = model
        self.head = PlaceHead(model.config.text.width, things) if things else None
        self.place_sigma = config.place_sigma
        self.grounding_weight = config.grounding_weight
        self.pointing_weight = config.pointing_weight if pointing else 0.0
        layer, layers = config.pointing_layer, len(model.layers)
        if self.pointing_weight and not 0 <= layer < layers:
            raise UserError(f'train config: pointing_layer {layer} is not one of '
                            f"the policy's layers 0..{layers - 1}")
        self.probe = (AttentionProbe(cast(GemmaDecoderLayer, model.layers[layer]))
                      if self.pointing_weight else None)
        self.spans = spans
        self.places = [OrdinalGroup(first, last, config.place_sigma, config.place_weight)
                       for first, last in spans]
        self.action_sigma = config.action_sigma
        self.thought_weight = config.thought_weight

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return token logits [R, V] and action logits [B, S, bins]."""
        features = self.model.encode_images(batch.pixels())
        return self._heads(
            batch, self.model.read(batch.input_ids, batch.attention_mask, features))

    def _heads(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(self.model.config.slots, device=hidden.device)
        rows = batch.action_start[:, None] + rows  # [B, S]
        acting = hidden[torch.arange(len(rows), device=hidden.device)[:, None], rows]
        telling = hidden[batch.token_rows[0], batch.token_rows[1]]  # [R, w]
        return self.model.token_logits(telling), self.model.action_logits(acting)

    def seen(self, rows: Tensor, places: Tensor, asked: Tensor) -> PlaceReport:
        """Return how well the asked of ``places`` [B, E, 2] are read off the first camera's rows.

        ``asked`` [B, E] bool.
        """
        assert self.head is not None, 'only data that know places are asked for them'
        return place_loss(self.head(rows), places, asked, self.place_sigma)

    def weight(self, batch: Batch) -> Tensor:
        """Return the sum of the weights of everything the batch supervises."""
        words = token_weights(batch.token_targets, self.thought_weight, self.places)
        return words.sum() + batch.action_mask.sum()

    def forward(self, batch: Batch, divisor: Tensor | None = None,
                share: float = 1.0) -> LossReport:
        """Return the loss and what it is made of.

        For a part of a step's batch: ``divisor`` is the whole batch's ``weight``, ``share`` the
        part's share of the lessons besides.
        """
        features = self.model.encode_images(batch.pixels())  # [B, image_tokens, w]
        hidden = self.model.read(batch.input_ids, batch.attention_mask, features)  # [B, L, w]
        token_logits, action_logits = self._heads(batch, hidden)
        report = hybrid_loss(
            token_logits, batch.token_targets, action_logits, batch.action_targets,
            batch.action_mask, places=self.places, action_sigma=self.action_sigma,
            thought_weight=self.thought_weight, divisor=divisor)
        if self.head is not None:
            first = features[:, :self.model.config.vision.tokens[0]]
            seen = self.seen(first, batch.places, batch.told_apart)
            weight = share * self.grounding_weight
            report = replace(report, loss=report.loss + weight * seen.loss,
                             seen=seen.within_one)
        if self.probe is not None:
            point = pointing_loss(self.probe.take(), pointing_targets(
                batch.token_rows, batch.token_targets, self.spans, batch.places, batch.patches))
            weight = share * self.pointing_weight
            report = replace(report, loss=report.loss + weight * point.loss,
                             pointed=point.share)
        return report
