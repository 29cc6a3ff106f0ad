"""A Gymnasium environment over a tabletop scene, with LIBERO's keys and action space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.errors import UserError

from .gl import choose_gl

choose_gl()  # must come before MuJoCo is imported
# robosuite asks for a private macro file at every import.
logging.getLogger('robosuite_logs').addFilter(lambda record: record.levelno > logging.WARNING)

import mujoco  # noqa: E402

from .projection import project  # noqa: E402
from .snapshot import snapshot  # noqa: E402
from .tabletop.progress import remaining  # noqa: E402
from .tabletop.scene import TabletopScene  # noqa: E402
from .tabletop.start import STARTS, sample_start  # noqa: E402
from .tabletop.tasks import TASKS, Task  # noqa: E402

CAMERAS = {'agentview_image': 'agentview', 'robot0_eye_in_hand_image': 'robot0_eye_in_hand'}
SETTLE_STEPS = 10
HOME_NOISE = 0.02  # standard deviation of the initial joint positions [rad]


def observation_space(image_size: int) -> gymnasium.spaces.Dict:
    """Return the space of an arm's observations: both cameras and its proprioception."""
    image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
    shapes = {'robot0_eef_pos': 3, 'robot0_eef_quat': 4, 'robot0_gripper_qpos': 2,
              'robot0_joint_pos': 7, 'robot0_joint_vel': 7}
    return gymnasium.spaces.Dict(dict.fromkeys(CAMERAS, image) | {
        k: gymnasium.spaces.Box(-np.inf, np.inf, (n,)) for k, n in shapes.items()})


def valid_action(action: ArrayLike) -> NDArray[np.float64]:
    """Return an action [7] clipped to [-1, 1].

    Raises
    ------
    UserError
        If it has the wrong shape or is not finite.

    """
    values = np.asarray(action, np.float64)
    if values.shape != (7,) or not np.isfinite(values).all():
        raise UserError(f'action must be 7 finite numbers, got {values!r}')
    return np.clip(values, -1.0, 1.0)


class LazyObservation(Mapping[str, NDArray]):
    """Observation whose images are drawn when first read, at most once per control step.

    Reading an image after the next ``step`` raises ``RuntimeError``: the scene has moved on.
    """

    def __init__(
        self, state: dict[str, NDArray], draw: Callable[[str], NDArray[np.uint8]],
        current: Callable[[], bool],
    ):
        self._values = dict(state)
        self._draw = draw
        self._current = current

    def __getitem__(self, key: str) -> NDArray:
        """Return a value, drawing the image if it has not been drawn yet."""
        if key in CAMERAS and key not in self._values:
            if not self._current():
                raise RuntimeError(f'"{key}" was not read before the next step')
            self._values[key] = self._draw(CAMERAS[key])
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        """Return whether a key exists, without drawing."""
        return key in CAMERAS or key in self._values

    def __iter__(self) -> Iterator[str]:
        """Iterate over every key, drawn or not."""
        return iter({**dict.fromkeys(CAMERAS), **self._values})

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(set(CAMERAS) | set(self._values))


