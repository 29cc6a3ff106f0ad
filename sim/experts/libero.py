"""A scripted expert for LIBERO tasks that put one object in or on another, thinking aloud.

It knows the true poses and surfaces, but only to choose targets: every motion is an action. It
watches its grip, so it recovers from missed grasps and from objects knocked out of the hand.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dtvla_ros.errors import UserError

from ..libero.env import LiberoEnv
from ..libero.start import owner
from .grammar import Thought
from .grasps import Grasp, grasp_across, grasp_rim, surface, surroundings
from .tabletop import CLOSE, OPEN, WIDE, ExpertStep

SUITES = ('libero_object', 'libero_spatial')
GAIN = 1.6  # commanded offset per offset [-]
HOVER = 0.08  # height over the grasp from which the hand comes down [m]
CLOSING = 10  # control steps until the fingers press
LOST = 4  # control steps without touch after which the object counts as lost
OPENING = 14  # control steps after which a released object should have fallen
SLIDE = 10  # control steps of a slide to either side for one that hangs on a finger
FALL = 0.02  # [m]
# Phases in their order: what follows, and after how many control steps the next one begins anyway.
FOLLOWING = {'reach': 'lower', 'lower': 'grasp', 'grasp': 'lift', 'lift': 'carry',
             'carry': 'place', 'place': 'release', 'release': 'retreat', 'retreat': 'reach',
             'retry': 'reach', 'wait': 'wait'}
PATIENCE = {'reach': 110, 'lower': 50, 'grasp': CLOSING, 'lift': 40, 'carry': 90, 'place': 60,
            'release': OPENING + 2 * SLIDE, 'retreat': 30, 'retry': 25}
SPEED = {'lower': 0.6, 'place': 0.5}  # largest action component


class LiberoExpert:
    """Picks objects across their narrow side, bowls by the rim, and sets them down."""

    def __init__(self, env: LiberoEnv):
        if env.suite not in SUITES:
            raise UserError(f'there is no expert for {env.suite}; there is one for '
                            f'{" and ".join(SUITES)}')
        self.env = env
        self.reset()

    def reset(self) -> None:
        """Forget the previous episode."""
        self._phase, self._count = 'retreat', PATIENCE['retreat']
        self._grasp: Grasp | None = None
        self._planned_at = self._target = np.zeros(3)
        self._trouble: str | None = None
        self._tries = 0
        self._failed_angles: list[float] = []
        self._untouched = 0
        self._start_z = self._safe_z = self._release_z = self._travel_z = 0.0
        self._bias = np.zeros(6)

    def act(self) -> ExpertStep:
        """Return the next action for the present state of the environment."""
        scene = self.env.scene
        goals = [g for g in scene.goals if len(g) == 3]
        still_open = [g for g in goals if not scene.env._eval_predicate(g)]
        goal = (still_open or goals)[0]
        name, destination = goal[1], owner(scene, goal[2])
        if still_open:
            self._advance(name, destination)
        else:
            self._phase = 'wait'
        hand, turn = self._hand()
        target, rotation = self._aim(hand, turn)
        closed = self._phase in ('grasp', 'lift', 'carry', 'place')
        carrying = self._phase in ('carry', 'place', 'release')
        seen = destination if carrying else name
        finished = [g[1] for g in goals if g not in still_open]
        thought = Thought(
            held=_word(name) if closed and scene.held(name) else None,
            done=_word(finished[-1]) if finished else None,
            trouble=self._trouble, phase=self._phase,
            object=_word(destination if self._phase in ('carry', 'place') else name),
            place=scene.position(seen) - self.env.base_position,
            following=FOLLOWING[self._phase], move=target - hand)
        action = self._servo(hand, turn, target, rotation, CLOSE if closed else OPEN)
        return ExpertStep(action, thought.text(), self._phase)

    def _hand(self) -> tuple[NDArray[np.float64], Rotation]:
        scene = self.env.scene
        return (np.array(scene.data.site_xpos[scene.site]),
                Rotation.from_matrix(scene.data.site_xmat[scene.site].reshape(3, 3)))

    def _opening(self) -> float:
        scene = self.env.scene
        fingers = scene.data.qpos[scene.env.robots[0]._ref_gripper_joint_pos_indexes]
        return float(fingers[0] - fingers[1])

    def _go(self, phase: str) -> None:
        self._phase, self._count, self._untouched = phase, 0, 0

    def _plan(self, name: str, destination: str) -> None:
        """Choose a grasp, and the heights at which the hand carries and lets go."""
        scene = self.env.scene
        hand, turn = self._hand()
        to = scene.position(destination)[:2]
        top = float(surface(scene, destination)[:, 2].max())
        bowl = 'bowl' in name
        if bowl:
            grasp: Grasp | None = grasp_rim(scene, name, turn, to, self._failed_angles)
        else:
            grasp = grasp_across(scene, name, turn, 0.03 + 0.008 * min(self._tries, 2))
        if grasp is None:  # it lies on its broad side: take it where it stands least in the way
            grasp = grasp_rim(scene, name, turn, to, self._failed_angles)
        self._grasp = grasp
        self._planned_at = scene.position(name)
        self._start_z = self._planned_at[2]
        below = grasp.point[2] - grasp.bottom  # of the object, under the pads
        if bowl:
            self._safe_z = max(grasp.point[2] + 0.10, top + below + 0.08)
            self._release_z = top + below - 0.012
        else:
            self._safe_z = top + below + 0.06
            self._release_z = top + below - 0.02
        # Nothing on the way may be met by the fingers.
        others = surroundings(scene, name)
        way = grasp.point[:2] - hand[:2]
        share = np.clip((others[:, :2] - hand[:2]) @ way / (way @ way + 1e-9), 0.0, 1.0)
        near = np.linalg.norm(others[:, :2] - hand[:2] - share[:, None] * way, axis=1) < 0.07
        self._travel_z = max(self._hover_z(), float(others[near, 2].max(initial=0.0)) + 0.03)

    def _hover_z(self) -> float:
        assert self._grasp is not None
        return float(max(self._grasp.top + 0.07, self._grasp.point[2] + HOVER))

    def _advance(self, name: str, destination: str) -> None:
        """Leave the phase if its work is done, failed, or took too long."""
        scene = self.env.scene
        hand, turn = self._hand()
        self._count += 1
        phase, late = self._phase, self._count > PATIENCE.get(self._phase, 0)
        position = scene.position(name)
        if phase in ('lift', 'carry', 'place'):
            self._untouched = 0 if scene.held(name) else self._untouched + 1
            if self._untouched >= LOST:
                self._fail('dropped' if phase != 'lift' else 'missed')
                return
        if phase in ('retreat', 'retry', 'wait') or self._grasp is None:
            if phase == 'retry' and not late and (
                    self._opening() < WIDE or hand[2] < self._target[2] - 0.02):
                return
            if phase == 'retreat' and not late and hand[2] < self._safe_z - 0.03:
                return
            self._plan(name, destination)
            self._go('reach')
            return
        grasp = self._grasp
        turned = (grasp.rotation * turn.inv()).magnitude()
        if phase in ('reach', 'lower') and np.linalg.norm(position - self._planned_at) > 0.015:
            self._plan(name, destination)
            self._go('reach')
        elif phase == 'reach':
            hover = np.append(grasp.point[:2], self._hover_z())
            if late or (np.linalg.norm(hand - hover) < 0.02 and turned < 0.12):
                self._trouble = None
                self._go('lower')
        elif phase == 'lower':
            if late or (np.linalg.norm(hand - grasp.point) < 0.008 and turned < 0.06):
                self._go('grasp')
        elif phase == 'grasp' and late:
            self._go('lift')
        elif phase == 'lift':
            if late or hand[2] > self._safe_z - 0.03:
                self._go('carry')
        elif phase == 'carry':
            self._target = np.append(
                scene.position(destination)[:2] - (position - hand)[:2], self._safe_z)
            if late or np.linalg.norm(hand - self._target) < 0.02:
                if 'bowl' in name:  # it may have slid between the pads
                    lowest = surface(scene, name)[:, 2].min()
                    top = surface(scene, destination)[:, 2].max()
                    self._release_z = top + hand[2] - lowest - 0.012
                self._target = np.append(self._target[:2], self._release_z)
                self._go('place')
        elif phase == 'place':
            if late or np.linalg.norm(hand - self._target) < 0.012:
                self._start_z = position[2]
                self._go('release')
        elif phase == 'release':
            self._slide(position, hand, turn)
            fallen = position[2] < self._start_z - FALL
            if late or (self._count > OPENING and fallen):
                self._tries += 1
                self._go('retreat')

    def _slide(
        self, position: NDArray[np.float64], hand: NDArray[np.float64], turn: Rotation
    ) -> None:
        """Slide along the fingers, away from an object that hangs on one, then the other way."""
        if self._count in (OPENING, OPENING + SLIDE):
            axis = turn.as_matrix()[:, 0]
            side = np.sign((position - hand) @ axis + 1e-9)
            self._target = self._target + (0.03 if self._count == OPENING else -0.06) * (
                side * axis)

    def _fail(self, trouble: str) -> None:
        self._trouble = trouble
        self._tries += 1
        if self._grasp is not None and self._grasp.angle is not None and trouble == 'missed':
            self._failed_angles.append(self._grasp.angle)
        hand, _ = self._hand()
        self._target = hand + [0.0, 0.0, 0.06]
        self._go('retry')

    def _aim(
        self, hand: NDArray[np.float64], turn: Rotation
    ) -> tuple[NDArray[np.float64], Rotation]:
        """Return where the grip site should go in this phase, and how it should be turned."""
        grasp, phase = self._grasp, self._phase
        if grasp is None or phase == 'wait':
            return hand, turn
        off = np.linalg.norm(hand[:2] - grasp.point[:2])
        if phase == 'reach':
            if off > 0.05 and hand[2] < self._travel_z - 0.03:
                return np.append(hand[:2], self._travel_z), grasp.rotation
            height = self._travel_z if off > 0.05 else self._hover_z()
            return np.append(grasp.point[:2], height), grasp.rotation
        if phase == 'lower':
            turned = (grasp.rotation * turn.inv()).magnitude()
            astray = off > 0.012 or turned > 0.08
            return grasp.point + [0.0, 0.0, 0.05 if astray else 0.0], grasp.rotation
        if phase == 'grasp':
            return grasp.point, grasp.rotation
        if phase == 'lift':
            return np.append(grasp.point[:2], self._safe_z), grasp.rotation
        if phase == 'retreat':
            return np.append(hand[:2], self._safe_z), grasp.rotation
        return self._target, grasp.rotation

    def _servo(
        self, hand: NDArray[np.float64], turn: Rotation, target: NDArray[np.float64],
        rotation: Rotation, gripper: float,
    ) -> NDArray[np.float32]:
        linear = GAIN * (target - hand) / 0.05
        turning = GAIN * (rotation * turn.inv()).as_rotvec() / 0.5
        # The joints' friction leaves a droop of one to two centimetres without this.
        if np.abs(linear).max() < 1.2:
            error = np.concatenate([linear, turning])
            self._bias = np.clip(0.97 * self._bias + 0.08 * error, -0.6, 0.6)
        else:
            self._bias = 0.8 * self._bias
        linear, turning = linear + self._bias[:3], turning + self._bias[3:]
        linear *= min(1.0, SPEED.get(self._phase, 1.0) / max(np.abs(linear).max(), 1e-9))
        turning *= min(1.0, 0.5 / max(np.abs(turning).max(), 1e-9))
        return np.concatenate([linear, turning, [gripper]]).clip(-1, 1).astype(np.float32)


def _word(name: str) -> str:
    """Return an object's name without its number."""
    return re.sub(r'_\d+$', '', name)
