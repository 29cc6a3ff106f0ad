"""What a run will do and about how long each part takes here, from a few timed steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from dtvla_ros.training.trainer import Trainer

T = TypeVar('T')
TIMED = 2  # steps, after one that is not counted


def step_seconds(make: Callable[[], T], compute: Callable[[T], None], loaders: int,
                 device: torch.device) -> float:
    """Return about how long a step takes whose batch ``loaders`` processes make meanwhile."""
    making = computing = 0.0
    for number in range(1 + TIMED):  # as many in all processes, which wait for each other
        begun = time.perf_counter()
        batch = make()
        made = time.perf_counter()
        compute(batch)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        if number:
            making += (made - begun) / TIMED
            computing += (time.perf_counter() - made) / TIMED
    if not loaders:
        return making + computing
    cores = len(os.sched_getaffinity(0))
    shared = computing + making / cores if device.type == 'cpu' else computing
    return max(shared, making / loaders)


def describe(trainer: Trainer, evaluation: str = '') -> str:
    """Return the plan of a run whose trainer has measured: parts, steps and minutes.

    ``evaluation``: what its end evaluates; ``trainer.reserve`` is how long that takes.
    """
    run, now = trainer.run, trainer.clock.seconds
    *costs, cost = trainer.costs
    allowed = trainer.stage_seconds(now)
    rows: list[tuple[str, str, float]] = []
    for stage, each, limit in zip(trainer.stages(), costs, allowed, strict=True):
        left = stage.steps - (trainer.pretraining.step if trainer.pretraining and not rows else 0)
        seconds = min(left * each, limit)
        cut = f' of {left}, as much as fits' if seconds < left * each else ''
        rows.append((stage.title, f'{round(seconds / each)} steps{cut}', seconds))
    spent = sum(seconds for *_, seconds in rows)
    if run.steps:
        steps = max(run.steps - trainer.step, 0)
    else:
        rest = 60.0 * (run.minutes or 0.0) - now - spent - trainer.reserve
        steps = max(round(rest / cost), 0)
    rows.append(('fine-tuning', f'{steps} steps', steps * cost))
    if evaluation:
        rows.append(('evaluation', evaluation, trainer.reserve))
    whole = (f'{run.minutes:g} minutes, {now / 60.0:.1f} of them gone' if run.minutes else
             f'about {sum(seconds for *_, seconds in rows) / 60.0:.1f} minutes')
    return '\n'.join([f'{run.out}: {whole}', *(
        f'  {title:20} {what}, about {seconds / 60.0:.1f} min' for title, what, seconds in rows)])
