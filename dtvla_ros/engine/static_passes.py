"""All phases of the torch engine as passes of fixed shapes: one mechanism from images to actions.

A pass has room for a bucket of rows. What a prompt, a draft or a thought does not fill is padding
behind it: pads see and are written to rows that nothing sees until a later pass has overwritten
them. So a few passes, recorded when the policy is configured, serve every length.
Shapes: n rows of a pass, r of them read, C rows of the cache, W width.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtvla_ros.engine.capture import CudaGraphs, Recorder, StandIn
from dtvla_ros.engine.engine import Prefix
from dtvla_ros.engine.inference_model import InferenceModel, StaticCache
from dtvla_ros.policy.attention import additive
from dtvla_ros.policy.config import visible

TEXT = (32, 64, 96, 128, 192, 256, 384)  # rows of a prompt's words and what is begun behind them
DRAFT = (8, 32, 128)  # rows verified behind a cache
PENDING = 4  # the thought's last ids, with <action>, that the action pass takes along at most
_WHOLE = 64  # rows of the cache are a multiple of this: kernels want their masks aligned
_AHEAD = 2  # steps of the token loop that a device is given before the host has heard of the first
_RING = 8  # results of steps that are kept


class Warmed(NamedTuple):
    """What getting ready took: passes recorded, seconds, and bytes held beside the weights."""

    passes: int
    seconds: float
    bytes: int

    def __str__(self) -> str:
        return (f'{self.passes} passes recorded in {self.seconds:.1f} s, '
                f'{self.bytes / 2 ** 20:.0f} MB beside the weights')


def bucket(buckets: Sequence[int], count: int) -> int | None:
    """Return the smallest of the ascending ``buckets`` that holds ``count``, None if none does."""
    place = bisect_left(buckets, count)
    return buckets[place] if place < len(buckets) else None


class StaticPasses:
    """The recorded passes of one model over a cache of their own.

    ``penalty`` [V - bins] is read where it lies. Thoughts of ``thought_tokens`` fit behind the
    longest prompt. ``compiled``: the token loop's step is compiled first (a minute, needs a C++
    compiler). ``recorder`` None: CUDA graphs on a GPU, their stand-in on a CPU.
    """

    def __init__(self, model: InferenceModel, tower: nn.Module, penalty: Tensor,
                 thought_tokens: int, compiled: bool, recorder: Recorder | None = None):
        started = time.perf_counter()
        config, like = model.config, model.embedding
        cuda = like.device.type == 'cuda'
        before = torch.cuda.memory_reserved() if cuda else 0
        recorder = recorder or (CudaGraphs() if cuda else StandIn(not compiled))
        self._text, self._draft = TEXT, DRAFT
        self._images, self._image = config.image_tokens, config.ids.image
        self._acting = PENDING + config.slots + 2
        rows = config.image_tokens + TEXT[-1] + thought_tokens + max(DRAFT[-1], self._acting)
        self.cache = cache = StaticCache(config.text, -(-rows // _WHOLE) * _WHOLE, like)
        size = config.vision.image_size
        self._pixels = like.new_zeros(
            1, len(config.vision.cameras), 3, size, size, dtype=torch.float32)
        self._features = like.new_zeros(config.image_tokens, config.text.width)

        def see() -> None:
            self._features.copy_(tower(self._pixels.to(like.dtype))[0])

        self._see = recorder.record('see', see, lambda: (self._pixels, self._features))
        shared = _Shared(model, cache, penalty, self._features, recorder)
        self._prompt = {(n, r): _PromptPass(shared, f'prompt {n} rows, {r} read', n, r)
                        for n in TEXT for r in (1, self._read(n))}
        self._verify = {n: _DraftPass(shared, f'draft {n}', n) for n in DRAFT}
        self._act = _ActionPass(shared, 'act')
        self.tokens = TokenLoop(shared, compiled)
        held = [cache.keys, cache.values, self._pixels, self._features]
        self.warmed = Warmed(
            3 + len(self._prompt) + len(self._verify), time.perf_counter() - started,
            torch.cuda.memory_reserved() - before if cuda else sum(x.nbytes for x in held))

    def see(self, pixel_values: NDArray[np.float32]) -> Tensor:
        """[C, 3, H, W] in -1..1 -> features [image_tokens, W], which the next images leave be."""
        self._pixels.copy_(torch.from_numpy(pixel_values)[None])
        self._see()
        return self._features.clone()

    def room_beside(self, prompt: int) -> int:
        """Return how many tokens go along with a prompt of so many rows; below 0: not even it."""
        return min(self._images + self._text[-1] - prompt, self._draft[-1] - 1)

    def _read(self, words: int) -> int:
        """Return how many rows of a prompt pass are read where more than one is.

        Scores of many rows are what takes most memory: 1 MB a row of the released vocabulary.
        """
        return min(words, self._draft[-1])

    def prefill(self, prompt_ids: Sequence[int], features: Tensor,
                thought: Sequence[int]) -> tuple[NDArray[np.float32], Prefix]:
        """Return the choices [1 + len(thought), 2] and the prefix; see ``Engine.prefill``."""
        end, ids = len(prompt_ids), [*prompt_ids, *thought]
        n = bucket(self._text, len(ids) - self._images)
        assert n is not None
        self._features.copy_(features)
        chosen = self._prompt[n, self._read(n) if thought else 1].choose(
            ids, end, np.flatnonzero(np.equal(prompt_ids, self._image)))
        return chosen, Prefix(len(ids), end)

    def fits(self, count: int, tokens: int) -> bool:
        """Return whether ``verify`` has room for so many tokens behind ``count`` rows."""
        whole, rest = divmod(tokens, self._draft[-1])
        padded = whole * self._draft[-1] + (bucket(self._draft, rest) or 0 if rest else 0)
        return count + padded <= self.cache.capacity

    def verify(self, cache: Prefix,
               tokens: Sequence[int]) -> tuple[NDArray[np.float32], Prefix]:
        """Return the choices [len(tokens), 2] and the prefix, after as many passes as it takes."""
        found, most = [], self._draft[-1]
        for first in range(0, len(tokens), most):
            part = tokens[first:first + most]
            n = bucket(self._draft, len(part))
            assert n is not None
            found.append(self._verify[n].choose(part, cache))
            cache = Prefix(cache.count + len(part), cache.prompt_end)
        return np.concatenate(found), cache

    def can_act(self, count: int) -> bool:
        """Return whether ``act`` has room behind ``count`` rows."""
        return count + self._acting <= self.cache.capacity

    def act(self, cache: Prefix, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return logits [T*D, bins]; at most ``PENDING`` tokens. See ``Engine.decode_actions``."""
        return self._act.act(tokens, cache)


