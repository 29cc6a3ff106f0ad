"""The environment that both suites share: a Panda under OSC_POSE, with LIBERO's keys."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.errors import UserError

from .prepare import cannot_draw, prepare

prepare()  # before MuJoCo and robosuite are imported

import mujoco  # noqa: E402

from .projection import project  # noqa: E402

CAMERAS = {'agentview_image': 'agentview', 'robot0_eye_in_hand_image': 'robot0_eye_in_hand'}
SETTLE_STEPS = 10
REST = np.array([0.0, 0, 0, 0, 0, 0, -1.0])  # of OSC_POSE: stays and opens the gripper
OSC_CONTRACT = ActionContract()


def valid_action(action: ArrayLike, contract: ActionContract = OSC_CONTRACT,
                 ) -> NDArray[np.float64]:
    """Return an action [D]; of OSC_POSE it is clipped to [-1, 1], of others only its gripper.

    Raises UserError if it has the wrong shape or is not finite.
    """
    values = np.array(action, np.float64)
    if values.shape != (contract.dim,) or not np.isfinite(values).all():
        raise UserError(f'action must be {contract.dim} finite numbers, got {values!r}')
    if contract.is_normalised:
        return np.clip(values, -1.0, 1.0)
    if (k := contract.gripper_index) is not None:
        values[k] = np.clip(values[k], -1.0, 1.0)
    return values


class SceneGeom(NamedTuple):
    """Something to draw that physics does not know.

    ``kind``: of MuJoCo's ``mjtGeom``; ``size`` [3] m, ``position`` [3] m and ``rotation`` [3, 3]
    in the world; ``colour`` [4], 0..1.
    """

    kind: mujoco.mjtGeom
    size: NDArray[np.float64]
    position: NDArray[np.float64]
    rotation: NDArray[np.float64]
    colour: NDArray[np.float64]


class _Renderer(mujoco.Renderer):
    """One that could not be made is deleted without a complaint of what it lacks."""

    _gl_context = _mjr_context = None


mujoco.gl_context.GLContext._context = None


class LazyObservation(Mapping[str, NDArray]):
    """An observation whose images ``draw`` gives when they are first read, each once."""

    def __init__(self, state: dict[str, NDArray], draw: Callable[[str], NDArray[np.uint8]]):
        self._values, self._draw = dict(state), draw

    def __getitem__(self, key: str) -> NDArray:
        if key in CAMERAS and key not in self._values:
            self._values[key] = self._draw(key)
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in CAMERAS or key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter({**CAMERAS, **self._values})

    def __len__(self) -> int:
        return len({*CAMERAS, *self._values})


class ArmEnv(gymnasium.Env):
    """Language-conditioned manipulation with a Panda under OSC_POSE at 20 Hz.

    Observations (LIBERO's names): ``agentview_image`` and ``robot0_eye_in_hand_image`` uint8
    [H, W, 3], upright as the camera sees; ``robot0_eef_pos`` [3] world m, ``robot0_eef_quat``
    [4] xyzw, ``robot0_gripper_qpos`` [2] m, ``robot0_joint_pos`` [7] and ``robot0_joint_vel``
    [7] rad. Actions [D] are what ``contract`` says, usually [7] in [-1, 1]: position and
    rotation-vector offsets (0.05 m, 0.5 rad per unit, base axes) and the gripper (-1 opens, +1
    closes). ``views``: what policies call the cameras, and the observations that are theirs.
    Reward 1 and termination on success.

    A suite's class gives ``scene`` (with robosuite's ``sim`` and ``robot``), ``object_names``,
    ``alternatives``, ``done``, ``asked`` and ``start``. ``suite_tasks``: its tasks by
    name. ``msaa``: samples of antialiasing. ``hidden``: groups of geoms that are not rendered.
    ``clutter``: what is drawn besides.
    """

    control_rate = OSC_CONTRACT.rate_hz
    contract = OSC_CONTRACT
    views: Mapping[str, str] = {
        'primary': 'agentview_image', 'wrist': 'robot0_eye_in_hand_image'}
    start_distributions: tuple[str, ...]  # the first is the default
    one_scene: bool  # for all tasks; otherwise every task has its own
    max_steps: int  # control steps after which the present task counts as failed
    scene: Any  # the present task's
    # Brings the scene to the start that a seed names; returns what ``info`` should tell of it.
    start: Callable[[int | None, Mapping[str, Any]], dict[str, Any]]

    def __init__(self, suite: str, suite_tasks: Mapping[str, Any], starts: str, image_size: int,
                 msaa: int = 0, shadows: bool = False, reflections: bool = True,
                 hidden: tuple[int, ...] = (0,)):
        if starts not in self.start_distributions:
            raise UserError(f'unknown starts "{starts}"; {suite} has: '
                            f'{", ".join(self.start_distributions)}')
        self.suite, self.starts, self.image_size = suite, starts, image_size
        self._tasks = suite_tasks
        self.tasks = tuple(suite_tasks)
        self.task = suite_tasks[self.tasks[0]]
        self._msaa, self._shadows, self._reflections = msaa, shadows, reflections
        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        shapes = {'robot0_eef_pos': 3, 'robot0_eef_quat': 4, 'robot0_gripper_qpos': 2,
                  'robot0_joint_pos': 7, 'robot0_joint_vel': 7}
        self.observation_space = gymnasium.spaces.Dict(dict.fromkeys(CAMERAS, image) | {
            k: gymnasium.spaces.Box(-np.inf, np.inf, (n,)) for k, n in shapes.items()})
        contract = self.contract
        bound = np.full(contract.dim, 1.0 if contract.is_normalised else np.inf, np.float32)
        if contract.gripper_index is not None:
            bound[contract.gripper_index] = 1.0
        self.action_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float32)
        self._steps = self._tick = 0
        self.clutter: Sequence[SceneGeom] = ()
        self._renderer: mujoco.Renderer | None = None
        self._options = mujoco.MjvOption()
        self._options.geomgroup[list(hidden)] = 0

    @property
    def instructions(self) -> dict[str, str]:
        """The sentence of every task."""
        return {name: task.instruction for name, task in self._tasks.items()}

    @property
    def sim(self) -> Any:
        """The present robosuite ``MjSim``: model and data."""
        return self.scene.sim

    @property
    def robot(self) -> Any:
        """The robosuite robot."""
        return self.scene.robot

    @property
    def model(self) -> mujoco.MjModel:
        """MuJoCo's model."""
        return self.sim.model._model

    @property
    def data(self) -> mujoco.MjData:
        """MuJoCo's data."""
        return self.sim.data._data

    @property
    def base_position(self) -> NDArray[np.float64]:
        """World position [3] of the robot's base in the present task [m]."""
        return self.scene.arm.base

    def place(self, name: str) -> NDArray[np.float64]:
        """Return where an object is now, world [3] m; NaN if this scene has none."""
        scene = self.scene
        if name not in scene.objects and name not in scene.fixtures:
            return np.full(3, np.nan)
        return scene.position(name)

    def image_point(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where world points [..., 3] appear in the third-person view (``project``)."""
        return project(self.model, self.data, 'agentview', points)

    def action_of(self, action: ArrayLike) -> NDArray[np.float64]:
        """Return what an action of OSC_POSE [7], as the experts choose, is in this action space.

        In the present state: another one may need another action.
        """
        return np.asarray(action, np.float64)

    @property
    def flags(self) -> dict[str, Any]:
        """What else a success rate depends on."""
        return {
            'images': 'upright, as the camera sees', 'image_size': self.image_size,
            'msaa_samples': self._msaa, 'gripper': '-1 opens, +1 closes',
            'control_rate_hz': self.control_rate, 'settle_steps': SETTLE_STEPS,
        }

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[LazyObservation, dict[str, Any]]:
        """Start ``options['task']`` from the state that ``seed`` names, arm settled."""
        super().reset(seed=seed)
        options = options or {}
        name = options.get('task', self.task.name)
        if name not in self._tasks:
            raise UserError(f'unknown task "{name}"; the suite has: {", ".join(self._tasks)}')
        self.task = self._tasks[name]
        info = self.start(seed, options)
        self._steps = 0
        self._settle(SETTLE_STEPS)
        return self.observe(), {'task': name, 'instruction': self.task.instruction,
                                'success': False, **info}

    def _settle(self, steps: int) -> None:
        rest = self.action_of(REST)
        for _ in range(steps):
            self.scene.step(rest)

    def success(self) -> bool:
        """Return whether the present task is done."""
        return self.done(self.task.name)

    def step(
        self, action: NDArray[np.floating],
    ) -> tuple[LazyObservation, float, bool, bool, dict[str, Any]]:
        """Run one control step (50 ms); errors as `valid_action`."""
        self.scene.step(valid_action(action, self.contract))
        self._steps += 1
        success = self.success()
        truncated = self._steps >= self.max_steps and not success
        return self.observe(), float(success), success, truncated, {'success': success}

    def observe(self) -> LazyObservation:
        """Return the scene as it is now, for instance after something moved it from outside.

        Reading an image after the next ``step`` raises ``RuntimeError``: the scene has moved on.
        """
        self._tick += 1
        tick, robot, data = self._tick, self.robot, self.data
        eef = self.model.body(robot.robot_model.eef_name).id
        state = {
            'robot0_eef_pos': np.array(data.site_xpos[robot.eef_site_id]),
            'robot0_eef_quat': np.array(data.xquat[eef][[1, 2, 3, 0]]),
            'robot0_gripper_qpos': np.array(data.qpos[robot._ref_gripper_joint_pos_indexes]),
            'robot0_joint_pos': np.array(robot._joint_positions),
            'robot0_joint_vel': np.array(robot._joint_velocities),
        }

        def draw(key: str) -> NDArray[np.uint8]:
            if self._tick != tick:
                raise RuntimeError(f'"{key}" was not read before the next step')
            return self.draw(CAMERAS[key])

        return LazyObservation(state, draw)

    def draw(self, camera: str) -> NDArray[np.uint8]:
        """Return what a camera sees now, upright and not mirrored, [H, W, 3]."""
        if self._renderer is None:
            size, view = self.image_size, self.model.vis
            view.quality.offsamples = self._msaa
            view.global_.offwidth = max(view.global_.offwidth, size)
            view.global_.offheight = max(view.global_.offheight, size)
            try:
                self._renderer = _Renderer(self.model, size, size)
            # OpenGL's errors and those of a display share no narrower base.
            except Exception as error:
                raise cannot_draw(error) from None
        with self._culled(camera):
            self._renderer.update_scene(self.data, camera, self._options)
        scene = self._renderer.scene
        for thing in self.clutter:
            mujoco.mjv_initGeom(scene.geoms[scene.ngeom], thing.kind, thing.size, thing.position,
                                thing.rotation.ravel(), thing.colour.astype(np.float32))
            scene.ngeom += 1
        flags = scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._shadows
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = self._reflections
        return self._renderer.render()

    def upload_textures(self, numbers: Collection[int]) -> None:
        """Draw with these textures of the model as they are now."""
        if self._renderer is not None:
            self._renderer._gl_context.make_current()  # type: ignore[union-attr]
            for number in numbers:
                mujoco.mjr_uploadTexture(self.model, self._renderer._mjr_context, number)

    def _culled(self, camera: str) -> contextlib.AbstractContextManager[None]:
        """Leave out of the model what a camera cannot see, while the scene is collected."""
        return contextlib.nullcontext()

    def snapshot(self) -> Callable[[], None]:
        """Return what brings the episode back to how it is now, to the last bit.

        Physics, the arm's controller and the gripper's ramp; the model itself must not have
        changed. The same commands then lead to the same states; what follows from the state
        (positions, contacts) is that of the moment again after the next step.
        """
        model, data, steps = self.model, self.data, self._steps
        controller, gripper = self.robot.controller, self.robot.gripper
        parts = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(model, parts))
        mujoco.mj_getState(model, data, physics, parts)
        control = {name: copy.copy(value) for name, value in vars(controller).items()
                   if isinstance(value, (np.ndarray, bool))}
        fingers = np.array(gripper.current_action)

        def restore() -> None:
            mujoco.mj_setState(model, data, physics, parts)
            for name, value in control.items():
                setattr(controller, name, copy.copy(value))
            gripper.current_action = fingers.copy()
            self._steps = steps
            self._tick += 1

        return restore

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
