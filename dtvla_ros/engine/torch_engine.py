"""The decoder run by torch: fused, over a static cache."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dtvla_ros.engine import inference_model as fused
from dtvla_ros.engine.engine import Choices, Engine, Prefix, memory_guard, penalty
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


class TorchEngine(Engine):
    """Runs a ``HybridDecoder`` on its own device and in its own type.

    ``int8`` quantises every matrix but the embedding (CPU only). ``release`` takes the model's
    weights over instead of copying them; the model is of no use then. ``compile`` compiles the
    token loop's step at its first use (a minute, needs a C++ compiler); None: on CUDA only.
    """

    name = 'torch'

    def __init__(self, model: HybridDecoder, int8: bool = False, release: bool = False,
                 compile: bool | None = None):  # noqa: A002
        self.config = config = model.config
        table = model.embed_tokens.weight
        self._device, self._dtype = table.device, table.dtype
        self.where = f'{table.device.type} {str(table.dtype).removeprefix("torch.")}'
        tower = model.vision.eval()
        self._tower = fused.quantize_tower(copy.deepcopy(tower)) if int8 else tower
        self._model = fused.InferenceModel(model, int8, release)
        self._model.cache_attributes()
        self._cache = fused.StaticCache(
            config.text, config.image_tokens + ROOM + config.slots, table)
        self._penalty = table.new_zeros(len(table) - config.ids.bins, dtype=torch.float32)
        self._compiled = self._device.type == 'cuda' if compile is None else compile
        self._loop: _TokenLoop | None = None

    @_phase
    def suppress_tokens(self, banned: NDArray[np.bool_]) -> None:
        self._penalty.copy_(torch.from_numpy(penalty(self.config, banned)))

    @_phase
    def encode_images(self, pixel_values: NDArray[np.float32]) -> Tensor:
        """[C, 3, H, W] in -1..1 -> features [image_tokens, width]."""
        pixels = torch.from_numpy(pixel_values)[None].to(self._device, self._dtype)
        return self._tower(pixels)[0]

    @_phase
    def prefill(self, prompt_ids: Sequence[int], features: Tensor,
                thought: Sequence[int] = ()) -> tuple[Choices, Prefix]:
        hidden, prefix = self._prefill(prompt_ids, features, thought)
        return self._chosen(hidden), prefix

    @_phase
    def verify(self, cache: Prefix, tokens: Sequence[int]) -> tuple[Choices, Prefix]:
        hidden, prefix = self._run(self._model.embed(self._ids(tokens)), cache)
        return self._chosen(hidden), prefix

    @_phase
    def generate(self, cache: Prefix, tokens: list[int],
                 done: Callable[[list[int]], bool]) -> tuple[list[float], Prefix]:
        if not self._compiled:
            return super().generate(cache, tokens, done)
        count, ended, log_probs = cache.count, False, list[float]()
        while not ended:
            self._make_room(count + 1)
            if self._loop is None:
                self._loop = _TokenLoop(self._model, self._cache, self._penalty)
            count, ended = self._loop.run(count, tokens, log_probs, done)
        return log_probs, Prefix(count, cache.prompt_end)

    @_phase
    def decode_actions(self, cache: Prefix, tokens: Sequence[int]) -> NDArray[np.float32]:
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
            self._cache.grow(rows + ROOM)
            self._loop = None

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(list(tokens), device=self._device)

    def _chosen(self, hidden: Tensor) -> Choices:
        chosen = self._model.choose(hidden, self._penalty).cpu().numpy()  # [r, 2]
        return Choices(chosen[:, 0].astype(np.int64), chosen[:, 1])

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


class _TokenLoop:
    """The token loop as one compiled step of fixed shapes, on CUDA replayed as a graph.

    The step sees the whole static cache through a mask. On a device it reads the last token and
    its row from memory and writes the next ones back.
    """

    def __init__(self, model: fused.InferenceModel, cache: fused.StaticCache, penalty: Tensor):
        device = cache.keys.device
        self._model, self._cache, self._penalty = model, cache, penalty
        self._cuda = device.type == 'cuda'
        self._token, self._row = (
            torch.zeros(1, dtype=torch.long, device=device) for _ in range(2))
        self._chosen = torch.zeros(2, device=device)  # id and log probability
        self._columns = torch.arange(cache.capacity, device=device)
        self._read = torch.zeros(2, 2, pin_memory=self._cuda)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._step = torch.compile(self._one, fullgraph=True, dynamic=False)

    def _one(self, token: Tensor, row: Tensor) -> Tensor:
        cache = self._cache
        mask = additive((self._columns <= row)[None, None], cache.keys.dtype)[0, 0]
        attention = cache.attention(row, cache.capacity, mask)  # mask [1, capacity]
        hidden = self._model(self._model.embed(token), attention)
        return self._model.choose(hidden, self._penalty)

    def _advance(self) -> None:
        chosen = self._step(self._token, self._row)  # [1, 2]
        self._token.copy_(chosen[:, 0])
        self._chosen.copy_(chosen[0])
        self._row.add_(1)

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step(self._token, self._row)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        return graph

    def run(self, count: int, tokens: list[int], log_probs: list[float],
            done: Callable[[list[int]], bool]) -> tuple[int, bool]:
        """Extend ``tokens`` until ``done`` or the cache is full; return its rows, and if done.

        ``log_probs`` gets those of what is appended.
        """
        self._row.fill_(count)
        if self._cuda and self._graph is None:
            self._graph = self._capture()
            self._row.fill_(count)
        self._token.fill_(tokens[-1])
        last = self._cache.capacity - count  # steps there is room for
        ready = self._ask(0)
        for step in range(1, last + 1):
            # Asked for before the last answer is read, so that a device never waits. What it
            # computes beyond the end lies in rows that are written again.
            ahead = self._ask(step) if self._cuda and step < last else None
            if ready is not None:
                ready.synchronize()
            token, log_prob = self._read[(step - 1) % 2].tolist()
            tokens.append(int(token))
            log_probs.append(log_prob)
            if ended := done(tokens):
                break
            ready = ahead if self._cuda else self._ask(step)
        return count + step, ended

    def _ask(self, step: int) -> torch.cuda.Event | None:
        if self._graph is None:
            self._advance()
        else:
            self._graph.replay()
        self._read[step % 2].copy_(self._chosen, non_blocking=True)
        return None if self._graph is None else torch.cuda.current_stream().record_event()