class TabletopEnv(gymnasium.Env):
    """Language-conditioned tabletop manipulation with a Panda under OSC_POSE at 20 Hz.

    Observations (LIBERO's names): ``agentview_image`` and ``robot0_eye_in_hand_image`` uint8
    [H, W, 3], upright as the camera sees; ``robot0_eef_pos`` [3] world m, ``robot0_eef_quat``
    [4] xyzw, ``robot0_gripper_qpos`` [2] m, ``robot0_joint_pos`` [7] and ``robot0_joint_vel``
    [7] rad. Actions [7] in [-1, 1]: position and rotation-vector offsets (0.05 m, 0.5 rad per
    unit, base axes) and the gripper (-1 opens, +1 closes). Reward 1 and termination on success.
    """

    control_rate = 20.0
    start_distributions = STARTS  # the first is the default
    one_scene = True  # for all tasks

    def __init__(
        self, image_size: int = 128, steps_per_goal: int = 180, starts: str = STARTS[0],
    ):
        if starts not in STARTS:
            raise UserError(f'unknown starts "{starts}"; tabletop has: {", ".join(STARTS)}')
        self.starts = starts
        self.image_size = image_size
        self.steps_per_goal = steps_per_goal
        self.scene = TabletopScene()
        self.tasks = tuple(TASKS)
        self.task: Task = TASKS[self.tasks[0]]
        self.base_position = np.array(self.scene.sim.data.body_xpos[self.scene.base_id])
        self.observation_space = observation_space(image_size)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._steps = 0
        self._tick = 0
        model = self.scene.sim.model._model
        model.vis.quality.offsamples = 0  # antialiasing halves the frame rate in software
        self._renderer: mujoco.Renderer | None = None
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision meshes

    @property
    def sim(self) -> Any:
        """The present robosuite ``MjSim``: model and data."""
        return self.scene.sim

    @property
    def robot(self) -> Any:
        """The robosuite robot."""
        return self.scene.robots[0]

    @property
    def things(self) -> tuple[str, ...]:
        """All objects and fixtures of the suite."""
        return (*self.scene.objects, *self.scene.fixtures)

    def place(self, name: str) -> NDArray[np.float64]:
        """Return where a thing is now, world [3] m."""
        return self.scene.position(name)

    def image_point(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where world points [..., 3] appear in the third-person view (``project``)."""
        return project(self.sim.model._model, self.sim.data._data, 'agentview', points)

    def alternatives(self) -> tuple[str, ...]:
        """Return the tasks that could be asked for in the present scene."""
        return self.tasks

    def done(self, name: str) -> bool:
        """Return whether all goals of a task hold now."""
        return not TASKS[name].open_goals(self.scene)

    def remaining(self) -> float:
        """Return how far the present task is from done [m]; see ``progress``."""
        return remaining(self.scene, self.task)

    def snapshot(self) -> Callable[[], None]:
        """Return what brings the episode back to this moment; see ``snapshot``."""
        back, steps = snapshot(self.scene), self._steps

        def restore() -> None:
            back()
            self._steps = steps
            self._tick += 1

        return restore

    @contextmanager
    def asked(self, name: str) -> Iterator[None]:
        """Ask for another task without touching the scene."""
        before, self.task = self.task, TASKS[name]
        try:
            yield
        finally:
            self.task = before

    @property
    def flags(self) -> dict[str, Any]:
        """What else a success rate depends on."""
        return {
            'images': 'upright, as the camera sees', 'image_size': self.image_size,
            'msaa_samples': int(self.sim.model._model.vis.quality.offsamples),
            'gripper': '-1 opens, +1 closes', 'control_rate_hz': self.control_rate,
            'settle_steps': SETTLE_STEPS, 'steps_per_goal': self.steps_per_goal,
        }

    @property
    def max_steps(self) -> int:
        """Control steps after which the present task counts as failed."""
        return self.steps_per_goal * len(self.task.goals)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None,
    ) -> tuple[LazyObservation, dict[str, Any]]:
        """Start ``options['task']`` from the state that ``seed`` names, arm settled."""
        super().reset(seed=seed)
        name = (options or {}).get('task', self.task.name)
        if name not in TASKS:
            raise UserError(f'unknown task "{name}"; the suite has: {", ".join(TASKS)}')
        self.task = TASKS[name]
        scene = self.scene
        objects, fixtures = sample_start(self.task, self.np_random, self.starts)
        scene.reset()
        robot = scene.robots[0]
        joints = robot.init_qpos + self.np_random.normal(0.0, HOME_NOISE, 7)
        robot.set_robot_joint_positions(joints)
        robot.gripper.current_action = np.zeros(robot.gripper.dof)  # robosuite keeps the last one
        scene.place(objects, fixtures)
        robot.controller.update(force=True)
        robot.controller.reset_goal()
        self._steps = 0
        for _ in range(SETTLE_STEPS):
            scene.step(np.array([0.0, 0, 0, 0, 0, 0, -1.0]))
        return self.observe(), {'task': name, 'instruction': self.task.instruction,
                                 'success': False}

    def step(
        self, action: NDArray[np.float32],
    ) -> tuple[LazyObservation, float, bool, bool, dict[str, Any]]:
        """Run one control step (50 ms); errors as `valid_action`."""
        self.scene.step(valid_action(action))
        self._steps += 1
        success = not self.task.open_goals(self.scene)
        truncated = self._steps >= self.max_steps and not success
        return self.observe(), float(success), success, truncated, {'success': success}

    def observe(self) -> LazyObservation:
        """Return the scene as it is now, for instance after something moved it from outside."""
        self._tick += 1
        tick = self._tick
        robot, data = self.scene.robots[0], self.scene.sim.data
        quat = data.get_body_xquat(robot.robot_model.eef_name)[[1, 2, 3, 0]]
        state = {
            'robot0_eef_pos': np.array(data.site_xpos[robot.eef_site_id]),
            'robot0_eef_quat': np.array(quat),
            'robot0_gripper_qpos': np.array(
                [data.qpos[i] for i in robot._ref_gripper_joint_pos_indexes]),
            'robot0_joint_pos': np.array(robot._joint_positions),
            'robot0_joint_vel': np.array(robot._joint_velocities),
        }
        return LazyObservation(state, self.draw, lambda: self._tick == tick)

    def draw(self, camera: str) -> NDArray[np.uint8]:
        """Return what a camera of the scene sees now, [H, W, 3]."""
        sim = self.scene.sim
        if self._renderer is None:
            self._renderer = mujoco.Renderer(sim.model._model, self.image_size, self.image_size)
        self._renderer.update_scene(sim.data._data, camera, self._options)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0
        return self._renderer.render()

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
