"""Rewards of episodes and of single decisions: success or progress, and well-formed thoughts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.rollout import Trajectory

# The words of ``dtvla_sim.experts.grammar.Thought.text``, in their order; names may be several.
_NAME = r'[a-z0-9]+( [a-z0-9]+){0,5}'
_GRAMMAR = re.compile(
    rf'holding {_NAME} done {_NAME} now [a-z]+ {_NAME} at x\d+ y[+-]\d+ next [a-z]+ '
    r'move (forward|back|still) (left|right|still) (up|down|still)')


def well_formed(text: str, outcome: str, kind: str) -> bool:
    """Return whether a thought ended by itself and, for 'grammar', reads as the experts' do."""
    return outcome == 'complete' and (kind == 'closed' or _GRAMMAR.fullmatch(text) is not None)


class Rewards:
    """The reward function of a run; its default weights are those of the released recipe."""

    def __init__(self, config: GrpoConfig, transform: PolicyTransform):
        self._config, self._transform = config, transform

    def format(self, trajectory: Trajectory) -> float:
        """Return the share of decisions whose thought is well formed."""
        formed = self._formed(trajectory)
        return sum(formed) / len(formed)

    def _formed(self, trajectory: Trajectory) -> list[bool]:
        return [well_formed(self._transform.decode_thought(d.thought_tokens), d.outcome,
                            self._config.format_reward) for d in trajectory.decisions]

    def of(self, trajectories: Sequence[Trajectory]) -> Tensor:
        """Return the rewards of N episodes [N]: success, and share of well-formed thoughts."""
        success = torch.tensor([float(t.success) for t in trajectories])
        formed = torch.tensor([self.format(t) for t in trajectories])
        return self._config.success_weight * success + self._config.format_weight * formed

    def of_group(self, samples: Sequence[Trajectory]) -> Tensor:
        """Return what is compared of G samples [G, n]: n decisions per step, else one episode.

        A decision's reward is its progress [m], and whether its thought is well formed.
        """
        if not self._config.per_step:
            return self.of(samples)[:, None]
        formed = torch.tensor([self._formed(t) for t in samples]).float()
        return (self._config.progress_weight * torch.tensor([t.progress for t in samples])
                + self._config.format_weight * formed)
