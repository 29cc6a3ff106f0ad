"""The decoder run by torch, as it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtvla_ros.policy.decoder import Cache, HybridDecoder
from dtvla_ros.policy.visibility import new_rows_mask


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows computed so far, and where the prompt ended."""

    cache: Cache
    prompt_end: int


class TorchEngine:
    """Runs a ``HybridDecoder`` on its own device and in its own type."""

    name = 'torch'

    def __init__(self, model: HybridDecoder):
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        weight = model.embed_tokens.weight
        self._device, self._dtype = weight.device, weight.dtype

    @torch.inference_mode()
    def see(self, pixel_values: NDArray[np.float32]) -> Tensor:
        """[C, 3, H, W] in -1..1 -> features [1, image_tokens, width]."""
        pixels = torch.from_numpy(pixel_values)[None].to(self._device, self._dtype)
        return self.model.encode_images(pixels)

    @torch.inference_mode()
    def prefill(self, prompt_ids: Sequence[int], features: Tensor,
                thought: Sequence[int] = ()) -> tuple[NDArray[np.float32], _Rows]:
        """Run prompt and thought; return logits [1 + len(thought), V] and the cache."""
        x = self.model.embed_prompt(self._ids([*prompt_ids, *thought]), features)
        hidden, rows = self._run(x, _Rows(Cache(), len(prompt_ids)))
        return self._logits(hidden[:, len(prompt_ids) - 1:]), rows

    @torch.inference_mode()
    def think(self, cache: _Rows, tokens: Sequence[int]) -> tuple[NDArray[np.float32], _Rows]:
        """Append thought tokens; return logits [len(tokens), V] and the cache."""
        hidden, rows = self._run(self.model.embed(self._ids(tokens)), cache)
        return self._logits(hidden), rows

    @torch.inference_mode()
    def act(self, cache: _Rows, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run ``tokens`` (the last is ``<action>``), slots and tail; logits [T*D, bins]."""
        first = len(tokens) - 1
        x = self.model.embed_action(self._ids(tokens))
        hidden, _ = self._run(x, cache, cache.cache.rows + first)
        logits = self.model.action_logits(hidden[0, first:first + self.config.slots])
        return logits.float().cpu().numpy()

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([list(tokens)], device=self._device)

    def _logits(self, hidden: Tensor) -> NDArray[np.float32]:
        return self.model.token_logits(hidden[0]).float().cpu().numpy()

    def _run(self, x: Tensor, rows: _Rows,
             action_start: int | None = None) -> tuple[Tensor, _Rows]:
        start, count = rows.cache.rows, x.shape[1]
        mask = torch.from_numpy(new_rows_mask(start, count, rows.prompt_end, action_start))
        positions = torch.arange(start + 1, start + count + 1, device=self._device)[None]
        hidden, cache = self.model.run(x, mask.to(self._device, self._dtype), positions,
                                       rows.cache)
        assert cache is not None
        return hidden, _Rows(cache, rows.prompt_end)
