"""What a run begins with: the weights and habits of a training run or a policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.training.finish import read_source


@dataclass(frozen=True, slots=True)
class Start:
    """A policy that goes on learning; ``replan_steps``: actions executed between its looks."""

    model: HybridDecoder
    transform: PolicyTransform
    replan_steps: int
    max_thought_tokens: int


def load_start(path: Path, replan_steps: int | None = None) -> Start:
    """Read a policy folder, hashes checked, or a training run.

    ``replan_steps`` None: as the policy's manifest says; a run has the usual number.
    """
    model, transform, manifest = read_source(path)
    return Start(model, transform, replan_steps or manifest.action.replan_steps,
                 manifest.max_thought_tokens)
