"""A scripted expert that solves the tabletop tasks through the action space and writes thoughts.

It reacts to the present state instead of following a plan, so it can take over anywhere: after a
missed grasp, after the object was lost, or from a learner's own states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtvla_ros.thought import DESTINATION_PHASES, Thought

from ..env import REST
from ..tabletop.env import TabletopEnv
from ..tabletop.progress import CARRY_Z, HOVER, RELEASE_Z
from ..tabletop.scene import CUBE_HALF, TABLE_TOP
from ..tabletop.tasks import Goal

OPEN, CLOSE = -1.0, 1.0
GAIN = 1.8  # commanded offset per offset [-]
FREE_Z = TABLE_TOP + 0.13  # below this height the gripper does not travel sideways [m]
WIDE, EMPTY = 0.068, 0.006  # opening that counts as open, and as closed on nothing [m]
GRASP_TIMEOUT = 20  # control steps after which a closing grasp counts as missed
PUSHED = 0.025  # offset along the push at which it ends, well inside what counts as pushed [m]
# Orientation of the grip site when the gripper points straight down, fingers along y.
GRIPPER_DOWN = Rotation.from_matrix([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
# Where to grip, relative to the object's origin [m].
GRIP_Z = {'red_cube': 0.0, 'green_cube': 0.0, 'can': 0.012, 'bread': 0.002, 'lemon': 0.0}

# Phase, gripper target [3] world m, gripper command, place the thought names, following phase.
Choice = tuple[str, NDArray[np.float64], float, NDArray[np.float64], str]


@dataclass(frozen=True, slots=True)
class ExpertStep:
    """A clean action [7] in [-1, 1], the thought that led to it, and the phase's name."""

    action: NDArray[np.float32]
    thought: str
    phase: str

    @property
    def fine(self) -> bool:
        """Whether the phase needs a steady gripper (less noise is injected there)."""
        return self.phase in (
            'lower', 'grasp', 'place', 'release', 'retry', 'open', 'turn', 'wait')