class _Shared(NamedTuple):
    """What all passes have in common."""

    model: InferenceModel
    cache: StaticCache
    penalty: Tensor
    features: Tensor
    recorder: Recorder


class _Rows:
    """A pass of the decoder: ``n`` rows over ``columns`` rows of the cache.

    Its whole numbers are one transfer: bounds (first row, row behind the last real one, end of
    the prompt, row of ``<action>``), then what the kind of pass asks for.
    """

    def __init__(self, shared: _Shared, name: str, n: int, columns: int, more: Sequence[int],
                 result: Sequence[int]):
        device = shared.cache.keys.device
        self._shared, self._n, self._columns = shared, n, columns
        sizes = (4, *more)
        self._host = torch.zeros(sum(sizes), dtype=torch.int64, pin_memory=device.type == 'cuda')
        self._input = torch.zeros_like(self._host, device=device)
        self._input[1:4] = 1
        self._parts = self._input.split(sizes)
        self._fields = self._host.numpy()
        self._starts = np.cumsum((0, *sizes)).tolist()
        self._result = torch.zeros(*result, device=device)
        self._replay = shared.recorder.record(
            name, self._run, lambda: (self._input, self._result, shared.cache.keys,
                                      shared.cache.values, shared.penalty, shared.features))

    def _run(self) -> None:
        raise NotImplementedError

    def _hidden(self, x: Tensor, read: Tensor) -> Tensor:
        """Run rows ``x`` [n, W]; return those in ``read`` [r] after the final norm."""
        start, end, prompt_end, acting = self._parts[0].unbind()
        rows = start + torch.arange(self._n, device=x.device)
        columns = torch.arange(self._columns, device=x.device)
        seen = visible(rows[:, None], columns, prompt_end, acting) & (columns < end)
        mask = additive(seen[None], x.dtype)[0, 0]  # [n, columns]
        return self._shared.model(
            x, self._shared.cache.attention(rows, self._columns, mask), read)

    def _replayed(self, bounds: Sequence[int], *parts: Sequence[int] | NDArray) -> NDArray:
        """Run the pass on its numbers; shorter ones leave what was there, which nothing sees."""
        for start, part in zip(self._starts, (bounds, *parts)):
            self._fields[start:start + len(part)] = part
        self._input.copy_(self._host, non_blocking=True)
        self._replay()
        return self._result.to('cpu', copy=True).numpy()  # waits for the device


class _PromptPass(_Rows):
    """Images, ``words`` further rows, and the choices after ``reads`` of them."""

    def __init__(self, shared: _Shared, name: str, words: int, reads: int):
        images = shared.model.config.image_tokens
        n = images + words
        super().__init__(shared, name, n, n, (n, images, reads), (reads, 2))

    def _run(self) -> None:
        shared, (_, ids, image_rows, read) = self._shared, self._parts
        shared.cache.clear(self._n)
        x = shared.model.embed_prompt(ids, shared.features, image_rows)
        self._result.copy_(shared.model.choose(self._hidden(x, read), shared.penalty))

    def choose(self, ids: Sequence[int], prompt_end: int,
               image_rows: NDArray) -> NDArray[np.float32]:
        """Return the choices from the prompt's last row on."""
        read = np.arange(prompt_end - 1, len(ids))
        return self._replayed((0, len(ids), prompt_end, len(ids)), ids, image_rows,
                              read)[:len(read)]


