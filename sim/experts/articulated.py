"""Opens and closes drawers and the microwave, turns the stove's knob, pushes the plate."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from ..libero.env import LiberoEnv
from ..libero.start import owner
from .contact import UP, Contact, ContactSkill, Vector, facing
from .grasps import surface
from .skill import Hand
from .tabletop import OPEN

DIP = np.radians(15.0)  # by which a level hand points down: so its palm clears the table
LEAN = np.radians(35.0)  # of a fist from straight down towards what it pushes
AHEAD = 0.06  # how far ahead of the contact the hand is sent [m]
BEFORE = 0.065  # from the handle or face to the fist that is about to push it [m]
PULLED = 0.152  # a drawer is pulled farther than the least that counts as open [m]
KNOB_LEAN = np.radians(25.0)  # along the lever: near the base a vertical hand is out of reach
KNOB_RADIUS = 0.01  # from the axis to the grip on the lever [m]
KNOB_ABOVE = 0.004  # from the lever's middle up to the grip [m]
KNOB_ON = 0.65  # turned farther than the least that counts as on [rad]
TURN_AHEAD = 0.5  # [rad]
DOOR_RADIUS = 0.19  # from the hinge to where the fist pushes [m]
DOOR_BELOW = 0.023  # from the door's upper edge to the fist, whose palm passes over it [m]
SWING = 0.25  # by which the hand is ahead of the door [rad]
AJAR = 0.5  # where pulling at the handle ends and pushing from inside begins [rad]
PUSH_LEAN = np.radians(20.0)  # of the hand over what it pushes
PUSH_BEHIND = 0.007  # from the rim to the fingers about to push it [m]
PUSH_ABOVE = 0.013  # from the table up to the grip site [m]
PUSH_AHEAD = 0.02  # from the middle of what is pushed, where the hand is sent [m]


def turn(angle: float) -> Rotation:
    """Return a rotation about the vertical [rad]."""
    return Rotation.from_rotvec(angle * UP)


class Jointed(ContactSkill):
    """What a fixture's joint moves; the goal's verb says to which end."""

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        scene, inner = env.scene, env.scene.env
        self._fixture = owner(scene, self.goal[1])
        site = inner.object_sites_dict.get(self.goal[1])
        name = (site or inner.get_object(self.goal[1])).joints[0]
        joint = scene.model.joint(name)
        self._joint, self._address = int(joint.id), int(joint.qposadr[0])
        ends = joint.range
        # The far end is open or on; the near one, next to zero, closed or off.
        self._far = 1.0 if abs(ends[1]) > abs(ends[0]) else -1.0
        self._way = self._far if self.goal[0] in ('open', 'turnon') else -self._far
        body = scene.model.jnt_bodyid[self._joint]
        self._parts = [g for g in scene.geoms(self._fixture)
                       if scene.model.geom_bodyid[g] == body]

    @property
    def value(self) -> float:
        """The joint's position [m or rad]."""
        return float(self.scene.data.qpos[self._address])

    @property
    def axis(self) -> Vector:
        """The joint's axis in the world, a unit vector [3]."""
        return np.array(self.scene.data.xaxis[self._joint])

    @property
    def anchor(self) -> Vector:
        """A point [3] on the joint's axis, world m."""
        return np.array(self.scene.data.xanchor[self._joint])

    def at(self, geom: int) -> Vector:
        """Return the middle [3] of a part, world m."""
        return np.array(self.scene.data.geom_xpos[geom])

    def top(self, geom: int) -> float:
        """Return the height of a box's upper side, world m."""
        scene = self.scene
        turned = np.abs(scene.data.geom_xmat[geom].reshape(3, 3)[2])
        return float(self.at(geom)[2] + turned @ scene.model.geom_size[geom])

    def progress(self) -> float:
        """Return the joint's position, counted towards the goal."""
        return self._way * self.value


