"""Exact log-probs of what a policy wrote: its thought word by word, its actions slot by slot.

Differentiable, for reinforcement learning. Logits are taken only at the rows that predict a
chosen token. Shapes: B batch, L sequence, S = T*D action slots, V vocabulary, R chosen thought
tokens of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtvla_ros.errors import UserError
from dtvla_ros.policy.attention import action_start, left_padded
from dtvla_ros.policy.config import SpecialIds
from dtvla_ros.policy.model import HybridDecoder


@dataclass(frozen=True, slots=True)
class Written:
    """Whole padded sequences, and which of their thought tokens the policy chose itself.

    ``input_ids`` [B, L]: prompt, thought, ``<action>``, S action ids, ``</action>``, eos.
    ``attention_mask`` [B, L]: 0 at pads, on either side. ``thought_mask`` [B, L] bool: True at
    tokens drawn from the model; a tag that was put there counts for nothing.
    """

    input_ids: Tensor
    attention_mask: Tensor
    thought_mask: Tensor

    def __post_init__(self) -> None:
        shapes = self.input_ids.shape, self.attention_mask.shape, self.thought_mask.shape
        if len(shapes[0]) != 2 or len(set(shapes)) != 1:
            raise UserError('ids, attention mask and thought mask must be [B, L] alike, got '
                            f'{[tuple(shape) for shape in shapes]}')
        predicted = torch.zeros_like(self.thought_mask)
        predicted[:, 1:] = self.attention_mask[:, :-1].bool()
        if bool((self.thought_mask & ~predicted).any()):
            raise UserError('thought mask: a chosen token has no real token before it')


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-probs and, where asked for, entropies [nats, float32].

    ``thought`` [B, L]: of the token in each column, 0 outside the thought mask. ``action``
    [B, S]. ``thought_entropy`` [B, L] and ``action_entropy`` [B, S]: of the distributions those
    tokens were drawn from.
    """

    thought: Tensor
    action: Tensor
    thought_entropy: Tensor | None = None
    action_entropy: Tensor | None = None


def lay_out(prompts: Sequence[Sequence[int]], thoughts: Sequence[Sequence[int]],
            chosen: Sequence[int], actions: Sequence[Sequence[int]], ids: SpecialIds,
            device: torch.device | str = 'cpu') -> Written:
    """Return left-padded whole sequences of ragged prompts and thoughts.

    ``thoughts`` hold their tags; of each, the ``chosen`` tokens after ``<think>`` were the
    policy's choice. ``actions``: S ids each.
    """
    tail = [ids.action_end, ids.eos]
    rows = [[*prompt, *thought, ids.action, *action, *tail]
            for prompt, thought, action in zip(prompts, thoughts, actions, strict=True)]
    input_ids, real = left_padded(rows, ids.pad, device)
    width = input_ids.shape[1]
    mask = torch.zeros_like(real)
    for k, (row, prompt, count) in enumerate(zip(rows, prompts, chosen, strict=True)):
        first = width - len(row) + len(prompt) + 1
        mask[k, first:first + count] = True
    return Written(input_ids, real, mask)


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


def entropy_of(log_probs: Tensor) -> Tensor:
    """Return -sum p log p over the last dimension, [..., K] -> [...]."""
    return -(log_probs.exp() * log_probs).sum(-1)


def likelihood(model: HybridDecoder, written: Written, features: Tensor, *,
               banned: Tensor | None = None, thought_temperature: float = 1.0,
               action_temperature: float = 1.0, entropy: bool = False) -> Likelihood:
    """Return the log-probs of a batch's chosen thought tokens and of its actions.

    Thought token i is predicted by the causal row i - 1, over the vocabulary without the
    ``banned`` [V] ids; action k by the bidirectional row A + k, A being the last ``<action>``,
    over the bins alone. ``features`` [B, image_tokens, width]: ``model.encode_images``.
    """
    ids, spec = written.input_ids, model.config.ids
    hidden = model.read(ids, written.attention_mask, features)  # [B, L, w]

    row, column = written.thought_mask.nonzero(as_tuple=True)  # [R]
    token = ids[row, column]
    if banned is not None and bool(banned[token].any()):
        raise UserError(f'a chosen thought token is banned (ids '
                        f'{sorted(set(token[banned[token]].tolist()))}); its log-prob is '
                        'without bound')
    words = log_distribution(
        model.token_logits(hidden[row, column - 1]), thought_temperature, banned)  # [R, V]
    blank = words.new_zeros(ids.shape)  # [B, L]
    place = row, column

    batch = torch.arange(len(ids), device=ids.device)[:, None]
    slot = torch.arange(model.config.slots, device=ids.device)
    slot = action_start(ids, spec)[:, None] + slot  # [B, S]
    if bool((slot[:, -1] + 1 >= ids.shape[1]).any()):
        raise UserError(f'a sequence has fewer than {model.config.slots} action ids')
    action = ids[batch, slot + 1] - spec.bins_first
    if bool(((action < 0) | (action >= spec.bins)).any()):
        raise UserError(f'a sequence has fewer than {model.config.slots} action ids '
                        f'{spec.bins_first}..{spec.bins_last} after its last <action>')
    bins = log_distribution(
        model.action_logits(hidden[batch, slot]), action_temperature)  # [B, S, bins]
    return Likelihood(
        thought=blank.index_put(place, words.gather(1, token[:, None])[:, 0]),
        action=bins.gather(2, action[..., None])[..., 0],
        thought_entropy=blank.index_put(place, entropy_of(words)) if entropy else None,
        action_entropy=entropy_of(bins) if entropy else None)