class _DraftPass(_Rows):
    """Thought tokens behind a cache, and the choices after each."""

    def __init__(self, shared: _Shared, name: str, n: int):
        super().__init__(shared, name, n, shared.cache.capacity, (n,), (n, 2))

    def _run(self) -> None:
        model = self._shared.model
        every = torch.arange(self._n, device=self._input.device)
        hidden = self._hidden(model.embed(self._parts[1]), every)
        self._result.copy_(model.choose(hidden, self._shared.penalty))

    def choose(self, ids: Sequence[int], cache: Prefix) -> NDArray[np.float32]:
        """Return the choices after each of ``ids``."""
        end = cache.count + len(ids)
        return self._replayed((cache.count, end, cache.prompt_end, end), ids)[:len(ids)]


class _ActionPass(_Rows):
    """The thought's last ids, the slots, the tail."""

    def __init__(self, shared: _Shared, name: str):
        config = shared.model.config
        self._slots, n = config.slots, PENDING + config.slots + 2
        super().__init__(shared, name, n, shared.cache.capacity, (PENDING, n, config.slots),
                         (config.slots, config.ids.bins))

    def _run(self) -> None:
        model, (_, ids, order, read) = self._shared.model, self._parts
        x = model.embed_action(ids).index_select(0, order)
        self._result.copy_(model.bins(self._hidden(x, read)))

    def act(self, tokens: Sequence[int], cache: Prefix) -> NDArray[np.float32]:
        """Return logits [T*D, bins]."""
        p = len(tokens)
        order = [*range(p), *range(PENDING, PENDING + self._slots + 2)]
        pads = [PENDING + self._slots + 1] * (PENDING - p)
        return self._replayed(
            (cache.count, cache.count + len(order), cache.prompt_end, cache.count + p - 1),
            tokens, [*order, *pads], np.arange(p - 1, p - 1 + self._slots))


class TokenLoop:
    """Writes a thought: one step of fixed shapes, which feeds itself.

    A step reads the last token and its row from the device and writes the next ones back, and
    whether the thought has ended: steps beyond its end change nothing. So a device is given a few
    steps before the host has heard of the first.
    """

    def __init__(self, shared: _Shared, compiled: bool, ahead: int | None = None):
        device = shared.cache.keys.device
        self.model, self._shared = shared.model, shared
        self._cuda = device.type == 'cuda'
        self.ahead = ahead or (_AHEAD if self._cuda else 1)
        self._state = torch.zeros(4, dtype=torch.int64, device=device)  # token, row, step, ended
        self._ring = torch.zeros(_RING, 2, device=device)  # id and log probability
        self._heard = torch.zeros(_RING, 2, pin_memory=self._cuda)
        self._end = self.model.config.ids.think_end
        self._step = (torch.compile(self._one, fullgraph=True, dynamic=False) if compiled
                      else self._one)
        self._replay = shared.recorder.record(
            'token', self._advance, lambda: (
                self._state, self._ring, shared.cache.keys, shared.cache.values, shared.penalty))

    def _one(self, token: Tensor, row: Tensor) -> Tensor:
        """Return the choice [1, 2] after ``token`` [1] at ``row`` [1]."""
        model, cache = self.model, self._shared.cache
        columns = torch.arange(cache.capacity, device=row.device)
        mask = additive((columns <= row)[None, None], cache.keys.dtype)[0, 0]  # [1, C]
        hidden = model(model.embed(token), cache.attention(row, cache.capacity, mask))
        return model.choose(hidden, self._shared.penalty)

    def _advance(self) -> None:
        token, row, step, ended = self._state.split(1)
        chosen = self._step(token, row)
        going = 1 - ended
        self._ring.index_copy_(0, step % _RING, chosen)
        token.copy_(torch.where(going > 0, chosen[:, 0].to(torch.int64), token))
        row.add_(going)
        step.add_(1)
        ended.copy_(ended | (token == self._end).to(torch.int64))

    def run(self, count: int, tokens: list[int], log_probs: list[float],
            done: Callable[[list[int]], bool]) -> tuple[int, bool]:
        """Extend ``tokens`` until ``done``, its end or the cache's; return rows, and if done.

        ``count`` rows of the cache are filled, one at least is free. ``log_probs`` gets those of
        what is appended.
        """
        self._state.copy_(torch.tensor([tokens[-1], count, 0, 0]))
        room, queued, over = self._shared.cache.capacity - count, 0, False
        ready: list[torch.cuda.Event | None] = []
        for step in range(room):
            while queued < min(step + self.ahead, room):
                self._replay()
                place = queued % _RING
                self._heard[place].copy_(self._ring[place], non_blocking=True)
                ready.append(torch.cuda.current_stream().record_event() if self._cuda else None)
                queued += 1
            if (event := ready[step]) is not None:
                event.synchronize()
            token, log_prob = self._heard[step % _RING].tolist()
            tokens.append(int(token))
            log_probs.append(log_prob)
            over = done(tokens)
            if over or tokens[-1] == self._end:
                break
        return count + step + 1, over