class Drawer(Jointed):
    """Pulls a drawer open by its bar, or pushes the bar with the fist until it is shut."""

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        self.verb = self.goal[0]
        self.grips = self.verb == 'open'
        self.speed = 0.6 if self.grips else 1.0
        # The bar stands out farthest.
        self._bar = max(self._parts, key=lambda g: float(self.at(g) @ self.outward))

    @property
    def outward(self) -> Vector:
        """The direction [3] in which it opens."""
        return self._far * self.axis

    def enough(self) -> bool:
        """Return whether it is shut, or open with something to spare."""
        return self._far * self.value > PULLED if self.verb == 'open' else self.holds()

    def contact(self, hand: Hand) -> Contact:
        """Return how to take the bar between the fingers, or where the fist goes before it."""
        bar, out = self.at(self._bar), self.outward
        if not self.grips:
            return Contact(bar + BEFORE * out, self._fist(hand), -UP)
        # Where nothing is near the posts' ends the bar may be taken anywhere: nearer the base.
        along = np.cross(UP, out)
        along *= np.sign(along @ (self.env.base_position - bar))
        shift = (0.015, -0.01, 0.03)[self._tries % 3]
        rotation = facing(-np.cos(DIP) * out - np.sin(DIP) * UP, UP, hand.rotation)
        return Contact(bar + shift * along + 0.003 * UP - 0.002 * out, rotation,
                       rotation.as_matrix()[:, 2])

    def _fist(self, hand: Hand) -> Rotation:
        return facing(-np.sin(LEAN) * self.outward - np.cos(LEAN) * UP,
                      np.cross(UP, self.outward), hand.rotation)

    def follow(self, hand: Hand) -> tuple[Vector, Rotation]:
        """Return a place ahead of the bar."""
        if self.grips:
            contact = self.contact(hand)
            return contact.point + AHEAD * self.outward, contact.rotation
        return self.at(self._bar) - 0.5 * AHEAD * self.outward, self._fist(hand)


class Knob(Jointed):
    """Takes the knob's lever between the fingers and turns it."""

    verb = 'turn'
    grips = True
    advance = 0.01

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        self._lever = max(self._parts, key=self.top)  # it stands on the disc

    def _pose(self, hand: Hand, ahead: float) -> tuple[Vector, Rotation]:
        middle, axis = self.at(self._lever), self.anchor
        lever = (middle - axis) * [1.0, 1.0, 0.0]
        lever = turn(ahead).apply(lever / np.linalg.norm(lever))
        point = np.append((axis + KNOB_RADIUS * lever)[:2], middle[2] + KNOB_ABOVE)
        return point, facing(np.sin(KNOB_LEAN) * lever - np.cos(KNOB_LEAN) * UP,
                             np.cross(UP, lever), hand.rotation)

    def contact(self, hand: Hand) -> Contact:
        """Return how to take the lever."""
        point, rotation = self._pose(hand, 0.0)
        return Contact(point, rotation, rotation.as_matrix()[:, 2])

    def follow(self, hand: Hand) -> tuple[Vector, Rotation]:
        """Return the grip on the lever turned farther."""
        return self._pose(hand, self._way * np.sign(self.axis[2]) * TURN_AHEAD)

    def enough(self) -> bool:
        """Return whether it is off, or on with something to spare."""
        return self.holds() and (self.goal[0] != 'turnon' or self._far * self.value > KNOB_ON)


