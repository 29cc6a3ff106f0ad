"""The suite's tasks: what is asked for, and how one sees that it is done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import BIN_HALF, BIN_HEIGHT, CUBE_HALF, MARK, MARK_HALF, TABLE_TOP, TabletopScene


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
