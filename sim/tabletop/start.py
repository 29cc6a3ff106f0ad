"""Start states that need eyes: objects permuted over the workspace, then jittered."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .. import EVAL_SEED_START as EVAL_SEED_START
from .scene import BINS, MARK, OBJECTS
from .tasks import Task

ROWS = (-0.20, -0.07, 0.06)  # world x of the slots [m]
COLUMNS = (-0.16, 0.0, 0.16)  # world y of the slots [m]
JITTER = 0.015  # [m]
YAW_JITTER = np.radians(12.0)
BIN_XY = (-0.07, 0.35)
BIN_JITTER = (0.04, 0.015)
STARTS = ('shuffle', 'jitter')

Placement = dict[str, NDArray[np.float64]]


def sample_start(
    task: Task, rng: Generator, starts: str = 'shuffle',
) -> tuple[Placement, Placement]:
    """Return (objects: x, y, yaw; fixtures: x, y) in the world frame [m, rad].

    The five objects and the mark are permuted over nine slots. A pushed object gets the mark in
    the neighbouring slot of its row, where nothing stands between them. ``starts='jitter'``
    leaves out the permutation: every start of a task is the same arrangement, jittered.
    """
    arrange = rng if starts == 'shuffle' else np.random.default_rng(0)
    slots = [(r, c) for r in range(3) for c in range(3)]
    pushed = next((g.object for g in task.goals if g.verb == 'push'), None)
    where: dict[str, tuple[int, int]] = {}
    if pushed is not None:
        row, start = int(arrange.integers(3)), int(arrange.integers(3))
        end = 1 if start != 1 else int(arrange.choice([0, 2]))
        where = {pushed: (row, start), MARK: (row, end)}
        slots = [s for s in slots if s not in where.values()]
    names = [n for n in (*OBJECTS, MARK) if n not in where]
    order = arrange.permutation(len(slots))
    where |= {n: slots[i] for n, i in zip(names, order)}

    objects, fixtures = {}, {}
    for name, (row, column) in where.items():
        xy = np.array([ROWS[row], COLUMNS[column]]) + rng.uniform(-JITTER, JITTER, 2)
        if name == MARK:
            fixtures[name] = xy
        else:
            objects[name] = np.append(xy, rng.uniform(-YAW_JITTER, YAW_JITTER))
    side = arrange.choice([-1.0, 1.0])
    for name, sign in zip(BINS, (side, -side)):
        centre = np.array([BIN_XY[0], sign * BIN_XY[1]])
        fixtures[name] = centre + rng.uniform(-1, 1, 2) * BIN_JITTER
    return objects, fixtures
