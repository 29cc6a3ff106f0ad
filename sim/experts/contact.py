"""Skills that touch one place of the scene and move it: come near, take hold, move, get clear."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..libero.env import LiberoEnv
from ..libero.start import owner
from .grasps import highest_between, surroundings
from .skill import EndEffector, Move, Skill
from .tabletop import CLOSE, EMPTY, OPEN, WIDE

Vector = NDArray[np.float64]

UP = np.array([0.0, 0.0, 1.0])
HOVER = 0.07  # from the contact, whence the gripper approaches it [m]
CLOSING = 9  # control steps until the fingers press
SLIPPED = 0.03  # from what is held to the gripper that has lost it [m]
STALL = 25  # control steps without progress after which the motion counts as failed
LOOSE = 0.05  # opening at which a handle is let go [m]
SLOWLY = 0.10  # from the contact, whence the gripper goes slowly [m]
CORRIDOR = 0.08  # to either side of the way there, what is in it is passed over [m]
OVER = 0.03  # at this height [m]
LEVEL = 0.09  # and so much higher where the gripper lies level [m]
CLEAR = 0.08  # how far the gripper rises when it is done [m]
# Control steps after which the next phase begins anyway.
TIMEOUT = {'reach': 90, 'lower': 50, 'release': 14, 'retreat': 30, 'retry': 25}


@dataclass(frozen=True, slots=True)
class Contact:
    """A pose of the grip site at which the motion begins: ``point`` [3] world m, ``rotation``.

    The gripper comes to it along ``approach``, a unit vector [3].
    """

    point: Vector
    rotation: Rotation
    approach: Vector

    @property
    def hover(self) -> Vector:
        """Where the approach begins [3], world m."""
        return self.point - HOVER * self.approach


def facing(direction: Vector, fingers: Vector, now: Rotation) -> Rotation:
    """Return the grip site's orientation with the fingertips to ``direction`` [3].

    The fingers open along ``fingers`` [3]; of the two such orientations, the one closer to
    ``now``.
    """
    z = direction / np.linalg.norm(direction)
    x = fingers - z * (fingers @ z)
    x = x / np.linalg.norm(x)
    both = [Rotation.from_matrix(np.stack([s * x, np.cross(z, s * x), z], axis=1))
            for s in (1.0, -1.0)]
    return min(both, key=lambda r: float((r * now.inv()).magnitude()))


class ContactSkill(Skill):
    """Comes to a `Contact`, takes hold if it ``grips``, and moves the gripper until it is enough.

    Where the contact is, how the gripper moves and how far it got are asked for on every call, so
    that what was moved from outside is followed. After a grip that was lost and a motion without
    progress it tries again.
    """

    verb = 'push'
    grips = False
    speed = 1.0
    advance = 0.002  # what counts as progress

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        self._phase = 'wait'
        self._count = self._stalled = self._tries = 0
        self._best = -np.inf
        self._trouble: str | None = None
        self._travel_z = 0.0
        self._back: Vector | None = None

    @abstractmethod
    def contact(self, ee: EndEffector) -> Contact:
        """Return where the motion would begin now."""

    @abstractmethod
    def follow(self, ee: EndEffector) -> tuple[Vector, Rotation]:
        """Return where the grip site should go next in the motion, and how turned."""

    @abstractmethod
    def progress(self) -> float:
        """Return how far the motion got; it grows."""

    def enough(self) -> bool:
        """Return whether the motion may end, by default as soon as the goal is reached."""
        return self.holds()

    def begin(self) -> None:
        """Prepare for coming near, the first time or again."""

    def moving(self) -> bool:
        """Return whether the motion is under way and not yet enough."""
        return self._phase == self.verb and not self.enough()

    def free(self) -> bool:
        """Return whether the gripper is clear of what it moves."""
        return self._phase in ('reach', 'wait')

    def act(self) -> Move:
        """Return what to do in this control step."""
        ee = self.end_effector()
        contact = self.contact(ee)
        self._advance(ee, contact)
        contact = self.contact(ee)  # it may have begun anew, with another one
        phase = self._phase
        target, rotation = self._aim(ee, contact)
        shut = not self.grips or phase in ('grasp', self.verb)
        # A finger that only follows does not always touch.
        holding = self.grips and phase == self.verb and ee.opening > EMPTY
        return Move(
            phase, self.goal[1], contact.point, self._following(), target, rotation,
            self.gripper() if shut else OPEN, held=self.goal[1] if holding else None,
            trouble=self._trouble, speed=self._speed(ee, contact))

    def _speed(self, ee: EndEffector, contact: Contact) -> float:
        if self._phase == 'lower':
            return 0.6 if np.linalg.norm(ee.position - contact.point) < SLOWLY else 1.0
        return self.speed if self._phase == self.verb else 1.0

    def gripper(self) -> float:
        """Return the command for the fingers while they are not open to take hold."""
        return CLOSE

    def _following(self) -> str:
        first = 'grasp' if self.grips else self.verb
        last = 'release' if self.grips else 'retreat'
        return {'reach': 'lower', 'lower': first, 'grasp': self.verb, self.verb: last,
                'release': 'retreat', 'retreat': 'reach', 'retry': 'reach', 'wait': 'wait'}[
                    self._phase]

    def _go(self, phase: str) -> None:
        self._phase, self._count, self._stalled, self._best = phase, 0, 0, -np.inf

    def _begin(self, ee: EndEffector) -> None:
        """Come near, over what is on the way."""
        self.begin()
        contact = self.contact(ee)
        # What is to be gripped is not passed over: the approach ends there.
        passed = owner(self.scene, self.goal[1]) if self.grips else ''
        met = highest_between(
            surroundings(self.scene, passed), ee.position, contact.hover, CORRIDOR)
        level = np.linalg.norm(contact.rotation.as_matrix()[:2, 2])
        self._travel_z = max(met + OVER + LEVEL * float(level), float(contact.hover[2]))
        self._go('reach')

    def _advance(self, ee: EndEffector, contact: Contact) -> None:
        """Leave the phase if its work is done, failed, or took too long."""
        self._count += 1
        phase, late = self._phase, self._count > TIMEOUT.get(self._phase, 0)
        at, turned = ee.position, (contact.rotation * ee.rotation.inv()).magnitude()
        if phase == 'wait':
            if not self.holds():
                self._begin(ee)
        elif phase == 'reach':
            over = np.linalg.norm(at[:2] - contact.hover[:2]) < 0.03 and turned < 0.3
            if self.holds():
                self._go('wait')
            elif late or over:
                self._trouble = None
                self._go('lower')
        elif phase == 'lower':
            if late or (np.linalg.norm(at - contact.point) < 0.01 and turned < 0.1):
                self._go('grasp' if self.grips else self.verb)
        elif phase == 'grasp':
            if self._count > CLOSING:
                self._go(self.verb)
        elif phase == self.verb:
            self._watch(ee, contact)
        elif phase == 'release':
            if late or ee.opening > LOOSE:
                self._get_clear(contact)
        elif phase == 'retreat':
            assert self._back is not None
            down = (self._clear(ee) * ee.rotation.inv()).magnitude() < 0.4
            if late or (down and at[2] > self._back[2] + CLEAR - 0.02):
                self._go('wait')
        elif late or (at[2] > contact.hover[2] and (not self.grips or ee.opening > WIDE)):
            self._begin(ee)

    def _clear(self, ee: EndEffector) -> Rotation:
        """Return how to turn a level gripper before the next skill takes over: straight down."""
        x, _, z = ee.rotation.as_matrix().T
        if -z[2] > np.cos(np.radians(60.0)):
            return ee.rotation
        return facing(-UP, x if abs(x[2]) < 0.7 else np.cross(UP, z), ee.rotation)

    def _get_clear(self, contact: Contact) -> None:
        self._back = contact.hover if self.grips else contact.point
        self._go('retreat')

    def _watch(self, ee: EndEffector, contact: Contact) -> None:
        """End the motion when it is enough, when the grip is lost, or when nothing moves."""
        if self.enough():
            if self.grips:
                self._go('release')
            else:
                self._get_clear(contact)
            return
        if (now := self.progress()) > self._best + self.advance:
            self._best, self._stalled = now, 0
        else:
            self._stalled += 1
        astray = self.astray(ee, contact)
        if astray or self._stalled >= STALL:
            self._trouble = 'dropped' if astray else 'missed'
            self._tries += 1
            self._go('retry')

    def astray(self, ee: EndEffector, contact: Contact) -> bool:
        """Return whether the gripper has lost what it holds or pushes."""
        return self.grips and bool(np.linalg.norm(ee.position - contact.point) > SLIPPED)

    def _aim(self, ee: EndEffector, contact: Contact) -> tuple[Vector, Rotation]:
        """Return where the grip site should go in this phase, and how it should be turned."""
        phase, at = self._phase, ee.position
        if phase == 'wait':
            return at, ee.rotation
        if phase == 'reach':
            off = np.linalg.norm(at[:2] - contact.hover[:2])
            if off > 0.05 and at[2] < self._travel_z - 0.03:
                return np.append(at[:2], self._travel_z), contact.rotation
            return np.append(contact.hover[:2], self._travel_z), contact.rotation
        if phase == 'lower':
            off = np.linalg.norm(np.cross(at - contact.point, contact.approach))
            turned = (contact.rotation * ee.rotation.inv()).magnitude()
            ready = off < 0.015 and turned < 0.1
            return contact.point if ready else contact.hover, contact.rotation
        if phase == self.verb:
            return self.follow(ee)
        if phase == 'retreat':
            assert self._back is not None
            out = np.linalg.norm(at[:2] - self._back[:2]) < 0.02 or self._count > 14
            rise = np.append(self._back[:2], self._back[2] + CLEAR)
            return (rise, self._clear(ee)) if out else (self._back, ee.rotation)
        if phase == 'retry':
            back = contact.hover if self.grips else contact.point
            return back + 0.06 * UP, contact.rotation
        return contact.point, contact.rotation
