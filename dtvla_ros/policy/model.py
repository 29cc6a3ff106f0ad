"""The hybrid decoder: a causal thought and one bidirectional pass for the actions.

One class from the small default policy to the released 2.9 B checkpoint, built from
transformers' Gemma and SigLIP modules. Shapes: B batch, L sequence, n new rows, S rows so far.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import DynamicCache, GemmaConfig
from transformers.models.gemma import modeling_gemma as gemma_parts

from dtvla_ros.policy.attention import MATMUL, action_start, additive, sequence_mask
from dtvla_ros.policy.config import DecoderConfig, TextConfig
from dtvla_ros.policy.vision import ConvTower, SiglipTower


def gemma_config(text: TextConfig) -> GemmaConfig:
    """Return transformers' config of the text side."""
    return GemmaConfig(
        hidden_size=text.width, intermediate_size=text.mlp, num_hidden_layers=text.layers,
        num_attention_heads=text.heads, num_key_value_heads=text.kv_heads,
        head_dim=text.head_dim, vocab_size=text.vocabulary, rms_norm_eps=text.norm_eps,
        rope_parameters={'rope_type': 'default', 'rope_theta': text.rope_theta})


class HybridDecoder(nn.Module):
    """Image towers, Gemma layers and the head tied to the embedding."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        text, gemma = config.text, gemma_config(config.text)
        gemma._attn_implementation = MATMUL
        tower = SiglipTower if config.vision.kind == 'siglip' else ConvTower
        self.vision = tower(config.vision, text.width)
        self.embed_tokens = nn.Embedding(text.vocabulary, text.width)
        self.register_buffer('embed_scale', torch.tensor(text.width ** 0.5), persistent=False)
        self.layers = nn.ModuleList(
            gemma_parts.GemmaDecoderLayer(gemma, i) for i in range(text.layers))
        self.norm = gemma_parts.GemmaRMSNorm(text.width, text.norm_eps)
        self.rotary = gemma_parts.GemmaRotaryEmbedding(gemma)
        self.slot_codes = (nn.Parameter(torch.randn(config.slots, text.width) * 0.5)
                           if config.slot_codes else None)
        self.reset_text()

    def reset_text(self) -> None:
        """Initialise the text side for training from scratch (unit rows, shrunk residuals)."""
        width, depth = self.config.text.width, 2 * self.config.text.layers
        nn.init.normal_(self.embed_tokens.weight, std=0.5 * width ** -0.5)
        for name, weight in self.layers.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(('o_proj.weight', 'down_proj.weight'))
                scale = depth ** -0.5 if residual else 1.0
                nn.init.normal_(weight, std=scale * weight.shape[1] ** -0.5)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """[B, C, 3, H, W] in -1..1 -> rows [B, image_tokens, width], cameras in order."""
        return self.vision(pixel_values)

    def embed(self, input_ids: Tensor) -> Tensor:
        """[B, n] -> [B, n, width], scaled by sqrt(width) rounded to the weights' type."""
        x = self.embed_tokens(input_ids)
        return x * self.embed_scale.to(x.dtype)

    def embed_prompt(self, input_ids: Tensor, features: Tensor) -> Tensor:
        """Embed ids [B, n], the k-th image id of a row as the row's k-th feature."""
        x = self.embed(input_ids)
        image = input_ids == self.config.ids.image  # [B, n]
        count = features.shape[1]
        row = torch.arange(len(features), device=x.device)[:, None] * count
        place = row + (image.cumsum(1) - 1).clamp(0, count - 1)
        seen = F.embedding(place, features.flatten(0, 1)).to(x.dtype)  # [B, n, width]
        return torch.where(image[..., None], seen, x)

    def embed_action(self, tokens: Tensor) -> Tensor:
        """Rows of the action pass [B, p + T*D + 2, width].

        ``tokens`` [B, p] end with ``<action>``; then come the zero slots, ``</action>``, eos.
        """
        b = len(tokens)
        tail = tokens.new_tensor([[self.config.ids.action_end, self.config.ids.eos]])
        x = self.embed(torch.cat([tokens, tail.expand(b, 2)], 1))
        slots = (x.new_zeros(self.config.slots, x.shape[2]) if self.slot_codes is None
                 else self.slot_codes.to(x.dtype))
        return torch.cat([x[:, :-2], slots.expand(b, -1, -1), x[:, -2:]], 1)

    def blank_slots(self, x: Tensor, start: Tensor) -> Tensor:
        """Replace the slots' rows start+1 .. start+T*D of ``x`` [B, L, width]."""
        slot = torch.arange(x.shape[1], device=x.device)[None] - start[:, None] - 1  # [B, L]
        inside = ((slot >= 0) & (slot < self.config.slots))[..., None]
        if self.slot_codes is None:
            return x.masked_fill(inside, 0.0)
        code = F.embedding(slot.clamp(0, self.config.slots - 1), self.slot_codes)
        return torch.where(inside, code.to(x.dtype), x)

    def run(self, x: Tensor, mask: Tensor, position_ids: Tensor,
            cache: DynamicCache | None = None) -> Tensor:
        """Run rows over a cache, which grows by them; return hidden [B, n, width] after the norm.

        ``mask`` [B, 1, n, S + n] is added to the scores; ``position_ids`` [B or 1, n] count
        real rows from 1. Pass an empty ``DynamicCache()`` to start one, None to keep nothing.
        """
        rope = self.rotary(x, position_ids)
        for layer in self.layers:
            x = layer(x, attention_mask=mask, position_ids=position_ids, past_key_values=cache,
                      position_embeddings=rope)
        return self.norm(x)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """Run whole sequences, actions included; return hidden [B, L, width] after the norm.

        The T*D ids after the last ``<action>`` may be the labels: their rows are blanked.
        Row A + k predicts action k; row i before A predicts token i + 1.
        """
        return self.read(input_ids, attention_mask, self.encode_images(pixel_values))

    def read(self, input_ids: Tensor, attention_mask: Tensor, features: Tensor) -> Tensor:
        """Do what ``forward`` does with images already encoded, [B, image_tokens, width]."""
        x = self.embed_prompt(input_ids, features)
        x = self.blank_slots(x, action_start(input_ids, self.config.ids))
        mask = additive(sequence_mask(input_ids, attention_mask, self.config.ids), x.dtype)
        return self.run(x, mask, attention_mask.long().cumsum(1))

    def token_logits(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., V] over the whole vocabulary."""
        return F.linear(hidden, self.embed_tokens.weight)

    def action_logits(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., bins]; only the action ids' slice of the head is read."""
        ids = self.config.ids
        return F.linear(hidden, self.embed_tokens.weight[ids.bins_first:ids.bins_last + 1])
