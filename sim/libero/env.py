"""A LIBERO suite as a Gymnasium environment."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from dtvla_ros.errors import UserError

from ..env import ArmEnv
from ..projection import unseen
from ..seeds import EVAL_SEED_START
from .package import check_mujoco
from .scene import LiberoScene
from .start import STARTS, rearrange
from .tasks import STEP_LIMITS, Problem, read_init_states, read_problem, suite_tasks

INIT_STATES = 50  # recorded for every task
MSAA = 4  # samples, MuJoCo's default
COLLISION_GROUP, HIDDEN_GROUP = 0, 5  # of geoms; robosuite uses 0 and 1


class LiberoEnv(ArmEnv):
    """The tasks of one LIBERO suite, each in its own scene.

    ``starts``: under ``'benchmark'`` an evaluation seed takes the recorded initial state of that
    number, modulo how many there are; a seed below samples the task's own regions as
    ``'random'`` always does, so that no demonstration starts from a test state. ``'jitter'`` and
    ``'shuffle'`` move the objects from there. ``options['init']`` of a reset asks for an initial
    state by number instead. An episode depends on its seed alone, not on those before it.
    ``antialiasing`` and ``shadows``: as LIBERO draws.
    """

    one_scene = False

    def __init__(self, suite: str, starts: str = STARTS[0], image_size: int = 256,
                 assets: str | os.PathLike[str] | None = None, download: bool = False,
                 antialiasing: bool = True, shadows: bool = True):
        # libero_spatial names objects by their places, which shuffling would make untrue.
        self.start_distributions = tuple(
            s for s in STARTS if (suite, s) != ('libero_spatial', 'shuffle'))
        check_mujoco()
        super().__init__(
            suite, suite_tasks(suite), starts, image_size, MSAA if antialiasing else 0, shadows,
            hidden=(COLLISION_GROUP, HIDDEN_GROUP))
        self.max_steps = STEP_LIMITS[suite]
        self._assets, self._download = assets, download
        self._scene: LiberoScene | None = None
        self._scene_task = ''
        self._problems: dict[str, Problem] = {}

    @property
    def scene(self) -> LiberoScene:
        """The present task's scene, built when first needed."""
        if self._scene is None or self._scene_task != self.task.name:
            self.close()
            self._scene = LiberoScene(self.task, self._assets, self._download)
            self._scene_task = self.task.name
        return self._scene

    @property
    def problems(self) -> dict[str, Problem]:
        """The objects and goals in each task's file."""
        if not self._problems:
            self._problems = {n: read_problem(t.bddl) for n, t in self._tasks.items()}
        return self._problems

    @property
    def object_names(self) -> tuple[str, ...]:
        """All objects and fixtures of the suite; a task's scene holds some of them."""
        return tuple(dict.fromkeys(n for p in self.problems.values() for n in p.objects))

    def alternatives(self) -> tuple[str, ...]:
        """Return the tasks that could be asked for in the present scene.

        Those that want something else of objects that are here, and the present one. (Tasks that
        want the same of another place's bowl would be untrue here.)
        """
        here = self.problems[self.task.name]
        return (self.task.name, *(
            name for name, other in self.problems.items()
            if other.goals != here.goals and set(other.named) <= {*here.objects, *here.regions}))

    def done(self, name: str) -> bool:
        """Return whether all goals of a task hold now; the scene must have its objects."""
        predicate = self.scene.env._eval_predicate
        return all(predicate(list(goal)) for goal in self.problems[name].goals)

    @contextmanager
    def asked(self, name: str) -> Iterator[None]:
        """Ask for another task without touching the scene."""
        scene, task = self.scene, self.task
        goals = scene.goals
        self.task, self._scene_task = self._tasks[name], name
        scene.goals = [list(goal) for goal in self.problems[name].goals]
        try:
            yield
        finally:
            self.task, self._scene_task, scene.goals = task, task.name, goals

    @property
    def flags(self) -> dict[str, Any]:
        """What else a success rate depends on."""
        return {**super().flags, 'shadows': self._shadows, 'max_steps': self.max_steps}

    def success(self) -> bool:
        """Return the benchmark's own judgement of the present task."""
        return self.scene.success()

    def start(self, seed: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the scene to the start that ``starts``, the seed and ``options`` name."""
        init = options.get('init')
        if init is None and self.starts == 'benchmark' and (seed or 0) >= EVAL_SEED_START:
            init = (seed or 0) % INIT_STATES
        scene = self.scene
        scene.reset(int(self.np_random.integers(2**31)))
        if init is not None:
            states = read_init_states(self.task.init_states)
            if not 0 <= init < len(states):
                raise UserError(f'initial state {init} of {self.task.name}: there are '
                                f'{len(states)}')
            scene.set_state(states[init])
        elif self.starts in ('jitter', 'shuffle'):
            rearrange(scene, self.starts, self.np_random)
        return {'init': init, 'msaa_samples': self._msaa, 'shadows': self._shadows}

    @contextmanager
    def _culled(self, camera: str) -> Iterator[None]:
        """Leave out what cannot be seen, which MuJoCo sends through OpenGL all the same."""
        model = self.model
        if self._shadows and np.any(model.light_castshadow):
            yield  # the unseen may throw one into the image
            return
        group = model.geom_group.copy()
        model.geom_group[unseen(model, self.data, camera)] = HIDDEN_GROUP
        try:
            yield
        finally:
            model.geom_group[:] = group

    def close(self) -> None:
        """Free the renderer and the scene."""
        super().close()
        if self._scene is not None:
            self._scene = None
            gc.collect()  # robosuite's objects refer to each other, MuJoCo's memory is unseen
