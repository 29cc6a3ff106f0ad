"""The tabletop suite as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.conventions import ARM_JOINTS

from ..control import JointControl, PoseControl
from ..env import SETTLE_STEPS, ArmEnv, LazyObservation
from .arrange import arrange
from .progress import remaining
from .scene import TabletopScene
from .tasks import STARTS, TASKS, sample_start

JOINTS = (0, 1, 3, 5, 6)  # of the Panda, that the arm of another shape has
HOME_NOISE = 0.02  # standard deviation of the initial joint positions [rad]


class TabletopEnv(ArmEnv):
    """The tabletop suite's tasks, all in one scene; observations and actions as of ``ArmEnv``."""

    name = 'tabletop'
    start_distributions = STARTS
    one_scene = True

    def __init__(self, image_size: int = 128, steps_per_goal: int = 180, starts: str = STARTS[0]):
        super().__init__(self.name, TASKS, starts, image_size, reflections=False)
        self.steps_per_goal = steps_per_goal
        self.scene = self._make_scene()

    def _make_scene(self) -> TabletopScene:
        return TabletopScene()

    def action_of(self, action: ArrayLike) -> NDArray[np.float64]:
        """Return what leads where an action of OSC_POSE [7] does, from here, [D]."""
        values = np.asarray(action, np.float64)
        return np.append(self.scene.arm.towards(values), values[-1])

    @property
    def object_names(self) -> tuple[str, ...]:
        """All objects and fixtures of the suite."""
        return (*self.scene.objects, *self.scene.fixtures)

    def alternatives(self) -> tuple[str, ...]:
        """Return the tasks that could be asked for in the present scene."""
        return self.tasks

    def done(self, name: str) -> bool:
        """Return whether all goals of a task hold now."""
        return not TASKS[name].open_goals(self.scene)

    def remaining(self) -> float:
        """Return how far the present task is from done [m]; see ``progress``."""
        return remaining(self.scene, self.task)

    @contextmanager
    def asked(self, name: str) -> Iterator[None]:
        """Ask for another task without touching the scene."""
        before, self.task = self.task, TASKS[name]
        try:
            yield
        finally:
            self.task = before

    def arrange(self, rng: Generator) -> LazyObservation:
        """Move objects so that the present task is done, or nearly, and let them settle."""
        arrange(self.scene, self.task, rng)
        self._settle(2 * SETTLE_STEPS)
        return self.observe()

    @property
    def flags(self) -> dict[str, Any]:
        """What else a success rate depends on."""
        return {**super().flags, 'steps_per_goal': self.steps_per_goal}

    @property
    def max_steps(self) -> int:
        """Control steps after which the present task counts as failed."""
        return self.steps_per_goal * len(self.task.goals)

    def start(self, seed: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Place the objects and the arm as ``starts`` and the seed say."""
        objects, fixtures = sample_start(self.task, self.np_random, self.starts)
        self.scene.reset()
        robot = self.robot
        robot.set_robot_joint_positions(
            robot.init_qpos + self.np_random.normal(0.0, HOME_NOISE, 7))
        robot.gripper.current_action = np.zeros(robot.gripper.dof)  # robosuite keeps the last one
        self.scene.place(objects, fixtures)
        robot.controller.update(force=True)
        robot.controller.reset_goal()
        return {}


class JointTabletopEnv(TabletopEnv):
    """The same tasks for an arm of another shape: five joints, a gripper, one camera.

    The Panda's joints 3 and 5 hold still, so that what is left turns as a small table-top arm
    does: pan, lift, elbow, flex and roll. Actions [6]: positions of these five [rad], and the
    gripper (-1 opens, +1 closes).
    """

    name = 'tabletop_joints'
    contract = ActionContract.of_joints(
        tuple(ARM_JOINTS[k] for k in JOINTS), rate_hz=TabletopEnv.control_rate)
    views = {'front': 'agentview_image'}

    def _make_scene(self) -> TabletopScene:
        return TabletopScene(partial(JointControl, joints=JOINTS))


class PoseTabletopEnv(TabletopEnv):
    """The same arm and tasks, commanded by poses of the end effector.

    Actions [7]: where the gripper shall be, base frame [m], how it shall be turned away from
    pointing straight down [rad], and the gripper (-1 opens, +1 closes).
    """

    name = 'tabletop_poses'
    contract = ActionContract.of_pose(rate_hz=TabletopEnv.control_rate)

    def _make_scene(self) -> TabletopScene:
        return TabletopScene(PoseControl)
