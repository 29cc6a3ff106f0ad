"""From what an episode achieved to how much better than its group it was."""

from __future__ import annotations

import torch
from torch import Tensor

from dtvla_ros.errors import UserError

BASELINES = ('grpo', 'rloo', 'dr_grpo')


def scores(success: Tensor, form: Tensor, success_weight: float = 1.0,
           form_weight: float = 0.4) -> Tensor:
    """Return ``success_weight * success + form_weight * form``, each [N].

    ``success``: 1 where the episode reached its goal. ``form``: share of its decisions whose
    thought was well formed, 0..1. The weights are those of DeepThinkVLA's released recipe.
    """
    return success_weight * success + form_weight * form


def group_advantages(scores: Tensor, groups: Tensor, baseline: str = 'grpo',
                     epsilon: float = 1e-6) -> Tensor:
    """Return each trajectory's advantage over its group [N], float32.

    ``scores`` [N]; ``groups`` [N] integers, equal for trajectories from one start. With R a
    score, m and s the mean and the unbiased standard deviation over its group of n:

    - 'grpo': (R - m) / (s + epsilon), Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300);
    - 'rloo': R minus the mean of the n - 1 others = (R - m) n / (n - 1), Ahmadian et al. 2024
      (arXiv 2402.14740);
    - 'dr_grpo': R - m, Liu et al. 2025 (arXiv 2503.20783).

    Every token of a trajectory shares its value. Computed in float64: in float32 the mean of
    equal scores is off by as much as ``epsilon``, and a group without a signal would get one.
    """
    if baseline not in BASELINES:
        raise UserError(f'baseline {baseline!r} is none of {", ".join(BASELINES)}')
    if scores.ndim != 1 or scores.shape != groups.shape:
        raise UserError(f'scores {tuple(scores.shape)} and groups {tuple(groups.shape)} must be '
                        '[N] alike')
    names, index, count = groups.unique(return_inverse=True, return_counts=True)
    if bool((count < 2).any()):
        raise UserError(f'group {names[count < 2][0].item()} has one trajectory; an advantage '
                        'needs another to compare with')
    n = count.double()  # [G]
    zero = torch.zeros_like(n)
    mean = zero.index_add(0, index, scores.double()) / n
    away = scores.double() - mean[index]  # [N]
    if baseline == 'grpo':
        deviation = (zero.index_add(0, index, away ** 2) / (n - 1)).sqrt()
        away = away / (deviation[index] + epsilon)
    elif baseline == 'rloo':
        away = away * (n / (n - 1))[index]
    return away.float()
