"""Picks one object and sets it down in or on another, or in a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..libero.env import LiberoEnv
from ..libero.start import owner
from .destinations import Spot, anchor, spots
from .grasps import (
    FINGERTIP,
    REST,
    Grasp,
    closest_yaw,
    crowding,
    grasp_handle,
    grasps_across,
    grasps_rim,
    highest_between,
    pointing,
    surface,
    surroundings,
)
from .skill import EndEffector, Move, Skill
from .tabletop import CLOSE, EMPTY, OPEN, WIDE


@dataclass(frozen=True, slots=True)
class PlaceParameters:
    """Distances, angles and durations of picking and placing; a step is a control step."""

    hover: float = 0.08  # height over the grasp from which the gripper comes down [m]
    reach_tilt: float = 0.7  # of the gripper that reaches into a microwave [rad]
    draw_back: float = 0.10  # how far it draws back from there [m]
    draw_up: float = 0.17  # and up [m]
    closing_steps: int = 10  # until the fingers press
    pressed_steps: int = 5  # with touch, after which another's gripper holds the object
    lost_steps: int = 4  # without touch, after which the object counts as lost
    opening_steps: int = 14  # after which a released object should have fallen
    opened_steps: int = 6  # after which one that stands where it should has been let go
    slide_steps: int = 10  # of a slide to either side for one that hangs on a finger
    fall: float = 0.02  # of a released object [m]
    slow_distance: float = 0.06  # left down to the destination: before it nothing is met [m]
    grasp_depth: float = 0.03  # below an object's top [m]
    bottle_depth: float = 0.04  # the same of a bottle [m]
    near: float = 0.02  # offset of the place over the destination from which to go down [m]
    near_turn: float = 0.12  # the same of the rotation [rad]
    fitting_near: float = 0.008  # both where little room is left [m]
    fitting_turn: float = 0.04  # [rad]
    over_grasp: float = 0.02  # another's gripper is over the grasp [m],
    at_grasp: float = 0.012  # at it [m],
    left_grasp: float = 0.05  # has left it, to the side or upwards [m]
    astray: float = 0.012  # offset from which on the gripper comes down less deep [m]
    askew: float = 0.08  # rotation from which on it does [rad]
    most_back: float = 0.05  # at most so much less deep [m]
    steepness: float = 4.0  # and so much less for every metre of offset [-]
    wrist_radius: float = 0.125  # what a radian counts as [m]
    choices: int = 12  # grasps and spots that are tried together


P = PlaceParameters()
# Phases in their order: what follows, and after how many steps the next one begins anyway.
FOLLOWING = {'reach': 'lower', 'lower': 'grasp', 'grasp': 'lift', 'lift': 'carry',
             'carry': 'place', 'place': 'release', 'release': 'retreat', 'retreat': 'reach',
             'retry': 'reach', 'wait': 'wait'}
TIMEOUT = {'reach': 110, 'lower': 50, 'grasp': P.closing_steps, 'lift': 40, 'carry': 90,
           'place': 60, 'release': P.opening_steps + 2 * P.slide_steps, 'retreat': 40, 'retry': 25}
SPEED = {'lower': 0.6, 'place': 0.5}  # largest action component
HOLDING = ('grasp', 'lift', 'carry', 'place')


class Place(Skill):
    """Takes the object across its narrow side, or by rim or handle, and sets it down."""

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        self._name, self._to = self.goal[1], self.goal[2]
        self._destination = owner(env.scene, self._to)
        self._rimmed = any(kind in self._name for kind in ('bowl', 'mug'))
        self._phase, self._count = 'retreat', TIMEOUT['retreat']
        self._grasp: Grasp | None = None
        self._spot: Spot | None = None
        self._anchor = self._planned_at = self._target = np.zeros(3)
        self._turned: Rotation | None = None
        self._trouble: str | None = None
        self._tries = 0
        self._failed_angles: list[float] = []
        self._untouched = self._touched = 0
        self._start_z = self._safe_z = self._travel_z = 0.0

    def free(self) -> bool:
        """Return whether the gripper is clear of the object."""
        return self._phase in ('reach', 'wait') or (self._phase == 'retreat' and self._away())

    def act(self) -> Move:
        """Return what to do in this control step."""
        scene, name, ee = self.scene, self._name, self.end_effector()
        if not self.driving:
            self._watch(ee)
        self._advance(ee)
        target, rotation = self._aim(ee)
        phase = self._phase
        closed = phase in HOLDING
        seen = (anchor(scene, self._to) if phase in ('carry', 'place', 'release')
                else scene.position(name))
        far = phase == 'place' and ee.position[2] > target[2] + P.slow_distance
        return Move(
            phase, self._to if phase in ('carry', 'place') else name,
            seen, FOLLOWING[phase], target, rotation,
            CLOSE if closed else OPEN, held=name if closed and scene.held(name) else None,
            trouble=self._trouble, speed=1.0 if far else SPEED.get(phase, 1.0))

    def _away(self) -> bool:
        at = self.end_effector().position
        if self._count >= TIMEOUT['retreat']:
            return True
        if self._spot is not None and self._spot.entry is not None:
            turned = (REST * self.end_effector().rotation.inv()).magnitude()
            return bool(at[2] > self._target[2] + P.draw_up - 0.03) and turned < 0.5
        return bool(at[2] >= self._safe_z - 0.03)

    def _go(self, phase: str) -> None:
        self._phase, self._count, self._untouched = phase, 0, 0

    def _watch(self, ee: EndEffector) -> None:
        """Take the phase from what another's gripper has done so far; only commands take time."""
        grasp, phase = self._grasp, self._phase
        if grasp is None:
            return
        self._count = 0
        touched = ee.opening < WIDE and self.scene.held(self._name)
        self._touched = self._touched + 1 if touched else 0
        height = -float((ee.position - grasp.point) @ grasp.approach)
        off, turned = grasp.aside(ee.position), grasp.turned(ee.rotation)
        if phase in ('reach', 'lower', 'grasp', 'retry', 'retreat'):
            if self._touched >= P.pressed_steps:
                self._trouble, self._turned = None, self._let_go_turned(ee.rotation)
                self._go('lift')
            elif phase == 'grasp' and ee.opening < EMPTY:
                self._fail('missed', ee.position)
            elif phase in ('lower', 'grasp') and (
                    off > P.left_grasp or height > P.hover + P.left_grasp):
                self._go('reach')
            elif phase == 'grasp' and max(off, height) > P.over_grasp:
                self._go('lower')
            elif phase == 'reach' and height < P.hover and (
                    off < P.over_grasp and turned < P.near_turn
                    or off < P.left_grasp and height < P.hover - P.over_grasp):
                self._trouble = None
                self._go('lower')
            elif phase == 'lower' and max(off, height) < P.at_grasp and turned < P.near_turn:
                self._go('grasp')
        elif phase in ('place', 'release') and touched and (
                np.linalg.norm((ee.position - self._target)[:2]) > P.left_grasp):
            self._go('carry')

    def _let_go_turned(self, rotation: Rotation) -> Rotation:
        """Return how the gripper should be turned over the spot, having grasped at a rotation."""
        assert self._spot is not None
        yaw = self._spot.yaw
        return rotation if yaw is None else pointing(closest_yaw(yaw, rotation))

    def _plan(self, ee: EndEffector) -> None:
        """Choose a grasp and where to let go, and the heights on the way."""
        scene, name = self.scene, self._name
        self._anchor, self._planned_at = anchor(scene, self._to), scene.position(name)
        self._start_z = self._planned_at[2]
        self._grasp, self._spot = self._choose()
        grasp = self._grasp
        self._turned = self._let_go_turned(grasp.rotation)
        below = grasp.point[2] - grasp.bottom  # of the object, under the pads
        self._safe_z = self._spot.over + below
        if self._rimmed and self._spot.entry is None:
            self._safe_z = max(grasp.point[2] + 0.10, self._safe_z)
        # Nothing on the way may be met by the fingers.
        met = highest_between(surroundings(scene, name), ee.position, grasp.point, 0.07)
        self._travel_z = max(self._hover()[2], met + 0.03)

    def _choose(self) -> tuple[Grasp, Spot]:
        """Return the grasp and the spot that cost least together."""
        scene, name = self.scene, self._name
        where = spots(scene, self.goal)
        if where[0].entry is not None:
            return grasp_handle(scene, name, P.reach_tilt), where[0]
        found: list[tuple[float, Grasp]] = []
        if 'moka_pot' in name:
            found = [(0.0, grasp_handle(scene, name))]
        elif not self._rimmed:
            depth = P.bottle_depth if 'bottle' in name else P.grasp_depth
            found = grasps_across(scene, name, depth + 0.008 * min(self._tries, 2))
        if not found:  # or it lies on its broad side: take it where it stands least in the way
            found = grasps_rim(scene, name, where[0].point, self._failed_angles)
        if self._destination in scene.objects:
            return min(found, key=lambda f: f[0])[1], where[0]
        others = surroundings(scene, name)
        found = sorted(found, key=lambda f: f[0])[:P.choices]
        pairs = []
        for rank, spot in enumerate(where[:P.choices]):
            near = others[np.linalg.norm(others[:, :2] - spot.point, axis=1) < 0.25]
            for cost, grasp in found:
                shift = np.append(spot.point - self._planned_at[:2], spot.lowest - grasp.bottom)
                pairs.append((cost + 0.5 * crowding(grasp, shift, near) + 0.02 * rank,
                              grasp, spot))
        _, grasp, spot = min(pairs, key=lambda p: p[0])
        return grasp, spot

    def _hover(self) -> NDArray[np.float64]:
        """Return from where the gripper goes down to the grasp."""
        assert self._grasp is not None
        point = self._grasp.point
        if self._grasp.tilt:
            return point - P.hover * self._grasp.approach
        return np.append(point[:2], max(self._grasp.top + 0.07, point[2] + P.hover))

    def _advance(self, ee: EndEffector) -> None:
        """Leave the phase if its work is done, failed, or took too long."""
        scene, name, at = self.scene, self._name, ee.position
        self._count += 1
        phase, late = self._phase, self._count > TIMEOUT.get(self._phase, 0)
        position = scene.position(name)
        if phase in ('lift', 'carry', 'place'):
            self._untouched = 0 if scene.held(name) else self._untouched + 1
            if self._untouched >= P.lost_steps:
                self._fail('dropped' if phase != 'lift' else 'missed', at)
                return
        if phase in ('retreat', 'retry', 'wait') or self._grasp is None:
            if phase == 'retry' and not late and (
                    ee.opening < WIDE or at[2] < self._target[2] - 0.02):
                return
            if phase == 'retreat' and not self._away():
                return
            if self.holds():
                self._go('wait')
                return
            self._plan(ee)
            self._go('reach')
            return
        grasp = self._grasp
        turned = grasp.turned(ee.rotation)
        if phase in ('reach', 'lower') and np.linalg.norm(position - self._planned_at) > 0.015:
            self._plan(ee)
            self._go('reach')
        elif phase == 'reach':
            if late or (np.linalg.norm(at - self._hover()) < 0.02 and turned < 0.12):
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
            self._carry(ee, late)
        elif phase == 'place':
            if late or np.linalg.norm(at - self._target) < 0.012:
                self._start_z = position[2]
                self._go('release')
        elif phase == 'release':
            self._slide(position, ee)
            fallen = position[2] < self._start_z - P.fall
            put = self._count > P.opened_steps and ee.opening > WIDE and self.holds()
            if late or put or (self._count > P.opening_steps and fallen):
                self._tries += 1
                self._go('retreat')

    def _carry(self, ee: EndEffector, late: bool) -> None:
        """Follow the destination; when over it, or before it, go on to place."""
        spot, scene = self._spot, self.scene
        assert spot is not None and self._turned is not None
        moved = anchor(scene, self._to) - self._anchor
        reference = scene.position(self._name)
        if spot.middle:
            points = surface(scene, self._name)
            reference = (points.max(axis=0) + points.min(axis=0)) / 2
        offset = (reference - ee.position)[:2]
        first = spot.point if spot.entry is None else spot.entry
        self._target = np.append(first + moved[:2] - offset, self._safe_z)
        turned = (self._turned * ee.rotation.inv()).magnitude()
        near, straight = (
            (P.near, P.near_turn) if spot.yaw is None else (P.fitting_near, P.fitting_turn))
        way = ee.position - self._target
        if spot.entry is None:
            way[2] = max(way[2], 0.0)  # on its way down already
        if late or (np.linalg.norm(way) < near and turned < straight):
            # It may have slid between the pads.
            below = ee.position[2] - surface(scene, self._name)[:, 2].min()
            height = max(spot.lowest + moved[2] + below, spot.tips + FINGERTIP)
            self._target = np.append(spot.point + moved[:2] - offset, height)
            self._go('place')

    def _slide(self, position: NDArray[np.float64], ee: EndEffector) -> None:
        """Slide along the fingers, away from an object that hangs on one, then the other way."""
        if self._count in (P.opening_steps, P.opening_steps + P.slide_steps):
            axis = ee.rotation.as_matrix()[:, 0]
            side = np.sign((position - ee.position) @ axis + 1e-9)
            self._target = self._target + (0.03 if self._count == P.opening_steps else -0.06) * (
                side * axis)

    def _fail(self, trouble: str, at: NDArray[np.float64]) -> None:
        self._trouble = trouble
        self._tries += 1
        if (self.driving and trouble == 'missed' and self._grasp is not None
                and self._grasp.angle is not None):
            self._failed_angles.append(self._grasp.angle)
        self._target = at + [0.0, 0.0, 0.06]
        self._go('retry')

    def _aim(self, ee: EndEffector) -> tuple[NDArray[np.float64], Rotation]:
        """Return where the grip site should go in this phase, and how it should be turned."""
        grasp, phase, at = self._grasp, self._phase, ee.position
        if grasp is None or phase == 'wait':
            return at, ee.rotation
        if phase == 'reach':
            hover = self._hover()
            off = np.linalg.norm(at[:2] - hover[:2])
            if off > 0.05 and at[2] < self._travel_z - 0.03:
                return np.append(at[:2], self._travel_z), grasp.rotation
            height = self._travel_z if off > 0.05 else hover[2]
            return np.append(hover[:2], height), grasp.rotation
        if phase == 'lower':
            astray = max(grasp.aside(at) - P.astray,
                         P.wrist_radius * (grasp.turned(ee.rotation) - P.askew), 0.0)
            back = min(P.steepness * astray, P.most_back)
            return grasp.point - back * grasp.approach, grasp.rotation
        if phase == 'grasp':
            return grasp.point, grasp.rotation
        assert self._turned is not None
        if phase == 'lift':
            if not self.driving:  # it may be on its way already
                return np.append(at[:2], self._safe_z), self._turned
            return np.append(grasp.point[:2], self._safe_z), grasp.rotation
        if phase == 'retreat':
            if self._spot is not None and self._spot.entry is not None:
                way = self._spot.entry - self._spot.point
                out = self._target + P.draw_back * np.append(way / np.linalg.norm(way), 0.0)
                if np.linalg.norm(at[:2] - self._target[:2]) < P.draw_back - 0.02:
                    return out, self._turned
                return out + [0.0, 0.0, P.draw_up], REST
            return np.append(at[:2], self._safe_z), self._turned
        return self._target, self._turned
