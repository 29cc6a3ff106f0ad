"""Opens and closes drawers and the microwave, turns the stove's knob, pushes the plate."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from ..libero.env import LiberoEnv
from ..libero.start import owner
from .contact import UP, Contact, ContactSkill, Vector, facing
from .grasps import surface, surroundings
from .skill import EndEffector, Move

DIP = np.radians(15.0)  # by which a level gripper points down: so its palm clears the table
LEAN = np.radians(35.0)  # of a fist from straight down towards what it pushes
AHEAD = 0.06  # how far ahead of the contact the gripper is sent [m]
BEFORE = 0.065  # from the handle or face to the fist that is about to push it [m]
PULLED = 0.152  # a drawer is pulled farther than the least that counts as open [m]
SMALL = 0.05  # half of the longest side of a bar or a post, at most [m]
ROOM = 0.012  # between an open drawer and what was pushed from under it [m]
SIDEWAYS = 0.035  # towards the base, so that the gripper has room beside the drawer [m]
NEAR = 0.012  # to a point where it counts as reached [m]
FLOOR = 0.025  # around the middle of a plate or bowl, where its floor is [m]
OUTSIDE = 0.055  # from the middle of its floor to a gripper that slipped out [m]
KNOB_LEAN = np.radians(25.0)  # along the lever: near the base a vertical gripper is out of reach
KNOB_RADIUS = 0.01  # from the axis to the grip on the lever [m]
KNOB_ABOVE = 0.004  # from the lever's middle up to the grip [m]
KNOB_ON = 0.65  # turned farther than the least that counts as on [rad]
TURN_AHEAD = 0.5  # [rad]
DOOR_RADIUS = 0.19  # from the hinge to where the fist pushes [m]
DOOR_BELOW = 0.023  # from the door's upper edge to the fist, whose palm passes over it [m]
SWING = 0.25  # by which the gripper is ahead of the door [rad]
AJAR = 0.5  # where pulling at the handle ends and pushing from inside begins [rad]
TIP = 0.009  # from the grip site to the fingertips [m]
PRESS = 0.015  # how far below what it pushes from inside the fist is sent [m]
INSET = 0.25  # of half a region's size, from its middle to where something may end [-]
# Of the gripper, in the grip site's axes: half widths, and from where to where forward [m].
SHAPE = ((0.03, 0.013, -0.045, TIP), (0.106, 0.025, -0.08, -0.028),
         (0.106, 0.035, -0.125, -0.08))


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

    def reach(self, geom: int, direction: Vector) -> float:
        """Return how far a box reaches along a unit vector [3], world m."""
        turned = np.abs(direction @ self.scene.data.geom_xmat[geom].reshape(3, 3))
        return float(self.at(geom) @ direction + turned @ self.scene.model.geom_size[geom])

    def progress(self) -> float:
        """Return the joint's position, counted towards the goal."""
        return self._way * self.value


class Push(ContactSkill):
    """Pushes a plate or a bowl over the table into a region, with the fist from inside."""

    speed = 0.8

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        self._yaw = 0.0

    def end(self) -> Vector:
        """Return where it should come to [3], world m: well inside the region."""
        site = self.scene.data.site(self.goal[2])
        turned, size = site.xmat.reshape(3, 3), self.scene.env.object_sites_dict[self.goal[2]].size
        from_it = turned @ (self._at() - site.xpos)
        inside = np.append(INSET * np.array(size[:2]) * np.sign(from_it[:2]), 0.0)
        return site.xpos + turned.T @ inside

    def begin(self) -> None:
        """Choose how to turn the gripper so that it has room."""
        others, ee = surroundings(self.scene, self.goal[1]), self.end_effector()
        yaws = np.radians([0.0, 90.0, 45.0, -45.0])
        met = []
        for self._yaw in yaws:
            contact = self.contact(ee)
            met.append(sum(_inside(others - contact.point - lift * UP, contact.rotation)
                           for lift in np.linspace(0.0, 0.15, 6)))
        self._yaw = float(yaws[np.argmin(met)])

    def enough(self) -> bool:
        """Return whether it is well inside: at the edge nobody could see that it is enough."""
        return self.holds() and self.progress() > -NEAR

    def _at(self) -> Vector:
        return self.scene.position(self.goal[1])

    def _way(self) -> Vector:
        """Return the unit vector [3] in which to push it now."""
        way = (self.end() - self._at()) * [1.0, 1.0, 0.0]
        return way / max(float(np.linalg.norm(way)), 1e-6)

    def contact(self, ee: EndEffector) -> Contact:
        """Return a fist on its floor."""
        at, points = self._at(), surface(self.scene, self.goal[1])
        floor = points[np.linalg.norm(points[:, :2] - at[:2], axis=1) < FLOOR, 2].max(
            initial=points[:, 2].min())
        # The gripper as at a reset, where the last joint is farthest from its ends.
        x = turn(self._yaw).apply([0.0, 1.0, 0.0])
        return Contact(np.append(at[:2], floor + TIP), facing(-UP, x, ee.rotation), -UP)

    def follow(self, ee: EndEffector) -> tuple[Vector, Rotation]:
        """Return a place ahead, and below so that it does not slip out."""
        contact = self.contact(ee)
        return contact.point + AHEAD * self._way() - PRESS * UP, contact.rotation

    def progress(self) -> float:
        """Return how near the object is to where it should be, negative [m]."""
        return -float(np.linalg.norm((self.end() - self._at())[:2]))

    def astray(self, ee: EndEffector, contact: Contact) -> bool:
        """Return whether the gripper is no longer inside the object."""
        offset = ee.position - contact.point
        return bool(np.linalg.norm(offset[:2]) > OUTSIDE or offset[2] > OUTSIDE)


