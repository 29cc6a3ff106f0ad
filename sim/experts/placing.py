"""Picks one object and sets it down in or on another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..libero.env import LiberoEnv
from ..libero.start import owner
from .grasps import Grasp, grasp_across, grasp_rim, surface, surroundings
from .skill import Hand, Move, Skill
from .tabletop import CLOSE, OPEN, WIDE

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
HOLDING = ('grasp', 'lift', 'carry', 'place')


class Place(Skill):
    """Takes the object across its narrow side, a bowl by the rim, and sets it down."""

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        self._name, self._destination = self.goal[1], owner(env.scene, self.goal[2])
        self._phase, self._count = 'retreat', PATIENCE['retreat']
        self._grasp: Grasp | None = None
        self._planned_at = self._target = np.zeros(3)
        self._trouble: str | None = None
        self._tries = 0
        self._failed_angles: list[float] = []
        self._untouched = 0
        self._start_z = self._safe_z = self._release_z = self._travel_z = 0.0

    def free(self) -> bool:
        """Return whether the hand is clear of the object."""
        return self._phase in ('reach', 'wait') or (
            self._phase == 'retreat' and self._count >= PATIENCE['retreat'])

    def act(self) -> Move:
        """Return what to do in this control step."""
        scene, name, hand = self.scene, self._name, self.hand()
        self._advance(hand)
        target, rotation = self._aim(hand)
        phase = self._phase
        closed = phase in HOLDING
        seen = self._destination if phase in ('carry', 'place', 'release') else name
        return Move(
            phase, self._destination if phase in ('carry', 'place') else name,
            scene.position(seen), FOLLOWING[phase], target, rotation,
            CLOSE if closed else OPEN, held=name if closed and scene.held(name) else None,
            trouble=self._trouble, speed=SPEED.get(phase, 1.0))

    def _go(self, phase: str) -> None:
        self._phase, self._count, self._untouched = phase, 0, 0

    def _plan(self, hand: Hand) -> None:
        """Choose a grasp, and the heights at which the hand carries and lets go."""
        scene, name = self.scene, self._name
        to = scene.position(self._destination)[:2]
        top = float(surface(scene, self._destination)[:, 2].max())
        bowl = 'bowl' in name
        turn = hand.rotation
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
        way = grasp.point[:2] - hand.position[:2]
        offset = others[:, :2] - hand.position[:2]
        share = np.clip(offset @ way / (way @ way + 1e-9), 0.0, 1.0)
        near = np.linalg.norm(offset - share[:, None] * way, axis=1) < 0.07
        self._travel_z = max(self._hover_z(), float(others[near, 2].max(initial=0.0)) + 0.03)

    def _hover_z(self) -> float:
        assert self._grasp is not None
        return float(max(self._grasp.top + 0.07, self._grasp.point[2] + HOVER))

    def _advance(self, hand: Hand) -> None:
        """Leave the phase if its work is done, failed, or took too long."""
        scene, name = self.scene, self._name
        at = hand.position
        self._count += 1
        phase, late = self._phase, self._count > PATIENCE.get(self._phase, 0)
        position = scene.position(name)
        if phase in ('lift', 'carry', 'place'):
            self._untouched = 0 if scene.held(name) else self._untouched + 1
            if self._untouched >= LOST:
                self._fail('dropped' if phase != 'lift' else 'missed', at)
                return
        if phase in ('retreat', 'retry', 'wait') or self._grasp is None:
            if phase == 'retry' and not late and (
                    hand.opening < WIDE or at[2] < self._target[2] - 0.02):
                return
            if phase == 'retreat' and not late and at[2] < self._safe_z - 0.03:
                return
            self._plan(hand)
            self._go('reach')
            return
        grasp = self._grasp
        turned = (grasp.rotation * hand.rotation.inv()).magnitude()
        if phase in ('reach', 'lower') and np.linalg.norm(position - self._planned_at) > 0.015:
            self._plan(hand)
            self._go('reach')
        elif phase == 'reach':
            hover = np.append(grasp.point[:2], self._hover_z())
            if late or (np.linalg.norm(at - hover) < 0.02 and turned < 0.12):
                self._trouble = None
                self._go('lower')
        elif phase == 'lower':
            if late or (np.linalg.norm(at - grasp.point) < 0.008 and turned < 0.06):
                self._go('grasp')
        elif phase == 'grasp' and late:
            self._go('lift')
        elif phase == 'lift':
            if late or at[2] > self._safe_z - 0.03:
                self._go('carry')
        elif phase == 'carry':
            self._target = np.append(
                scene.position(self._destination)[:2] - (position - at)[:2], self._safe_z)
            if late or np.linalg.norm(at - self._target) < 0.02:
                if 'bowl' in name:  # it may have slid between the pads
                    lowest = surface(scene, name)[:, 2].min()
                    top = surface(scene, self._destination)[:, 2].max()
                    self._release_z = top + at[2] - lowest - 0.012
                self._target = np.append(self._target[:2], self._release_z)
                self._go('place')
        elif phase == 'place':
            if late or np.linalg.norm(at - self._target) < 0.012:
                self._start_z = position[2]
                self._go('release')
        elif phase == 'release':
            self._slide(position, hand)
            fallen = position[2] < self._start_z - FALL
            if late or (self._count > OPENING and fallen):
                self._tries += 1
                self._go('retreat')

    def _slide(self, position: NDArray[np.float64], hand: Hand) -> None:
        """Slide along the fingers, away from an object that hangs on one, then the other way."""
        if self._count in (OPENING, OPENING + SLIDE):
            axis = hand.rotation.as_matrix()[:, 0]
            side = np.sign((position - hand.position) @ axis + 1e-9)
            self._target = self._target + (0.03 if self._count == OPENING else -0.06) * (
                side * axis)

    def _fail(self, trouble: str, at: NDArray[np.float64]) -> None:
        self._trouble = trouble
        self._tries += 1
        if self._grasp is not None and self._grasp.angle is not None and trouble == 'missed':
            self._failed_angles.append(self._grasp.angle)
        self._target = at + [0.0, 0.0, 0.06]
        self._go('retry')

    def _aim(self, hand: Hand) -> tuple[NDArray[np.float64], Rotation]:
        """Return where the grip site should go in this phase, and how it should be turned."""
        grasp, phase, at = self._grasp, self._phase, hand.position
        if grasp is None or phase == 'wait':
            return at, hand.rotation
        off = np.linalg.norm(at[:2] - grasp.point[:2])
        if phase == 'reach':
            if off > 0.05 and at[2] < self._travel_z - 0.03:
                return np.append(at[:2], self._travel_z), grasp.rotation
            height = self._travel_z if off > 0.05 else self._hover_z()
            return np.append(grasp.point[:2], height), grasp.rotation
        if phase == 'lower':
            turned = (grasp.rotation * hand.rotation.inv()).magnitude()
            astray = off > 0.012 or turned > 0.08
            return grasp.point + [0.0, 0.0, 0.05 if astray else 0.0], grasp.rotation
        if phase == 'grasp':
            return grasp.point, grasp.rotation
        if phase == 'lift':
            return np.append(grasp.point[:2], self._safe_z), grasp.rotation
        if phase == 'retreat':
            return np.append(at[:2], self._safe_z), grasp.rotation
        return self._target, grasp.rotation
