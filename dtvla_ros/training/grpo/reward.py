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


def weighted(outcome: Tensor, form: Tensor, outcome_weight: float = 1.0,
             format_weight: float = 0.4) -> Tensor:
    """Return ``outcome_weight * outcome + format_weight * form``, of any one shape.

    ``outcome``: 1 where an episode reached its goal, or the progress of a decision [m].
    ``form``: share of decisions whose thought was well formed, 0..1. The default weights are
    those of DeepThinkVLA's released recipe.
    """
    return outcome_weight * outcome + format_weight * form


class Rewards:
    """The reward function of a run."""

    def __init__(self, config: GrpoConfig, transform: PolicyTransform):
        self._config, self._transform = config, transform

    def format(self, trajectory: Trajectory) -> float:
        """Return the share of decisions whose thought is well formed."""
        formed = self._formats(trajectory)
        return sum(formed) / len(formed)

    def _formats(self, trajectory: Trajectory) -> list[bool]:
        return [well_formed(self._transform.decode_thought(d.thought_tokens), d.outcome,
                            self._config.format_reward) for d in trajectory.decisions]

    def of(self, trajectories: Sequence[Trajectory]) -> Tensor:
        """Return the rewards of N episodes [N]."""
        return weighted(torch.tensor([float(t.success) for t in trajectories]),
                        torch.tensor([self.format(t) for t in trajectories]),
                        self._config.success_weight, self._config.format_weight)

    def of_decisions(self, samples: Sequence[Trajectory]) -> Tensor:
        """Return the rewards [G, n] of G samples of each of an episode's n decisions."""
        return weighted(torch.tensor([t.progress for t in samples]),
                        torch.tensor([self._formats(t) for t in samples]).float(),
                        self._config.progress_weight, self._config.format_weight)