class Door(Jointed):
    """Pushes the door with the fist along its arc; a shut one is first pulled at its handle."""

    advance = 0.02

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        self.verb = self.goal[0]
        model = env.scene.model
        boxes = [g for g in self._parts if model.geom_type[g] == mujoco.mjtGeom.mjGEOM_BOX]
        self._panel = max(boxes, key=lambda g: float(np.prod(model.geom_size[g])))
        others = [g for g in self._parts if g not in boxes]
        self._handle = max(others, key=lambda g: float(model.geom_size[g][1]))

    def begin(self) -> None:
        """Choose between the handle and the fist."""
        self.grips = self.verb == 'open' and abs(self.value) < AJAR
        self.speed = 0.6 if self.grips else 1.0

    def enough(self) -> bool:
        """Return whether it is where it should be, or open enough to be pushed from inside."""
        return self.holds() or (self.grips and abs(self.value) > AJAR + 0.15)

    def _frame(self) -> tuple[Vector, Vector]:
        """Return the unit vectors from the hinge along the door, and the way it should go."""
        along = (self.at(self._panel) - self.anchor) * [1.0, 1.0, 0.0]
        along = along / np.linalg.norm(along)
        return along, self._way * np.cross(self.axis, along)

    def contact(self, hand: Hand) -> Contact:
        """Return how to take the handle, or where the fist goes beside the door."""
        along, way = self._frame()
        if self.grips:
            rotation = facing(-np.cos(DIP) * way - np.sin(DIP) * UP, along, hand.rotation)
            return Contact(self.at(self._handle), rotation, rotation.as_matrix()[:, 2])
        return Contact(self._beside(along, way) - BEFORE * way, self._fist(hand), -UP)

    def _beside(self, along: Vector, way: Vector) -> Vector:
        point = self.anchor + DOOR_RADIUS * along
        return np.append(point[:2], self.top(self._panel) - DOOR_BELOW)

    def _fist(self, hand: Hand) -> Rotation:
        return facing(-UP, np.array([0.0, 1.0, 0.0]), hand.rotation)

    def follow(self, hand: Hand) -> tuple[Vector, Rotation]:
        """Return a place ahead on the arc."""
        along, way = self._frame()
        swing = turn(SWING * self._way * np.sign(self.axis[2]))
        if self.grips:
            ahead = self.anchor + swing.apply(self.at(self._handle) - self.anchor)
            return ahead, swing * self.contact(hand).rotation
        return self._beside(swing.apply(along), way) - 0.5 * AHEAD * way, self._fist(hand)


class Push(ContactSkill):
    """Pushes an object over the table, the rim between the open fingers, into a region."""

    verb = 'push'
    speed = 0.6

    def gripper(self) -> float:
        """Return the command that keeps the fingers wide, since they cradle the rim."""
        return OPEN

    def _way(self) -> tuple[Vector, Vector]:
        """Return where the object is and the unit vector to where it should be, both [3]."""
        scene = self.scene
        at = scene.position(self.goal[1])
        way = (np.array(scene.data.site(self.goal[2]).xpos) - at) * [1.0, 1.0, 0.0]
        return at, way / max(float(np.linalg.norm(way)), 1e-6)

    def _turned(self, hand: Hand, way: Vector) -> Rotation:
        return facing(-np.sin(PUSH_LEAN) * way - np.cos(PUSH_LEAN) * UP,
                      np.cross(UP, way), hand.rotation)

    def contact(self, hand: Hand) -> Contact:
        """Return where the hand goes behind the object."""
        at, way = self._way()
        points = surface(self.scene, self.goal[1])
        radius = float(np.linalg.norm(points[:, :2] - at[:2], axis=1).max())
        point = at - (radius + PUSH_BEHIND) * way
        return Contact(np.append(point[:2], points[:, 2].min() + PUSH_ABOVE),
                       self._turned(hand, way), -UP)

    def follow(self, hand: Hand) -> tuple[Vector, Rotation]:
        """Return a place towards the middle of the object, which recedes."""
        at, way = self._way()
        low = self.contact(hand).point[2]
        return np.append((at - PUSH_AHEAD * way)[:2], low), self._turned(hand, way)

    def progress(self) -> float:
        """Return how near the object is to where it should be, negative [m]."""
        at, _ = self._way()
        return -float(np.linalg.norm((self.scene.data.site(self.goal[2]).xpos - at)[:2]))

    def astray(self, hand: Hand, contact: Contact) -> bool:
        """Return whether the hand is beside the object or above it."""
        at, way = self._way()
        offset = hand.position - at
        aside = abs(float(np.cross(way, offset)[2]))
        return aside > 0.035 or offset[2] > 0.05
