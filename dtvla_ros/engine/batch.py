"""Batched decisions of a model in training: think and act for many observations, or sample.

Prompts are left-padded, so that every sequence is at the same column while it thinks; a row that
has ended its thought leaves the batch, and one action pass closes all of them. Pads are masked
and not counted: a row's numbers do not depend on its neighbours.
Shapes: B observations, b of them still thinking, S rows so far, n new rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import DynamicCache

from dtvla_ros.engine.policy import NOT_FINITE, suppressed_in_thought
from dtvla_ros.errors import UserError
from dtvla_ros.policy.attention import additive, left_padded, new_rows_visible
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import Observation, PolicyTransform


class SampledDecision(NamedTuple):
    """One row of a batch.

    ``prompt_tokens`` and ``thought_tokens`` (tags included) are ids. ``outcome``: 'complete', or
    'truncated' where the token cap closed the thought. ``action_tokens`` [T*D] ids, ``chunk``
    [T, D] in the robot's units. ``thought_log_probs`` [n]: of the n tokens the policy chose,
    which follow ``<think>``; ``action_log_probs`` [T*D]. Both in nats at the temperature sampled
    at, at 1 where the choice was greedy.
    """

    prompt_tokens: tuple[int, ...]
    thought_tokens: tuple[int, ...]
    outcome: str
    action_tokens: NDArray[np.int64]
    chunk: NDArray[np.float32]
    thought_log_probs: NDArray[np.float32]
    action_log_probs: NDArray[np.float32]


def log_distribution(logits: Tensor, temperature: float = 1.0,
                     banned: Tensor | None = None) -> Tensor:
    """Return log softmax(logits / temperature) [..., K] in float32.

    Ids where ``banned`` [K] is True are given the type's lowest number, as the published
    recipe does: probability 0, and no NaN in an entropy or a gradient.
    """
    if not temperature > 0.0:
        raise UserError(f'temperature must be positive, got {temperature}')
    scores = logits.float() / temperature
    if banned is not None:
        scores = scores.masked_fill(banned, torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)


def choose(log_probs: Tensor, noise: Tensor | None) -> Tensor:
    """Return one index of each row, [..., K] -> [...].

    ``noise`` [...] in [0, 1) picks by the inverse of the cumulative distribution, so that a row
    of numbers drawn beforehand fixes the sample on any device; None, or a noise that is not a
    number, takes the likeliest.
    """
    if noise is None:
        return log_probs.argmax(-1)
    mass = log_probs.double().exp().cumsum(-1)  # [..., K]
    total = mass[..., -1:]
    index = torch.searchsorted(mass, noise[..., None] * total, right=True)[..., 0]
    index = index.minimum((mass < total).sum(-1))  # the product may round up to the total
    return torch.where(noise.isnan(), log_probs.argmax(-1), index)


class _Running(NamedTuple):
    """Sequences begun: their numbers [b] in the batch, cache, and where it is real [b, S]."""

    number: Tensor
    cache: DynamicCache
    real: Tensor

    def where(self, keep: Tensor) -> _Running:
        """Return the sequences where ``keep`` [b] is True, or of an index, as often as named."""
        cache = DynamicCache([(keys[keep], values[keep]) for keys, values, *_ in self.cache])
        return _Running(self.number[keep], cache, self.real[keep])


def _gathered(parts: Sequence[_Running]) -> _Running:
    """Return sequences of several lengths as one batch, in the order of their numbers."""
    order = torch.cat([part.number for part in parts]).argsort()
    lengths = [part.real.shape[1] for part in parts]

    def joined(tensors: Iterable[Tensor], *behind: int) -> Tensor:
        return torch.cat([F.pad(t, (*behind, 0, max(lengths) - length))
                          for t, length in zip(tensors, lengths)])[order]

    cache = DynamicCache([(joined((keys for keys, *_ in layers), 0, 0),
                           joined((values for _, values, *_ in layers), 0, 0))
                          for layers in zip(*(part.cache for part in parts))])
    return _Running(order.sort().values, cache, joined(part.real for part in parts))


class BatchSampler:
    """Decides for many observations at once with a model that may go on being trained.

    Temperature 0 is greedy. The tokens a thought may not hold are those of ``Policy``.
    """

    def __init__(self, model: HybridDecoder, transform: PolicyTransform, *,
                 max_thought_tokens: int = 48, thought_temperature: float = 0.0,
                 action_temperature: float = 0.0):
        if max_thought_tokens < 1:
            raise UserError(f'max_thought_tokens must be at least 1, got {max_thought_tokens}')
        for name, value in (('thought', thought_temperature), ('action', action_temperature)):
            if not 0.0 <= value < float('inf'):
                raise UserError(f'{name} temperature must be 0 (greedy) or positive, got {value}')
        self.model, self.transform = model, transform
        self.max_thought_tokens = max_thought_tokens
        self.thought_temperature, self.action_temperature = thought_temperature, action_temperature
        self.banned = torch.from_numpy(suppressed_in_thought(transform))  # [V]

    def infer(self, observations: Sequence[Observation],
              seeds: Sequence[int | None] | None = None,
              copies: int = 1) -> list[SampledDecision]:
        """Return ``copies`` decisions per observation, in their order.

        ``seeds``: one per decision, needed where a temperature is positive; the same seed
        gives the same sample in any batch, None the greedy decision. Raises
        ``FloatingPointError`` if the network's output is not finite.
        """
        if not observations:
            return []
        prompts = [self.transform.prompt_ids(o.instruction, o) for o in observations]
        pixels = np.stack([self.transform.pixels(o.images) for o in observations])
        return self.sample(prompts, torch.from_numpy(pixels), seeds, copies)

    @torch.inference_mode()
    def sample(self, prompts: Sequence[Sequence[int]], pixel_values: Tensor,
               seeds: Sequence[int | None] | None = None,
               copies: int = 1) -> list[SampledDecision]:
        """Do what ``infer`` does with prompts as ids and images [B, C, 3, H, W] in -1..1."""
        ids, weight = self.model.config.ids, self.model.embed_tokens.weight
        token_noise, slot_noise = self._noise(copies * len(prompts), seeds)
        features = self.model.encode_images(pixel_values.to(weight.device, weight.dtype))
        rows, chosen, values = self._think(prompts, features, token_noise, copies)
        prompts = [prompt for prompt in prompts for _ in range(copies)]
        pending = [[tokens[-1], ids.action] if tokens[-1] == ids.think_end
                   else [tokens[-1], ids.think_end, ids.action] for tokens in chosen]
        actions, log_probs = self._act(rows, pending, max(map(len, prompts)), slot_noise)
        return [SampledDecision(
            prompt_tokens=tuple(prompt),
            thought_tokens=(ids.think, *tokens, *last[1:-1]),
            outcome='complete' if tokens[-1] == ids.think_end else 'truncated',
            action_tokens=action, chunk=self.transform.decode_actions(action),
            thought_log_probs=np.array(value, np.float32), action_log_probs=log_prob)
            for prompt, tokens, last, value, action, log_prob in zip(
                prompts, chosen, pending, values, actions, log_probs, strict=True)]

    def _noise(self, count: int,
               seeds: Sequence[int | None] | None) -> tuple[Tensor | None, Tensor | None]:
        """Return uniform numbers [B, max_thought_tokens] and [B, T*D], None where greedy."""
        if self.thought_temperature == 0.0 and self.action_temperature == 0.0:
            return None, None
        if seeds is None or len(seeds) != count:
            raise UserError(f'sampling for {count} observations needs {count} seeds, got '
                            f'{"none" if seeds is None else len(seeds)}')
        slots = self.model.config.slots
        size = slots + self.max_thought_tokens
        noise = torch.stack([
            torch.full((size,), torch.nan, dtype=torch.float64) if seed is None
            else torch.rand(size, generator=torch.Generator().manual_seed(seed),
                            dtype=torch.float64)
            for seed in seeds]).to(self.model.embed_tokens.weight.device)
        return (noise[:, slots:] if self.thought_temperature else None,
                noise[:, :slots] if self.action_temperature else None)

    def _run(self, x: Tensor, real: Tensor, prompt_end: int, cache: DynamicCache,
             action_start: int | None = None) -> Tensor:
        """Run new rows [b, n, w] over a cache, in place; ``real`` [b, S + n] includes them."""
        count = x.shape[1]
        mask = additive(new_rows_visible(real, count, prompt_end, action_start), x.dtype)
        return self.model.run(x, mask, real.cumsum(1)[:, -count:], cache)

    def _think(self, prompts: Sequence[Sequence[int]], features: Tensor, noise: Tensor | None,
               copies: int) -> tuple[_Running, list[list[int]], list[list[float]]]:
        """Return the cache of every row, ``copies`` of a prompt, its tokens and their log-probs.

        The last token is not in the cache: the action pass takes it along.
        """
        model, ids, device = self.model, self.model.config.ids, features.device
        begun = [[*prompt, ids.think] for prompt in prompts]
        input_ids, real = left_padded(begun, ids.pad, device)  # [B, n]
        prompt_end = input_ids.shape[1] - 1
        cache, number = DynamicCache(), torch.arange(len(prompts), device=device)
        hidden = self._run(model.embed_prompt(input_ids, features), real, prompt_end, cache)
        source = number.repeat_interleave(copies)  # [B G]
        hidden = hidden[source, -1:]
        rows = _Running(number, cache, real).where(source)._replace(
            number=torch.arange(len(source), device=device))
        banned = self.banned.to(device)
        chosen: list[list[int]] = [[] for _ in source]
        values: list[list[float]] = [[] for _ in source]
        ended = []
        for step in range(self.max_thought_tokens):
            log_probs = log_distribution(model.token_logits(hidden[:, -1]),
                                         self.thought_temperature or 1.0, banned)  # [b, V]
            token = choose(log_probs, None if noise is None else noise[rows.number, step])
            value = log_probs.gather(1, token[:, None])[:, 0]
            for k, t, v in zip(rows.number.tolist(), token.tolist(), value.tolist(), strict=True):
                chosen[k].append(t)
                values[k].append(v)
            over = (token == ids.think_end) | (step + 1 == self.max_thought_tokens)
            if bool(over.any()):
                ended.append(rows.where(over))
                rows, token = rows.where(~over), token[~over]
            if not len(token):
                break
            real = F.pad(rows.real, (0, 1), value=True)
            hidden = self._run(model.embed(token[:, None]), real, prompt_end, rows.cache)
            rows = rows._replace(real=real)
        return _gathered(ended), chosen, values

    def _act(self, rows: _Running, pending: Sequence[Sequence[int]], prompt_end: int,
             noise: Tensor | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Run each row's last tokens, the slots and the tail; ids and log-probs [B, T*D]."""
        model, slots = self.model, self.model.config.slots
        tokens, fresh = left_padded(pending, model.config.ids.pad, rows.real.device)  # [B, p]
        first = tokens.shape[1] - 1
        x = model.embed_action(tokens)  # [B, p + T*D + 2, w]
        real = torch.cat([rows.real, F.pad(fresh, (0, x.shape[1] - first - 1), value=True)], 1)
        hidden = self._run(x, real, prompt_end, rows.cache, rows.real.shape[1] + first)
        logits = model.action_logits(hidden[:, first:first + slots])  # [B, T*D, bins]
        if not bool(torch.isfinite(logits).all()):
            raise FloatingPointError(NOT_FINITE)
        log_probs = log_distribution(logits, self.action_temperature or 1.0)
        index = choose(log_probs, noise)
        value = log_probs.gather(2, index[..., None])[..., 0]
        return (index + model.config.ids.bins_first).cpu().numpy(), value.cpu().numpy()