class Aside(Push):
    """Pushes a bowl to where it is not in the way."""

    def __init__(self, env: LiberoEnv, name: str, to: Vector):
        super().__init__(env, ('aside', name))
        self._end = to

    def end(self) -> Vector:
        """Return where it should come to [3], world m."""
        return self._end

    def holds(self) -> bool:
        """Return whether it was pushed far enough."""
        return self.progress() > -NEAR

    def enough(self) -> bool:
        """Return whether it may be let go: the gripper drags it back a little."""
        return self.progress() > -0.4 * NEAR


def _inside(points: Vector, rotation: Rotation) -> int:
    """Return how many of the points [n, 3], from the grip site, are inside the gripper."""
    x, y, z = (points @ rotation.as_matrix()).T
    return sum(int(((abs(x) < a) & (abs(y) < b) & (z > low) & (z < high)).sum())
               for a, b, low, high in SHAPE)


class Drawer(Jointed):
    """Pulls a drawer open by its bar, or pushes the bar with the fist until it is shut.

    A bowl that is to go in and stands where the open drawer would be over it, so that no gripper
    would reach it, is first pushed from there.
    """

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        self.verb = self.goal[0]
        self.grips = self.verb == 'open'
        self.speed = 0.6 if self.grips else 1.0
        # The bar stands out farthest.
        self._bar = max(self._parts, key=lambda g: float(self.at(g) @ self.outward))
        self._aside: Aside | None = None
        if self.verb == 'open' and not self.holds():
            self._aside = self._in_the_way()

    def _in_the_way(self) -> Aside | None:
        scene, out = self.scene, self.outward
        bowls = [g[1] for g in scene.goals
                 if g[0] == 'in' and g[2] == self.goal[1] and 'bowl' in g[1]]
        if not bowls:
            return None
        box = [g for g in self._parts if scene.model.geom_size[g].max() > SMALL]
        bowl, at = surface(scene, bowls[0]), scene.position(bowls[0])
        aside = np.cross(UP, out)
        aside = aside * np.sign(aside @ (self.env.base_position - at))
        front = max(self.reach(g, out) for g in box) + PULLED - self._far * self.value
        under = bowl[:, 2].max() < -max(self.reach(g, -UP) for g in box)
        beside = any((bowl @ (s * aside)).min() > max(self.reach(g, s * aside) for g in box)
                     for s in (1.0, -1.0))
        if not under or beside or (bowl @ out).min() > front:
            return None
        farther = front + ROOM - (bowl @ out).min()
        return Aside(self.env, bowls[0], at + farther * out + SIDEWAYS * aside)

    def act(self) -> Move:
        """Return what to do in this control step."""
        if self._aside is not None:
            if not (self._aside.holds() and self._aside.free()):
                return self._aside.act()
            self._aside = None
        return super().act()

    def free(self) -> bool:
        """Return whether the gripper is clear of the drawer and of what it pushed from there."""
        return self._aside is None and super().free()

    @property
    def outward(self) -> Vector:
        """The direction [3] in which it opens."""
        return self._far * self.axis

    def enough(self) -> bool:
        """Return whether it is shut, or open with something to spare."""
        return self._far * self.value > PULLED if self.verb == 'open' else self.holds()

    def contact(self, ee: EndEffector) -> Contact:
        """Return how to take the bar between the fingers, or where the fist goes before it."""
        bar, out = self.at(self._bar), self.outward
        if not self.grips:
            return Contact(bar + BEFORE * out, self._fist(ee), -UP)
        # Where nothing is near the posts' ends the bar may be taken anywhere: nearer the base.
        along = np.cross(UP, out)
        along *= np.sign(along @ (self.env.base_position - bar))
        shift = (0.015, -0.01, 0.03)[self._tries % 3]
        rotation = facing(-np.cos(DIP) * out - np.sin(DIP) * UP, UP, ee.rotation)
        # A little below its middle: as far from the bar above it as from the one below.
        return Contact(bar + shift * along - 0.004 * UP - 0.002 * out, rotation,
                       rotation.as_matrix()[:, 2])

    def _fist(self, ee: EndEffector) -> Rotation:
        return facing(-np.sin(LEAN) * self.outward - np.cos(LEAN) * UP,
                      np.cross(UP, self.outward), ee.rotation)

    def follow(self, ee: EndEffector) -> tuple[Vector, Rotation]:
        """Return a place ahead of the bar."""
        if self.grips:
            contact = self.contact(ee)
            return contact.point + AHEAD * self.outward, contact.rotation
        return self.at(self._bar) - 0.5 * AHEAD * self.outward, self._fist(ee)


