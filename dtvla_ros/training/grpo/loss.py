"""Log-probs of sampled thoughts and actions, and the loss of GRPO on them.

Columns [L + S]: the padded sequence with the thought, then the S = T*D action slots. Shapes: B
sequences, V vocabulary, R sampled thought tokens of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtvla_ros.engine.batch import SampledDecision, log_distribution
from dtvla_ros.policy.attention import action_start, left_padded
from dtvla_ros.policy.config import SpecialIds
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.training.grpo.config import LossAggMode

LOG_RATIO_LIMIT = 20.0  # exp of more is infinite in the end, and its gradient NaN
KL_LIMIT = 10.0  # of the estimate for one token [nats]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Padded whole sequences, and which of their thought tokens the policy sampled.

    ``input_ids`` [B, L]: prompt, thought, ``<action>``, S action ids, ``</action>``, eos;
    ``attention_mask`` [B, L]: 0 at pads; ``thought_mask`` [B, L]: True at tokens drawn from the
    model.
    """

    input_ids: Tensor
    attention_mask: Tensor
    thought_mask: Tensor


def collate(decisions: Sequence[SampledDecision], ids: SpecialIds,
            device: torch.device | str = 'cpu') -> TokenBatch:
    """Return decisions as left-padded whole sequences."""
    rows = [[*d.prompt_tokens, *d.thought_tokens, ids.action, *d.action_tokens.tolist(),
             ids.action_end, ids.eos] for d in decisions]
    input_ids, real = left_padded(rows, ids.pad, device)
    sampled = torch.zeros_like(real)
    for k, (row, d) in enumerate(zip(rows, decisions, strict=True)):
        first = input_ids.shape[1] - len(row) + len(d.prompt_tokens) + 1  # behind <think>
        sampled[k, first:first + len(d.thought_log_probs)] = True
    return TokenBatch(input_ids, real, sampled)


def sequence_log_probs(model: HybridDecoder, tokens: TokenBatch, features: Tensor, *,
                       banned: Tensor | None = None, thought_temperature: float = 1.0,
                       action_temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return log-probs and entropies of a batch's tokens [B, L + S], in nats and float32.

    Thought token i is predicted by the causal row i - 1, over the vocabulary without the
    ``banned`` [V] ids; columns outside the thought mask hold 0. Action k is predicted by the
    bidirectional row A + k, A being the last ``<action>``, over the bins alone. ``features`` [B,
    image_tokens, width]: ``model.encode_images``. The entropies are those of the sampled
    distributions, without gradient.
    """
    ids, special, slots = tokens.input_ids, model.config.ids, model.config.slots
    hidden = model.read(ids, tokens.attention_mask, features)  # [B, L, w]

    row, column = tokens.thought_mask.nonzero(as_tuple=True)  # [R]
    token = ids[row, column]
    thought = log_distribution(
        model.token_logits(hidden[row, column - 1]), thought_temperature, banned)  # [R, V]

    batch = torch.arange(len(ids), device=ids.device)[:, None]
    slot = action_start(ids, special)[:, None] + torch.arange(slots, device=ids.device)  # [B, S]
    bins = ids[batch, slot + 1] - special.bins_first
    action = log_distribution(
        model.action_logits(hidden[batch, slot]), action_temperature)  # [B, S, bins]

    def columns(of_thought: Tensor, of_action: Tensor) -> Tensor:
        blank = of_thought.new_zeros(ids.shape)
        return torch.cat([blank.index_put((row, column), of_thought), of_action], 1)

    log_probs = columns(thought.gather(1, token[:, None])[:, 0],
                        action.gather(2, bins[..., None])[..., 0])
    with torch.no_grad():
        return log_probs, columns(_entropy(thought), _entropy(action))


def _entropy(log_probs: Tensor) -> Tensor:
    """Return -sum p log p over the last dimension, [..., K] -> [...]."""
    return -(log_probs.exp() * log_probs).sum(-1)


def normalizers(mode: LossAggMode, tokens: float, sequences: float, lengths: Tensor) -> Tensor:
    """Return what the token losses of each row are divided by before they are added up [B].

    ``mode`` with verl's names (``core_algos.agg_loss``): 'token-mean', over all ``tokens`` alike;
    'seq-mean-token-sum', the mean over ``sequences`` of their sums; 'seq-mean-token-mean', of
    their means. ``lengths`` [B]: tokens of the sequence that a row is part of.
    """
    if mode == 'seq-mean-token-mean':
        return sequences * lengths
    return torch.full_like(lengths, tokens if mode == 'token-mean' else sequences)


def policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor,
                normalizer: Tensor, *, epsilon: float = 0.2, epsilon_high: float = 0.28,
                clip_ratio_c: float = 3.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the dual-clip PPO loss summed over the tokens in ``mask``, and diagnostics of each.

    With r = exp(new - old log-prob) and A the advantage, a token's loss is

        L = max(-A r, -A clip(r, 1 - epsilon, 1 + epsilon_high));
        min(L, -A clip_ratio_c) if A < 0.

    Clipping: Schulman et al. 2017 (arXiv 1707.06347), the higher upper bound Yu et al. 2025
    (DAPO, arXiv 2503.14476), the dual clip Ye et al. 2020 (arXiv 1912.09729).

    ``log_probs`` (with gradient), ``old_log_probs`` and ``mask`` are [B, n], ``advantages``
    [B, n] or [B, 1], ``normalizer`` [B] as of ``normalizers``; it divides the advantage, by which
    the loss is scaled. Diagnostics [B, n]: ``clip_fraction``, where the clipped term was the
    larger loss, so that the token gives no gradient; ``lower_clip_fraction``, where the dual clip
    bounded it; ``approximate_kl``, old minus new log-prob [nats].
    """
    advantages = (advantages / normalizer[:, None]).to(log_probs.dtype)
    change = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)
    ratio = change.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    plain = -advantages * ratio  # [B, n]
    clipped = -advantages * ratio.clamp(1.0 - epsilon, 1.0 + epsilon_high)
    upper = torch.maximum(plain, clipped)
    bound = -advantages * clip_ratio_c
    worse = advantages < 0
    losses = torch.where(worse, torch.minimum(upper, bound), upper)
    return losses.masked_fill(mask == 0, 0.0).sum(), {  # what a pad holds may be anything
        'clip_fraction': clipped > plain, 'lower_clip_fraction': (upper > bound) & worse,
        'approximate_kl': -change.detach()}


def kl_divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per token from tokens the policy drew; any one shape.

    With d = policy minus reference log-prob: exp(-d) + d - 1, at most ``KL_LIMIT``. This is k3 of
    Schulman 2020, "Approximating KL divergence": unbiased, and never negative.
    """
    back = (reference - log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (back.exp() - back - 1.0).clamp(-KL_LIMIT, KL_LIMIT)
