"""One process of several that learn from their shares of saved episodes: learn FOLDER OUT."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from dtvla_ros.training.grpo.learner import Learner, transitions
from dtvla_ros.training.grpo.rollout import Trajectory

from .small import CONFIG, learner_of, small_policy


def alike(played: Sequence[Trajectory], advantages: Sequence[float]) -> list[torch.Tensor]:
    """Return advantages of episodes as those of their decisions."""
    return [torch.full((len(t.decisions),), a) for t, a in zip(played, advantages, strict=True)]


def learn(folder: Path, rank: int, world: int) -> tuple[Learner, dict[str, float]]:
    """Take two steps on the episodes of one process; process 0 gets three, process 1 one."""
    learner = learner_of(small_policy(), replace(
        CONFIG, beta=0.1, num_minibatches=1, num_iterations=2, micro_batch=5))
    # Adam turns rounding of a tiny gradient into a step of full length; plain descent does not.
    learner.optimizer = torch.optim.SGD(learner.model.parameters(), 0.1)
    played = [Trajectory.load(path) for path in sorted(folder.glob('*.safetensors'))]
    advantages = [1.0, -0.7, 0.4, -0.2]
    mine = slice(0, 4) if world == 1 else slice(0, 3) if rank == 0 else slice(3, 4)
    rows = transitions(played[mine], alike(played[mine], advantages[mine]))
    report = learner.update(rows, len(played[mine]), 0)
    assert report is not None
    return learner, report


if __name__ == '__main__':
    torch.set_num_threads(1)
    rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    learned, report = learn(Path(sys.argv[1]), rank, world)
    save_file(learned.model.state_dict() | {
        name: torch.tensor(value) for name, value in report.items()},
        Path(sys.argv[2]) / f'{rank}.safetensors')
    torch.distributed.destroy_process_group()  # else gloo may spin for ever at exit
