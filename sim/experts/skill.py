"""The parts of a LIBERO expert: skills that reach one goal each, and the arm's servo."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..libero.env import LiberoEnv
from ..libero.scene import LiberoScene
from ..libero.start import owner

GAIN = 1.6  # commanded offset per offset [-]
TURN_LIMIT = 0.5  # largest action component of a rotation
PUSH, CLOSE_BY = 0.25, 0.006  # against friction [-]; less from there [m]
STEP_LINEAR, STEP_TURN = 0.05, 0.5  # what an action of 1 asks for [m, rad]
DRAWER_REGION = re.compile(r'_(top|middle|bottom)_region$')


@dataclass(frozen=True, slots=True)
class EndEffector:
    """The grip site: position [3] world m, rotation, and the opening between the pads [m].

    The site's z axis points from the palm through the fingertips, its x axis along the opening
    of the fingers.
    """

    position: NDArray[np.float64]
    rotation: Rotation
    opening: float


@dataclass(frozen=True, slots=True)
class Move:
    """What a skill wants now, in the words of the thought and in numbers for the servo.

    ``phase`` and ``following`` are words of the grammar; ``object`` and ``held`` name objects,
    fixtures or regions of the scene (the thought says `word_of` them); ``place`` [3] is where the
    thought says that is, world m. The grip site should go to ``target`` [3] world m, turned to
    ``rotation``, the fingers be commanded ``gripper`` (-1 opens, 1 closes), and no component of
    the linear action exceed ``speed``.
    """

    phase: str
    object: str
    place: NDArray[np.float64]
    following: str
    target: NDArray[np.float64]
    rotation: Rotation
    gripper: float
    held: str | None = None
    trouble: str | None = None
    speed: float = 1.0


class Skill(ABC):
    """Reaches one goal of a task, such as ``('open', 'wooden_cabinet_1_middle_region')``.

    It is made when the goal's turn comes, wherever the gripper is then, with fingers open or
    closed, and asked with ``act`` once a control step for as long as ``free`` is false or the goal
    does not hold. It looks at the true state on every call, since anything may be moved from
    outside, and changes nothing but its own memory. ``driving``: whether what it asked for is
    executed; otherwise it watches somebody else, and its memory follows what that gripper did.
    """

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        self.env = env
        self.goal = tuple(goal)
        self.driving = True

    @property
    def scene(self) -> LiberoScene:
        """The present task's scene."""
        return self.env.scene

    def holds(self) -> bool:
        """Return whether the goal is reached now, as the benchmark judges it."""
        return holds(self.scene, self.goal)

    @abstractmethod
    def free(self) -> bool:
        """Return whether the gripper is clear, so that another skill may take over."""

    def moving(self) -> bool:
        """Return whether the goal holds only just, and a motion is under way beyond its limit."""
        return False

    @abstractmethod
    def act(self) -> Move:
        """Return what to do in this control step; with the goal reached, how to get clear."""

    def end_effector(self) -> EndEffector:
        """Return where the gripper is."""
        return read_end_effector(self.env)


def servo(ee: EndEffector, move: Move) -> NDArray[np.float32]:
    """Return the action [7] in [-1, 1] that brings the grip site closer to a wanted pose.

    It remembers nothing: a policy that learns from it sees the same gripper and could not know
    what was summed up before.
    """
    offset = move.target - ee.position
    linear = GAIN * offset / STEP_LINEAR
    turning = GAIN * (move.rotation * ee.rotation.inv()).as_rotvec() / STEP_TURN
    # The joints' friction leaves a droop of one to two centimetres without this.
    linear += PUSH * offset / max(float(np.linalg.norm(offset)), CLOSE_BY)
    linear *= min(1.0, move.speed / max(np.abs(linear).max(), 1e-9))
    turning *= min(1.0, TURN_LIMIT / max(np.abs(turning).max(), 1e-9))
    return np.concatenate([linear, turning, [move.gripper]]).clip(-1, 1).astype(np.float32)


def holds(scene: LiberoScene, goal: Sequence[str]) -> bool:
    """Return whether a goal is reached now, as the benchmark judges it."""
    return bool(scene.env._eval_predicate(list(goal)))


def read_end_effector(env: LiberoEnv) -> EndEffector:
    """Return where the gripper is."""
    arm = env.scene.arm
    turned = arm.data.site_xmat[env.robot.eef_site_id].reshape(3, 3)
    return EndEffector(arm.end_effector(), Rotation.from_matrix(turned), arm.opening())


def word_of(scene: LiberoScene, name: str) -> str:
    """Return the thought's word for an object, fixture or region.

    That is its name without the number, ``top_drawer`` and so on for a drawer, ``table`` for a
    part of the table, and for another region what it belongs to.
    """
    target = owner(scene, name)
    drawer = DRAWER_REGION.search(name)
    if drawer and 'cabinet' in target:
        return f'{drawer[1]}_drawer'
    if target not in scene.objects and target.endswith(('table', 'floor')):
        return 'table'
    return re.sub(r'_\d+$', '', target)
