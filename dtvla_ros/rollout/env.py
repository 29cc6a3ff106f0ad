"""Defines the contract of a simulated environment, and how one is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions.contract import ActionContract, differences
from dtvla_ros.errors import UserError
from dtvla_ros.policy.shapes import Size, same_shape, shown
from dtvla_ros.policy.transform import PolicyTransform

SimObservation = Mapping[str, NDArray[Any]]


@runtime_checkable
class Env(Protocol):
    """A language-conditioned arm, Gymnasium's ``reset`` and ``step`` included.

    Observations hold LIBERO's names: ``agentview_image`` and ``robot0_eye_in_hand_image`` uint8
    [H, W, 3], ``robot0_eef_pos`` [3] world m, ``robot0_eef_quat`` [4] xyzw,
    ``robot0_gripper_qpos`` [2] m, ``robot0_joint_pos`` [7] rad. Actions [D] as of ``contract``.
    ``info`` holds ``instruction`` after a reset and ``success`` after a step.
    """

    suite: str
    tasks: tuple[str, ...]
    instructions: Mapping[str, str]  # the sentence of every task
    starts: str  # the start distribution
    image_size: int  # side of all images, which are squares [px]
    control_rate: float  # [Hz]
    contract: ActionContract  # what actions are
    views: Mapping[str, str]  # what policies call the cameras, and their observations' names
    one_scene: bool  # for all tasks; otherwise another task builds another scene
    task: Any  # the present one, with ``name`` and ``instruction``
    max_steps: int  # control steps after which the present task counts as failed
    base_position: NDArray[np.float64]  # of the robot, world [3] m
    flags: dict[str, Any]  # what else a success rate depends on
    object_names: tuple[str, ...]  # all objects and fixtures of the suite

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[SimObservation, dict[str, Any]]:
        """Start ``options['task']`` from the state that ``seed`` names, arm settled."""

    def step(self, action: NDArray[np.floating]) -> tuple[
            SimObservation, float, bool, bool, dict[str, Any]]:
        """Run one control step: observation, reward, terminated, truncated, info."""

    def action_of(self, action: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return what an action of OSC_POSE [7] is in the present state, [D]."""

    def observe(self) -> SimObservation:
        """Return the scene as it is now."""

    def alternatives(self) -> tuple[str, ...]:
        """Return the tasks that could be asked for in the present scene."""

    def asked(self, name: str) -> AbstractContextManager[None]:
        """Ask for another task without touching the scene."""

    def done(self, name: str) -> bool:
        """Return whether all goals of a task hold now."""

    def place(self, name: str) -> NDArray[np.float64]:
        """Return where an object is now, world [3] m; NaN if this scene has none."""

    def image_point(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where world points [..., 3] appear in the third-person image, [..., 2]."""

    def close(self) -> None:
        """Free the scene and its renderer."""


@runtime_checkable
class Restorable(Protocol):
    """An environment that can go back to a moment, and tells how far its task is from done."""

    def snapshot(self) -> Callable[[], None]:
        """Return what brings the episode back to this moment."""

    def remaining(self) -> float:
        """Return how far the present task is from done [m]."""


def require_contract(transform: PolicyTransform, policy: str, env: Any) -> None:
    """Raise ``UserError`` in what a policy fits another arm, or other cameras, than a scene's.

    ``env``: the environment, or what has its ``suite``, ``contract`` and ``views``.
    """
    if told := differences(transform.contract, env.contract):
        raise UserError(f'{policy}: in the suite {env.suite} {told[0]}; choose another suite')
    cameras = transform.config.vision.cameras
    if missing := [name for name in cameras if name not in env.views]:
        raise UserError(f'{policy}: the suite {env.suite} has no camera {missing[0]!r}, only '
                        f'{", ".join(env.views)}; choose another suite')
    require_square(transform.sizes, policy, env.suite)


def require_square(sizes: Mapping[str, Size], policy: str, suite: str) -> None:
    """Raise ``UserError`` for a policy of images of another shape than a scene's, squares."""
    for camera, size in sizes.items():
        if not same_shape(size, (1, 1)):
            raise UserError(f'{policy}: the images of the suite {suite} are squares, the policy '
                            f'was trained on {shown(size)} of the camera {camera!r}; choose a '
                            'policy trained on square ones')


def require_tasks(tasks: Sequence[str], known: Sequence[str], suite: str) -> None:
    """Refuse a task that the suite does not have."""
    if unknown := [task for task in tasks if task not in known]:
        raise UserError(f'unknown task "{unknown[0]}"; {suite} has: {", ".join(known)}')


@dataclass(frozen=True, slots=True)
class SceneSetup:
    """What ``dtvla_sim.make`` is asked for; None: the suite's own."""

    suite: str
    starts: str | None = None  # start distribution
    perturb: tuple[str, ...] = ()
    image_size: int | None = None  # side [px]
    antialiasing: bool = True  # as LIBERO renders, or without
    shadows: bool = True
    max_steps: int | None = None  # control steps after which an episode has failed

    @property
    def fast_rendering(self) -> dict[str, bool]:
        """What is to be left out of the images, as arguments of ``dtvla_sim.make``."""
        return {name: False for name in ('antialiasing', 'shadows') if not getattr(self, name)}

    def make(self) -> Env:
        """Build the environment; UserError if the suite does not have what is asked for."""
        import dtvla_sim

        if self.fast_rendering and self.suite not in dtvla_sim.LIBERO_SUITES:
            raise UserError(f'--no-{next(iter(self.fast_rendering))} is for LIBERO; '
                            f'{self.suite} is drawn without antialiasing and shadows')
        chosen = {'starts': self.starts, 'image_size': self.image_size}
        return dtvla_sim.make(self.suite, self.perturb, **self.fast_rendering,
                              **{name: value for name, value in chosen.items() if value})
