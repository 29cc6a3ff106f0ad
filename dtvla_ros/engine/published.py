"""The published scheme as a baseline: a generic generate loop, then everything once more.

What DeepThinkVLA's own code does, on current transformers: ``generate`` with a growing cache and
whole-vocabulary logits, a ban list and a stop test, then one fresh pass without cache, image
towers included, with logits of the whole vocabulary at every row (specification, sections 4 and
9). For measuring and testing only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    GemmaConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dtvla_ros.errors import UserError
from dtvla_ros.policy.attention import additive
from dtvla_ros.policy.config import visible
from dtvla_ros.policy.model import HybridDecoder


class _Ban(LogitsProcessor):
    def __init__(self, banned: Tensor):
        self._banned = banned

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(self._banned, torch.finfo(scores.dtype).min)


class _Tail(StoppingCriteria):
    def __init__(self, tail: Sequence[int]):
        self._tail = list(tail)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        ended = [row[-len(self._tail):].tolist() == self._tail for row in input_ids]
        return torch.tensor(ended, device=input_ids.device)


class PublishedScheme:
    """Runs a ``HybridDecoder``'s weights (shared, not copied) the published way; batch 1."""

    def __init__(self, model: HybridDecoder):
        config, text, vision = model.config, model.config.text, model.config.vision
        if vision.kind != 'siglip':
            raise UserError('the published scheme has a SigLIP tower; this geometry does not')
        self.config = config
        weight = model.embed_tokens.weight
        self._device, self._dtype = weight.device, weight.dtype
        gemma = GemmaConfig(
            hidden_size=text.width, intermediate_size=text.mlp, num_hidden_layers=text.layers,
            num_attention_heads=text.heads, num_key_value_heads=text.kv_heads,
            head_dim=text.head_dim, vocab_size=text.vocabulary, rms_norm_eps=text.norm_eps,
            rope_parameters={'rope_type': 'default', 'rope_theta': text.rope_theta})
        siglip = SiglipVisionConfig(
            hidden_size=vision.width, intermediate_size=vision.mlp,
            num_hidden_layers=vision.layers, num_attention_heads=vision.heads,
            image_size=vision.image_size, patch_size=vision.patch,
            layer_norm_eps=vision.norm_eps, vision_use_head=False)
        whole = PaliGemmaConfig(
            text_config=gemma, vision_config=siglip, image_token_index=config.ids.image,
            projection_dim=text.width, hidden_size=text.width)
        whole.pad_token_id, whole.bos_token_id = config.ids.pad, config.ids.bos
        whole.eos_token_id = config.ids.eos
        with torch.device('meta'):
            self._model: Any = PaliGemmaForConditionalGeneration(whole)
        self._model.load_state_dict(
            {_theirs(name): value for name, value in model.state_dict().items()}
            | {'lm_head.weight': weight}, assign=True)
        # Buffers that no checkpoint holds are still on the meta device.
        self._model.model.language_model.rotary_emb = model.rotary
        embeddings = self._model.model.vision_tower.embeddings
        embeddings.position_ids = torch.arange(vision.tokens[0], device=self._device)[None]
        for module in self._model.modules():
            if isinstance(getattr(module, 'embed_scale', None), Tensor):
                module.embed_scale = model.embed_scale
        self._model.eval()

    @torch.inference_mode()
    def generate(self, prompt_ids: Sequence[int], pixel_values: NDArray[np.float32],
                 banned: NDArray[np.bool_], limit: int) -> list[int]:
        """Return the greedy thought: until ``</think><action>``, or ``limit`` tokens."""
        ids = self._ids(prompt_ids)
        out = self._model.generate(
            input_ids=ids, pixel_values=self._pixels(pixel_values),
            attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids),
            max_new_tokens=limit, do_sample=False,
            logits_processor=LogitsProcessorList([_Ban(torch.from_numpy(banned).to(ids.device))]),
            stopping_criteria=StoppingCriteriaList([
                _Tail([self.config.ids.think_end, self.config.ids.action])]))
        return out[0, len(prompt_ids):].tolist()

    @torch.inference_mode()
    def act(self, prompt_ids: Sequence[int], thought: Sequence[int],
            pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run prompt, thought (its last token is ``<action>``), slots and tail afresh.

        Returns logits [T*D, bins]; those of all other rows and words are computed as well.
        """
        special, slots = self.config.ids, self.config.slots
        start = len(prompt_ids) + len(thought) - 1
        ids = self._ids([*prompt_ids, *thought, *[special.bos] * slots, special.action_end,
                         special.eos])
        inner = self._model.model
        x = inner.get_input_embeddings()(ids)
        features = inner.get_image_features(self._pixels(pixel_values)).pooler_output
        image = (ids == special.image)[..., None]
        x = x.masked_scatter(image, features.to(x.dtype))
        x[:, start + 1:start + 1 + slots] = 0
        rows = torch.arange(ids.shape[1], device=ids.device)
        seen = visible(rows[:, None], rows[None], len(prompt_ids), start)
        hidden = inner.language_model(
            inputs_embeds=x, attention_mask=additive(seen[None], x.dtype),
            position_ids=rows[None] + 1, use_cache=False).last_hidden_state
        logits = self._model.lm_head(hidden).float()  # [1, L, V]
        span = slice(special.bins_first, special.bins_last + 1)
        return logits[0, start:start + slots, span].cpu().numpy()

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([list(tokens)], device=self._device)

    def _pixels(self, pixel_values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(pixel_values).to(self._device, self._dtype)


def _theirs(name: str) -> str:
    for ours, theirs in (('vision.tower.', 'model.vision_tower.'),
                         ('vision.projector.', 'model.multi_modal_projector.linear.')):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return f'model.language_model.{name}'
