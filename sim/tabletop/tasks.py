"""The suite's tasks and start states: objects permuted over the workspace, then jittered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .scene import (
    BIN_HALF,
    BIN_HEIGHT,
    BINS,
    CUBE_HALF,
    MARK,
    MARK_HALF,
    OBJECTS,
    TABLE_TOP,
    TabletopScene,
)

ROWS = (-0.20, -0.07, 0.06)  # world x of the slots [m]
COLUMNS = (-0.16, 0.0, 0.16)  # world y of the slots [m]
JITTER = 0.015  # [m]
YAW_JITTER = np.radians(12.0)
BIN_XY = (-0.07, 0.35)
BIN_JITTER = (0.04, 0.015)
STARTS = ('shuffle', 'jitter')

Placement = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Goal:
    """One step of a task: ``verb`` ('put', 'stack' or 'push') an object to a destination."""

    verb: str
    object: str
    destination: str

    def reached(self, scene: TabletopScene) -> bool:
        """Return whether the goal holds now and the gripper has let go of the object."""
        at = scene.position(self.object)
        to = scene.position(self.destination)
        off = np.abs(at[:2] - to[:2])
        if self.verb == 'put':
            inside = off.max() < BIN_HALF and at[2] < TABLE_TOP + BIN_HEIGHT + 0.035
            return bool(inside) and not scene.held(self.object)
        if self.verb == 'stack':
            level = abs(at[2] - to[2] - 2 * CUBE_HALF) < 0.006
            return bool(off.max() < CUBE_HALF and level) and not scene.held(self.object)
        return bool(off.max() < MARK_HALF - 0.01 and at[2] < TABLE_TOP + 2 * CUBE_HALF)


@dataclass(frozen=True, slots=True)
class Task:
    """A named instruction and its goals, in order."""

    name: str
    goals: tuple[Goal, ...]

    @property
    def instruction(self) -> str:
        """The sentence the policy is given."""
        return self.name.replace('_', ' ')

    def open_goals(self, scene: TabletopScene) -> tuple[Goal, ...]:
        """Return the goals that do not hold yet."""
        return tuple(g for g in self.goals if not g.reached(scene))


TASKS = {
    t.name: t for t in (
        Task('put_the_can_in_the_wooden_bin', (Goal('put', 'can', 'wooden_bin'),)),
        Task('put_the_lemon_in_the_blue_bin', (Goal('put', 'lemon', 'blue_bin'),)),
        Task('put_the_bread_in_the_wooden_bin', (Goal('put', 'bread', 'wooden_bin'),)),
        Task('stack_the_red_cube_on_the_green_cube', (
            Goal('stack', 'red_cube', 'green_cube'),)),
        Task('push_the_green_cube_onto_the_yellow_mark', (Goal('push', 'green_cube', MARK),)),
        Task('put_the_red_cube_and_the_can_in_the_blue_bin', (
            Goal('put', 'red_cube', 'blue_bin'), Goal('put', 'can', 'blue_bin'))),
    )
}


def sample_start(task: Task, rng: Generator,
                 starts: str = 'shuffle') -> tuple[Placement, Placement]:
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