class TabletopExpert:
    """Picks, places, stacks and pushes by looking at the simulator's true state."""

    def __init__(self, env: TabletopEnv):
        self.env = env
        self.reset()

    def reset(self) -> None:
        """Forget the previous episode."""
        self._trouble: str | None = None
        self._descending = False
        self._over = False
        self._releasing = 0
        self._bias = np.zeros(3)
        self._was_held = False
        self._closing = 0
        self._yaw = 0.0
        self._pushing = self._rising = False

    def act(self, driving: bool = True) -> ExpertStep:
        """Return the next action for the present state of the environment, whoever drives."""
        scene, task = self.env.scene, self.env.task
        remaining = task.open_goals(scene)
        if self._finished(remaining):
            goal, phase, gripper, following = task.goals[-1], 'wait', OPEN, 'wait'
            target, place = scene.arm.end_effector(), scene.position(goal.object)
            self._trouble = None
        else:
            goal = remaining[0] if remaining else task.goals[-1]
            if not scene.held(goal.object):
                self._yaw = self._grip_yaw(goal.object)
            decide = self._push if goal.verb == 'push' else self._pick_and_place
            phase, target, gripper, place, following = decide(goal)
        finished = [g.object for g in task.goals if g not in remaining]
        ee = scene.arm.end_effector()
        thought = Thought.measured(
            held=goal.object if scene.held(goal.object) else None,
            done=finished[-1] if finished else None,
            trouble=self._trouble, phase=phase,
            object=goal.destination if phase in DESTINATION_PHASES else goal.object,
            place=place - self.env.base_position, following=following, move=target - ee)
        action = REST if phase == 'wait' else self._servo(target, gripper, phase)
        return ExpertStep(action.astype(np.float32), thought.compact(), phase)

    def _finished(self, remaining: Sequence[Goal]) -> bool:
        """Return whether nothing is left to do; a push under way goes on beyond its limit."""
        goal = self.env.task.goals[-1]
        if remaining or goal.verb != 'push' or not self._pushing:
            return not remaining
        at, to = map(self.env.scene.position, (goal.object, goal.destination))
        return bool(abs(at[1] - to[1]) < PUSHED)

    def _axis(self, name: str) -> NDArray[np.float64]:
        scene = self.env.scene
        return scene.sim.data.body_xmat[scene.body_ids[name]].reshape(3, 3)[:, 2]

    def _grip_yaw(self, name: str) -> float:
        """Return the gripper's yaw [rad]: zero, but across a can that has toppled."""
        axis = self._axis(name)
        if name != 'can' or abs(axis[2]) > 0.7:
            return 0.0
        yaw = np.arctan2(axis[1], axis[0])  # fingers close along y of the gripper
        return float((yaw + np.pi / 2) % np.pi - np.pi / 2)

    def _pick_and_place(self, goal: Goal) -> Choice:
        scene = self.env.scene
        ee, opening = scene.arm.end_effector(), scene.arm.opening()
        at = scene.position(goal.object)
        upright = abs(self._axis(goal.object)[2]) > 0.7
        grip = at + [0.0, 0.0, GRIP_Z[goal.object] if upright else 0.0]
        held = scene.held(goal.object)
        near = np.linalg.norm(ee - grip) < 0.03

        if held and near and not self._releasing:
            self._trouble, self._was_held = None, True
            return self._deliver(goal, ee, at)
        if self._releasing:
            self._releasing -= 1
            self._was_held = False
            if opening < WIDE:
                return 'release', ee, OPEN, at, 'retreat'
            self._releasing = 0
        if self._was_held and not held:
            self._trouble, self._was_held = 'dropped', False
        if (opening < EMPTY or self._closing > GRASP_TIMEOUT) and self._trouble is None:
            self._trouble = 'missed'
        if self._trouble and opening < WIDE:
            self._descending = False
            up = np.array([ee[0], ee[1], min(ee[2] + 0.05, CARRY_Z)])
            return 'retry', up, OPEN, at, 'reach'
        self._trouble = None
        choice = self._approach(ee, opening, at, grip)
        self._closing = self._closing + 1 if choice[0] == 'grasp' else 0
        return choice

    def _approach(self, ee, opening: float, at, grip) -> Choice:
        off = np.linalg.norm(ee[:2] - grip[:2])
        if self._descending and (off > 0.035 or ee[2] > grip[2] + HOVER + 0.06):
            self._descending = False
        if not self._descending:
            hover = grip + [0.0, 0.0, HOVER]
            if off < 0.012 and ee[2] < hover[2] + 0.02:
                self._descending = True
            else:
                if ee[2] < FREE_Z - 0.03 and off > 0.03:  # rise before travelling
                    hover = np.array([ee[0], ee[1], FREE_Z + 0.03])
                phase = 'retreat' if opening < WIDE else 'reach'
                return phase, hover, OPEN, at, 'lower' if phase == 'reach' else 'reach'
        if (ee[2] > grip[2] + 0.010 or off > 0.012) and opening > WIDE - 0.01:
            return 'lower', grip, OPEN, at, 'grasp'
        return 'grasp', grip, CLOSE, at, 'lift'

    def _deliver(self, goal: Goal, ee, at) -> Choice:
        scene = self.env.scene
        self._descending = False
        to = scene.position(goal.destination) + self._share(goal)
        offset = at - ee
        above = np.array([to[0] - offset[0], to[1] - offset[1], CARRY_Z])
        off = np.linalg.norm(ee[:2] - above[:2])
        if self._over and off > 0.04:
            self._over = False
        if not self._over:
            if off < 0.012 and ee[2] > CARRY_Z - 0.04:
                self._over = True
            elif ee[2] < FREE_Z and off > 0.04:
                return 'lift', np.array([ee[0], ee[1], CARRY_Z + 0.01]), CLOSE, at, 'carry'
            else:
                return 'carry', above, CLOSE, to, 'place'
        if goal.verb == 'stack':
            low = to[2] + 2 * CUBE_HALF + 0.002 - offset[2]
        else:
            low = RELEASE_Z - offset[2]
        if ee[2] > low + 0.006:
            return 'place', np.array([above[0], above[1], low]), CLOSE, to, 'release'
        self._releasing, self._over = 20, False
        return 'release', ee, OPEN, at, 'retreat'

    def _share(self, goal: Goal) -> NDArray[np.float64]:
        """Return where in its destination the object goes, so that two objects find room."""
        sharing = [g for g in self.env.task.goals if g.destination == goal.destination]
        if len(sharing) == 1:
            return np.zeros(3)
        return np.array([-0.035 if goal == sharing[0] else 0.035, 0.0, 0.0])

    def _push(self, goal: Goal) -> Choice:
        scene = self.env.scene
        ee, opening = scene.arm.end_effector(), scene.arm.opening()
        at, to = scene.position(goal.object), scene.position(goal.destination)
        side = np.sign(to[1] - at[1])
        low = np.array([at[0], at[1], TABLE_TOP + 0.028])  # any lower, the palm presses
        aside, along = abs(ee[0] - at[0]), abs(ee[1] - at[1])
        if self._pushing and (aside > 0.02 or along > 0.035):  # it slipped out: take it anew
            self._pushing, self._descending, self._rising = False, False, True
        elif aside < 0.008 and along < 0.025 and ee[2] < low[2] + 0.012:
            self._pushing = True
        if self._pushing:
            end = np.array([0.5 * (at[0] + to[0]), to[1] + side * 0.020, low[2]])
            return 'push', end, OPEN, to, 'wait'
        self._rising = self._rising and ee[2] < FREE_Z
        if self._rising:
            return 'retry', np.array([ee[0], ee[1], FREE_Z + 0.03]), OPEN, at, 'reach'
        phase, target, gripper, place, following = self._approach(
            ee, opening, at, low)
        if phase == 'grasp':
            return 'lower', low, OPEN, at, 'push'
        return phase, target, OPEN, place, 'push' if phase == 'lower' else following

    def _servo(self, target, gripper: float, phase: str) -> NDArray[np.float32]:
        scene = self.env.scene
        error = (target - scene.arm.end_effector()) / 0.05  # units of action
        near = np.abs(error).max() < 1.0
        # The arm's joint friction leaves a droop of one to two centimetres without this.
        self._bias = np.clip(0.96 * self._bias + 0.06 * error, -0.4, 0.4) if near else (
            0.8 * self._bias)
        linear = GAIN * error + self._bias
        limit = 0.6 if phase in ('lower', 'place', 'push') else 1.0
        linear *= min(1.0, limit / max(np.abs(linear).max(), 1e-9))
        now = Rotation.from_matrix(
            scene.sim.data.site_xmat[scene.robot.eef_site_id].reshape(3, 3))
        turn = (Rotation.from_euler('z', self._yaw) * GRIPPER_DOWN * now.inv()).as_rotvec() / 0.5
        turn *= min(1.0, 0.4 / max(np.abs(turn).max(), 1e-9))
        return np.concatenate([linear, turn, [gripper]]).clip(-1, 1).astype(np.float32)
