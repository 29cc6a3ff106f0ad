"""The decoder run by torch: fused, over a static cache, by recorded passes once warmed up."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtvla_ros.engine import inference_model as fused
from dtvla_ros.engine.capture import Recorder
from dtvla_ros.engine.engine import Choices, Engine, Prefix, memory_guard, penalty
from dtvla_ros.engine.static_passes import PENDING, StaticPasses, Warmed
from dtvla_ros.errors import UserError
from dtvla_ros.policy.attention import additive
from dtvla_ros.policy.config import visible
from dtvla_ros.policy.model import HybridDecoder

P = ParamSpec('P')
R = TypeVar('R')
ROOM = 512  # rows for words beside images and actions, at first; the cache grows when needed


def _phase(method: Callable[P, R]) -> Callable[P, R]:
    """Run a phase of the engine without gradients; used-up memory becomes ``OutOfMemory``.

    Within another phase nothing is entered again: a token of a small policy would tell.
    """
    @functools.wraps(method)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        if torch.is_inference_mode_enabled():
            return method(*arguments, **named)
        with torch.inference_mode(), memory_guard():
            return method(*arguments, **named)

    return run


def _choices(found: NDArray[np.float32]) -> Choices:
    """[r, 2], id and log probability, as ``InferenceModel.choose`` gives them."""
    return Choices(found[:, 0].astype(np.int64), found[:, 1])


class TorchEngine(Engine):
    """Runs a ``HybridDecoder`` on its own device and in its own type.

    ``weights``: None for the model's own type, or every matrix but the embedding quantised:
    'int8' (CPU only) or 'fp8' (for a GPU; elsewhere a slow reference). ``release`` takes the
    model's weights over instead of copying them; the model is of no use then. Kernel by kernel,
    over as many rows as there are, until ``warm_up``.
    """

    name = 'torch'

    def __init__(self, model: HybridDecoder, weights: str | None = None,
                 release: bool = False):
        self.config = config = model.config
        table = model.embed_tokens.weight
        self._device, self._dtype = table.device, table.dtype
        self.where = f'{table.device.type} {str(table.dtype).removeprefix("torch.")}'
        if weights is not None:
            if weights not in fused.QUANTISED:
                raise UserError(f'weights {weights!r} are none of {", ".join(fused.QUANTISED)}')
            self.where += f' with {weights} weights'
        tower = model.vision.eval()
        self._tower = (tower if weights is None else
                       fused.quantize_tower(copy.deepcopy(tower), weights))
        self._model = fused.InferenceModel(model, weights, release)
        self._model.cache_attributes()
        self._cache = fused.StaticCache(
            config.text, config.image_tokens + ROOM + config.slots, table)
        self._penalty = table.new_zeros(len(table) - config.ids.bins, dtype=torch.float32)
        self._static: StaticPasses | None = None

    @_phase
    def warm_up(self, thought_tokens: int = ROOM, compiled: bool | None = None,
                recorder: Recorder | None = None) -> Warmed:
        """Record every phase as passes of fixed shapes, which are replayed from now on.

        They hold prompts of up to ``static_passes.TEXT[-1]`` words, with thoughts of
        ``thought_tokens`` behind them. What is longer runs as before, kernel by kernel, in a cache
        of its own; nothing is recorded again. ``compiled``, ``recorder``: see `StaticPasses`;
        None compiles on CUDA only.
        """
        self._static = StaticPasses(
            self._model, self._tower, self._penalty, thought_tokens,
            self._device.type == 'cuda' if compiled is None else compiled, recorder)
        self._cache = self._static.cache
        self.ready = str(self._static.warmed)
        return self._static.warmed

    @property
    def _passes(self) -> StaticPasses | None:
        """The recorded passes, unless the sequence has outgrown them."""
        static = self._static
        return static if static is not None and self._cache is static.cache else None

    @_phase
    def suppress_tokens(self, banned: NDArray[np.bool_],
                        margins: Mapping[int, float] | None = None) -> None:
        self._penalty.copy_(torch.from_numpy(penalty(self.config, banned, margins)))
        ids = self.config.ids
        words = np.setdiff1d(np.flatnonzero(~banned), np.arange(ids.bins_first, ids.bins_last + 1))
        if self._model.restrict(torch.from_numpy(words).to(self._device)):
            self._static = None  # recorded with another head; warm_up records anew

    @_phase
    def encode_images(self, pixel_values: NDArray[np.float32]) -> Tensor:
        """[C, 3, H, W] in -1..1 -> features [image_tokens, width]."""
        if self._static is not None:
            return self._static.see(pixel_values)
        pixels = torch.from_numpy(pixel_values)[None].to(self._device, self._dtype)
        return self._tower(pixels)[0]

    @_phase
    def prefill(self, prompt_ids: Sequence[int], features: Tensor,
                thought: Sequence[int] = ()) -> tuple[Choices, Prefix]:
        if self._static is None or (room := self._static.room_beside(len(prompt_ids))) < 0:
            if self._passes is not None:
                self._cache.clear(0)
            hidden, prefix = self._prefill(prompt_ids, features, thought)
            return self._chosen(hidden), prefix
        self._cache = self._static.cache
        found, prefix = self._static.prefill(prompt_ids, features, thought[:room])
        chosen = _choices(found)
        if rest := thought[room:]:
            more, prefix = self.verify(prefix, rest)
            chosen = Choices(np.concatenate([chosen.ids, more.ids]),
                             np.concatenate([chosen.log_probs, more.log_probs]))
        return chosen, prefix

    @_phase
    def verify(self, cache: Prefix, tokens: Sequence[int]) -> tuple[Choices, Prefix]:
        if (passes := self._passes) is not None and passes.fits(cache.count, len(tokens)):
            found, prefix = passes.verify(cache, tokens)
            return _choices(found), prefix
        hidden, prefix = self._run(self._model.embed(self._ids(tokens)), cache)
        return self._chosen(hidden), prefix

    @_phase
    def generate(self, cache: Prefix, tokens: list[int],
                 done: Callable[[list[int]], bool]) -> tuple[list[float], Prefix]:
        log_probs, ended = list[float](), False
        while (passes := self._passes) is not None and cache.count < passes.cache.capacity:
            count, ended = passes.tokens.run(cache.count, tokens, log_probs, done)
            cache = Prefix(count, cache.prompt_end)
            if ended:
                return log_probs, cache
        more, cache = super().generate(cache, tokens, done)
        return log_probs + more, cache

    @_phase
    def decode_actions(self, cache: Prefix, tokens: Sequence[int]) -> NDArray[np.float32]:
        if self._passes is not None and len(tokens) > PENDING:
            _, cache = self.verify(cache, tokens[:-PENDING])
            tokens = tokens[-PENDING:]
        if (passes := self._passes) is not None and passes.can_act(cache.count):
            return passes.act(cache, tokens)
        first = len(tokens) - 1
        x = self._model.embed_action(self._ids(tokens))
        hidden, _ = self._run(x, cache, slice(first, first + self.config.slots),
                              cache.count + first)
        return self._model.bins(hidden).float().cpu().numpy()

    @_phase
    def logits(self, prompt_ids: Sequence[int], features: Tensor,
               thought: Sequence[int]) -> NDArray[np.float32]:
        hidden, _ = self._prefill(prompt_ids, features, thought)
        return self._model.token_logits(hidden).cpu().numpy()

    def _prefill(self, prompt_ids: Sequence[int], features: Tensor,
                 thought: Sequence[int]) -> tuple[Tensor, Prefix]:
        ids = [*prompt_ids, *thought]
        image_rows = np.flatnonzero(np.asarray(prompt_ids) == self.config.ids.image)
        x = self._model.embed_prompt(
            self._ids(ids), features, torch.from_numpy(image_rows).to(self._device))
        return self._run(x, Prefix(0, len(prompt_ids)), slice(len(prompt_ids) - 1, None))

    def _make_room(self, rows: int) -> None:
        if rows > self._cache.capacity:
            if self._passes is not None:
                self._cache = copy.copy(self._cache)  # the recorded passes keep theirs
            self._cache.grow(rows + ROOM)

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(list(tokens), device=self._device)

    def _chosen(self, hidden: Tensor) -> Choices:
        return _choices(self._model.choose(hidden, self._penalty).cpu().numpy())

    def _run(self, x: Tensor, cache: Prefix, read: fused.Read = fused.ALL,
             action_start: int | None = None) -> tuple[Tensor, Prefix]:
        start, end = cache.count, cache.count + x.shape[0]
        self._make_room(end)
        acting = end if action_start is None else action_start
        rows, mask = torch.arange(start, end, device=self._device), None
        # One row sees all there is; so do rows that are all prompt or all action.
        if end - start > 1 and end > cache.prompt_end and acting > start:
            columns = torch.arange(end, device=self._device)
            seen = visible(rows[:, None], columns, cache.prompt_end, acting)
            mask = additive(seen[None], self._dtype)[0, 0]  # [n, end]
        hidden = self._model(x, self._cache.attention(rows, end, mask), read)
        return hidden, Prefix(end, cache.prompt_end)
