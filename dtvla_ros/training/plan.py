"""Where a fine-tuning run goes, how long it takes, and how fast it learns on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtvla_ros.errors import UserError
from dtvla_ros.training.config import SftConfig
from dtvla_ros.training.schedule import warm_cosine


@dataclass(frozen=True, slots=True)
class SftRun:
    """Where and how long. Give ``minutes`` (of training time) or ``steps``.

    ``evaluate_every`` and ``checkpoint_every`` are in minutes of training time;
    ``episodes``: held-out episodes per task at each evaluation (0: losses only).
    ``loaders``: processes that make batches ahead. ``compile``: fuse the network with
    TorchInductor (needs a C++ compiler). ``weights``: each dataset's share of the draws; none: by
    its number of frames.
    """

    data: tuple[Path, ...]
    out: Path
    init: Path | None = None
    minutes: float | None = None
    steps: int | None = None
    evaluate_every: float = 5.0
    checkpoint_every: float = 3.0
    episodes: int = 0
    suite: str = 'tabletop'
    threads: int | None = None
    loaders: int = 1
    compile: bool = False
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise UserError('give either --minutes or --steps')
        if not self.data:
            raise UserError('--data: no dataset given; run dtvla collect first')
        if self.weights and (len(self.weights) != len(self.data) or min(self.weights) <= 0):
            raise UserError(f'--weight: {len(self.weights)} for {len(self.data)} datasets; give '
                            'each one a positive share, or none')

    def progress(self, step: int, seconds: float) -> float:
        """Return how much of the run is done, 0..1."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None
        return seconds / (60.0 * self.minutes)


def learning_rate(config: SftConfig, step: int, progress: float) -> float:
    """Linear warm-up by steps, then a cosine over the run down to ``final_rate`` of the peak."""
    return config.learning_rate * warm_cosine(
        step, config.warmup_steps, progress, config.final_rate)
