"""A LIBERO suite as a Gymnasium environment, with the tabletop suite's contract."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError

from .. import EVAL_SEED_START
from ..env import SETTLE_STEPS, LazyObservation, observation_space, valid_action
from ..projection import project, unseen
from .package import check_mujoco
from .scene import LiberoScene
from .start import STARTS, rearrange
from .tasks import STEP_LIMITS, Problem, read_init_states, read_problem, suite_tasks

INIT_STATES = 50  # recorded for every task
MSAA = 4  # samples, MuJoCo's default
COLLISION_GROUP, HIDDEN_GROUP = 0, 5  # of geoms; robosuite uses 0 and 1


class LiberoEnv(gymnasium.Env):
    """The tasks of one LIBERO suite; observations and actions as of ``TabletopEnv``.

    ``starts``: under ``'benchmark'`` an evaluation seed takes the recorded initial state of that
    number, modulo how many there are; a seed below samples the task's own regions as
    ``'random'`` always does, so that no demonstration starts from a test state. ``'jitter'`` and
    ``'shuffle'`` move the objects from there. An episode depends on its seed alone, not on
    those before it. ``antialiasing`` and ``shadows``: as LIBERO draws.
    """

    control_rate = 20.0
    one_scene = False  # every task has its own

    def __init__(
        self, suite: str, starts: str = STARTS[0], image_size: int = 256,
        assets: str | os.PathLike[str] | None = None, download: bool = False,
        antialiasing: bool = True, shadows: bool = True,
    ):
        # libero_spatial names objects by their places, which shuffling would make untrue.
        self.start_distributions = tuple(
            s for s in STARTS if (suite, s) != ('libero_spatial', 'shuffle'))
        if starts not in self.start_distributions:
            raise UserError(f'unknown starts "{starts}"; {suite} has: '
                            f'{", ".join(self.start_distributions)}')
        check_mujoco()
        self.suite, self.starts, self.image_size = suite, starts, image_size
        self._tasks = suite_tasks(suite)
        self.tasks = tuple(self._tasks)
        self.task = self._tasks[self.tasks[0]]
        self.max_steps = STEP_LIMITS[suite]
        self._assets, self._download = assets, download
        self._msaa, self._shadows = MSAA if antialiasing else 0, shadows
        self._scene: LiberoScene | None = None
        self._scene_task = ''
        self._problems: dict[str, Problem] = {}
        self._renderer: mujoco.Renderer | None = None
        self._options = mujoco.MjvOption()
        self._options.geomgroup[[COLLISION_GROUP, HIDDEN_GROUP]] = 0
        self.observation_space = observation_space(image_size)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._steps = self._tick = 0

    @property
    def scene(self) -> LiberoScene:
        """The present task's scene, built when first needed."""
        if self._scene is None or self._scene_task != self.task.name:
            self.close()
            self._scene = LiberoScene(self.task, self._assets, self._download)
            self._scene_task = self.task.name
        return self._scene

    @property
    def sim(self) -> Any:
        """The present robosuite ``MjSim``: model and data."""
        return self.scene.env.sim

    @property
    def robot(self) -> Any:
        """The robosuite robot."""
        return self.scene.env.robots[0]

    @property
    def flags(self) -> dict[str, Any]:
        """What else a success rate depends on."""
        return {
            'images': 'upright, as the camera sees', 'image_size': self.image_size,
            'msaa_samples': self._msaa, 'shadows': self._shadows,
            'gripper': '-1 opens, +1 closes', 'control_rate_hz': self.control_rate,
            'settle_steps': SETTLE_STEPS, 'max_steps': self.max_steps,
        }

    @property
    def problems(self) -> dict[str, Problem]:
        """What each task's file says of things and goals."""
        if not self._problems:
            self._problems = {n: read_problem(t.bddl) for n, t in self._tasks.items()}
        return self._problems

    @property
    def things(self) -> tuple[str, ...]:
        """All objects and fixtures of the suite; a task's scene holds some of them."""
        return tuple(dict.fromkeys(n for p in self.problems.values() for n in p.things))

    def place(self, name: str) -> NDArray[np.float64]:
        """Return where a thing is now, world [3] m; NaN if this scene has none."""
        scene = self.scene
        if name not in scene.objects and name not in scene.fixtures:
            return np.full(3, np.nan)
        return scene.position(name)

    def image_point(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where world points [..., 3] appear in the third-person view (``project``)."""
        return project(self.scene.model, self.scene.data, 'agentview', points)

    def alternatives(self) -> tuple[str, ...]:
        """Return the tasks that could be asked for in the present scene.

        Those that want something else of things that are here, and the present one. (Tasks that
        want the same of another place's bowl would be untrue here.)
        """
        here = self.problems[self.task.name]
        return (self.task.name, *(
            name for name, other in self.problems.items()
            if other.goals != here.goals and set(other.named) <= {*here.things, *here.regions}))

    def done(self, name: str) -> bool:
        """Return whether all goals of a task hold now; the scene must have its things."""
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
    def base_position(self) -> NDArray[np.float64]:
        """World position [3] of the robot's base in the present task [m]."""
        return np.array(self.scene.data.xpos[self.scene.base])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None,
    ) -> tuple[LazyObservation, dict[str, Any]]:
        """Start ``options['task']`` from the state that ``seed`` names, arm settled.

        ``options['init']`` asks for an initial state by number instead.
        """
        super().reset(seed=seed)
        options = options or {}
        name = options.get('task', self.task.name)
        if name not in self._tasks:
            raise UserError(f'unknown task "{name}"; the suite has: {", ".join(self._tasks)}')
        self.task = self._tasks[name]
        init = options.get('init')
        if init is None and self.starts == 'benchmark' and (seed or 0) >= EVAL_SEED_START:
            init = (seed or 0) % INIT_STATES
        scene = self.scene
        scene.reset(int(self.np_random.integers(2**31)))
        if init is not None:
            states = read_init_states(self.task.init_states)
            if not 0 <= init < len(states):
                raise UserError(f'initial state {init} of {name}: there are {len(states)}')
            scene.set_state(states[init])
        elif self.starts in ('jitter', 'shuffle'):
            rearrange(scene, self.starts, self.np_random)
        for _ in range(SETTLE_STEPS):
            scene.step(np.array([0.0, 0, 0, 0, 0, 0, -1.0]))
        self._steps = 0
        return self.observe(), {
            'task': name, 'instruction': self.task.instruction, 'success': False, 'init': init,
            'msaa_samples': self._msaa, 'shadows': self._shadows}

    def step(
        self, action: NDArray[np.float32],
    ) -> tuple[LazyObservation, float, bool, bool, dict[str, Any]]:
        """Run one control step (50 ms); errors as `valid_action`."""
        success = self.scene.step(valid_action(action))
        self._steps += 1
        truncated = self._steps >= self.max_steps and not success
        return self.observe(), float(success), success, truncated, {'success': success}

    def observe(self) -> LazyObservation:
        """Return the scene as it is now, for instance after something moved it from outside."""
        self._tick += 1
        tick = self._tick
        scene, data = self.scene, self.scene.data
        robot = self.robot
        fingers = robot._ref_gripper_joint_pos_indexes
        state = {
            'robot0_eef_pos': np.array(data.site_xpos[scene.site]),
            'robot0_eef_quat': np.array(data.xquat[scene.eef_body][[1, 2, 3, 0]]),
            'robot0_gripper_qpos': np.array(data.qpos[fingers]),
            'robot0_joint_pos': np.array(robot._joint_positions),
            'robot0_joint_vel': np.array(robot._joint_velocities),
        }
        return LazyObservation(state, self.draw, lambda: self._tick == tick)

    def draw(self, camera: str) -> NDArray[np.uint8]:
        """Return what a camera sees now, upright and not mirrored, [H, W, 3]."""
        scene, size = self.scene, self.image_size
        if self._renderer is None:
            scene.model.vis.quality.offsamples = self._msaa
            whole = scene.model.vis.global_
            whole.offwidth, whole.offheight = (
                max(whole.offwidth, size), max(whole.offheight, size))
            self._renderer = mujoco.Renderer(scene.model, size, size)
        with self._culled(camera):
            self._renderer.update_scene(scene.data, camera, self._options)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._shadows
        return self._renderer.render()

    @contextmanager
    def _culled(self, camera: str) -> Iterator[None]:
        """Leave out what cannot be seen, which MuJoCo sends through OpenGL all the same."""
        model, data = self.scene.model, self.scene.data
        if self._shadows and np.any(model.light_castshadow):
            yield  # the unseen may throw one into the picture
            return
        group = model.geom_group.copy()
        model.geom_group[unseen(model, data, camera)] = HIDDEN_GROUP
        try:
            yield
        finally:
            model.geom_group[:] = group

    def close(self) -> None:
        """Free the renderer and the scene."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._scene is not None:
            self._scene = None
            gc.collect()  # robosuite's objects refer to each other, MuJoCo's memory is unseen
