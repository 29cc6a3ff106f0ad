"""Subjects of ``dtvla bench``: named geometries, random inputs, and the published scheme.

`PublishedScheme` is what DeepThinkVLA's own code does, on current transformers: ``generate`` with
a growing cache and whole-vocabulary logits, a ban list and a stop test, then one fresh pass
without cache, image towers included, with logits of the whole vocabulary at every row
(specification, sections 4 and 9). For measuring and testing only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.errors import UserError
from dtvla_ros.policy.attention import additive
from dtvla_ros.policy.checkpoint import our_name
from dtvla_ros.policy.config import DecoderConfig, SpecialIds, TextConfig, VisionConfig, visible
from dtvla_ros.policy.model import HybridDecoder, gemma_config
from dtvla_ros.policy.vision import siglip_config
from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids

GEOMETRIES = ('nano', 'bench-60m', 'deepthinkvla-3b')
RELEASED_IDS = {
    'think_start_token_index': 257153, 'think_end_token_index': 257154,
    'action_start_token_index': 257155, 'action_end_token_index': 257156,
    'action_token_begin_idx': 254976, 'action_token_end_idx': 257023}


def geometry(name: str) -> DecoderConfig:
    """Return the config of a named geometry."""
    if name == 'nano':
        tokenizer = build_tokenizer()
        return DecoderConfig.nano(tokenizer.get_vocab_size(), special_ids(tokenizer))
    if name == 'bench-60m':
        words, bins = 32768, 2048
        image = words + bins
        return DecoderConfig(
            TextConfig(width=512, layers=8, heads=8, kv_heads=1, head_dim=64, mlp=2048,
                       vocabulary=image + 16),
            VisionConfig('siglip', CAMERAS, (256, 256), 224, width=384, layers=6,
                         heads=6, mlp=1536, patch=14),
            SpecialIds(0, 1, 2, 40, 41, image, image + 1, image + 2, image + 3, image + 4,
                       bins_first=words, bins_last=image - 1))
    if name == 'deepthinkvla-3b':
        return DecoderConfig.from_huggingface(RELEASED_IDS)
    raise UserError(f'geometry {name!r} is none of {", ".join(GEOMETRIES)}')


def random_model(config: DecoderConfig, device: str = 'cpu',
                 dtype: torch.dtype = torch.float32, seed: int = 0) -> HybridDecoder:
    """Return a model with random weights, made on ``device`` in ``dtype``."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return HybridDecoder(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


class Scene(NamedTuple):
    """One made-up input: ``prompt`` ids, ``pixels`` [C, 3, H, W], ``banned`` [V]."""

    prompt: list[int]
    pixels: NDArray[np.float32]
    banned: NDArray[np.bool_]


def scene(config: DecoderConfig, text_tokens: int = 35, seed: int = 0) -> Scene:
    """Return random images and a prompt with ``text_tokens`` ids after the images.

    Banned are all ids that are no plain words, so that a thought of random weights never ends
    by itself and has the length it is asked for.
    """
    ids, rng = config.ids, np.random.default_rng(seed)
    banned = np.zeros(config.text.vocabulary, bool)
    banned[[*astuple(ids)[:-2], *range(ids.bins_first, len(banned))]] = True
    words = rng.choice(np.flatnonzero(~banned), text_tokens - 3).tolist()
    prompt = [ids.image] * config.image_tokens + [ids.bos, *words, ids.semicolon, ids.newline]
    size = config.vision.image_size
    pixels = rng.uniform(-1, 1, (len(config.vision.cameras), 3, size, size))
    return Scene(prompt, pixels.astype(np.float32), banned)


class _Ban(transformers.LogitsProcessor):
    def __init__(self, banned: Tensor):
        self._banned = banned

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(self._banned, torch.finfo(scores.dtype).min)


class _Tail(transformers.StoppingCriteria):
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
        ids = config.ids
        whole = transformers.PaliGemmaConfig(
            text_config=gemma_config(text), vision_config=siglip_config(vision),
            image_token_index=ids.image, projection_dim=text.width, hidden_size=text.width)
        whole.pad_token_id, whole.bos_token_id, whole.eos_token_id = ids.pad, ids.bos, ids.eos
        with torch.device('meta'):
            self._model: Any = transformers.PaliGemmaForConditionalGeneration(whole)
        state = model.state_dict() | {'lm_head.weight': weight}
        self._model.load_state_dict(
            {name: state[our_name(name)] for name in self._model.state_dict()}, assign=True)
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
            logits_processor=[_Ban(torch.from_numpy(banned).to(ids.device))],
            stopping_criteria=[_Tail([self.config.ids.think_end, self.config.ids.action])])
        return out[0, len(prompt_ids):].tolist()

    @torch.inference_mode()
    def act(self, prompt_ids: Sequence[int], thought: Sequence[int],
            pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run prompt, thought (its last token is ``<action>``), slots and tail afresh.

        Returns logits [T*D, bins]; those of all other rows and words are computed as well.
        """
        special, slots, inner = self.config.ids, self.config.slots, self._model.model
        start = len(prompt_ids) + len(thought) - 1
        ids = self._ids([*prompt_ids, *thought, *[special.bos] * slots, special.action_end,
                         special.eos])
        x = inner.get_input_embeddings()(ids)
        features = inner.get_image_features(self._pixels(pixel_values)).pooler_output
        x = x.masked_scatter((ids == special.image)[..., None], features.to(x.dtype))
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