class Knob(Jointed):
    """Takes the knob's lever between the fingers and turns it on."""

    verb = 'turn'
    grips = True
    advance = 0.01

    def __init__(self, env: LiberoEnv, goal: Sequence[str]):
        super().__init__(env, goal)
        self._lever = max(self._parts, key=lambda g: self.reach(g, UP))  # it stands on the disc

    def _pose(self, ee: EndEffector, ahead: float) -> tuple[Vector, Rotation]:
        middle, axis = self.at(self._lever), self.anchor
        lever = (middle - axis) * [1.0, 1.0, 0.0]
        lever = turn(ahead).apply(lever / np.linalg.norm(lever))
        point = np.append((axis + KNOB_RADIUS * lever)[:2], middle[2] + KNOB_ABOVE)
        return point, facing(np.sin(KNOB_LEAN) * lever - np.cos(KNOB_LEAN) * UP,
                             np.cross(UP, lever), ee.rotation)

    def contact(self, ee: EndEffector) -> Contact:
        """Return how to take the lever."""
        point, rotation = self._pose(ee, 0.0)
        return Contact(point, rotation, rotation.as_matrix()[:, 2])

    def follow(self, ee: EndEffector) -> tuple[Vector, Rotation]:
        """Return the grip on the lever turned farther."""
        return self._pose(ee, self._way * np.sign(self.axis[2]) * TURN_AHEAD)

    def enough(self) -> bool:
        """Return whether it is on with something to spare."""
        return self._far * self.value > KNOB_ON


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

    def contact(self, ee: EndEffector) -> Contact:
        """Return how to take the handle, or where the fist goes beside the door."""
        along, way = self._frame()
        if self.grips:
            rotation = facing(-np.cos(DIP) * way - np.sin(DIP) * UP, along, ee.rotation)
            return Contact(self.at(self._handle), rotation, rotation.as_matrix()[:, 2])
        return Contact(self._beside(along, way) - BEFORE * way, self._fist(ee), -UP)

    def _beside(self, along: Vector, way: Vector) -> Vector:
        point = self.anchor + DOOR_RADIUS * along
        return np.append(point[:2], self.reach(self._panel, UP) - DOOR_BELOW)

    def _fist(self, ee: EndEffector) -> Rotation:
        return facing(-UP, np.array([0.0, 1.0, 0.0]), ee.rotation)

    def follow(self, ee: EndEffector) -> tuple[Vector, Rotation]:
        """Return a place ahead on the arc."""
        along, way = self._frame()
        swing = turn(SWING * self._way * np.sign(self.axis[2]))
        if self.grips:
            ahead = self.anchor + swing.apply(self.at(self._handle) - self.anchor)
            return ahead, swing * self.contact(ee).rotation
        return self._beside(swing.apply(along), way) - 0.5 * AHEAD * way, self._fist(ee)
