"""Labels frames by rules: from proprioception, the instruction and, where recorded, places.

Deterministic and offline. The whole episode is known, so where the gripper will close or open
gives away its target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.annotation.question import NOTHING, Semantics
from dtvla_ros.annotation.source import Array, Goal, Motion

# Horizontal offset [m] below which the gripper is over its target, and above which no longer.
OVER, AWAY = 0.015, 0.035
EMPTY = 0.006  # opening of fingers closed on nothing [m]
NEAR = 0.06  # from the gripper: an object that may be in it [m]
DELIVERED = 0.09  # from its destination: an object that was let go there [m]
SETTLED = 0.004  # change of the opening per frame below which the fingers press on something [m]
BEGUN = 0.01  # of the distance to the destination: no longer only upwards [m]
LOW = 0.04  # over the lowest point of a push: the gripper is down [m]
CONTACT = 0.02  # forward of the object's middle: the gripper has begun to push it [m]
FOLLOWING = {
    'reach': 'lower', 'lower': 'grasp', 'grasp': 'lift', 'lift': 'carry', 'carry': 'place',
    'place': 'release', 'release': 'retreat', 'retreat': 'reach', 'retry': 'reach',
    'push': 'wait', 'wait': 'wait',
}
UNKNOWN = 'object'


@dataclass(frozen=True, slots=True)
class _Grip:
    """The gripper is commanded to close at frame ``begin``, to open at ``end`` (or never, N)."""

    begin: int
    end: int
    object: str
    held: bool
    delivered: bool


def label_frames(motion: Motion, goal: Goal) -> list[Semantics]:
    """Return a label for each frame of an episode."""
    labeller = _Labeller(motion, goal)
    if goal.verb == 'push' and not motion.closing.any():
        labeller.push()
    else:
        begin = 0
        for grip in labeller.grips():
            labeller.approach(begin, grip)
            labeller.hold(grip)
            begin = labeller.let_go(grip)
        labeller.approach(begin, None)
    return labeller.labels


class _Labeller:
    """Fills ``labels`` from the first frame to the last."""

    def __init__(self, motion: Motion, goal: Goal):
        self.motion, self.goal = motion, goal
        self.labels: list[Semantics] = []
        self.finished: list[str] = []
        self.wide = motion.is_wide()
        self.objects = goal.objects or (UNKNOWN,)
        self.destination = goal.destination or self.objects[0]

    def grips(self) -> list[_Grip]:
        """Return the times the gripper is closed, and what each was about."""
        closing = self.motion.closing
        edges = np.flatnonzero(np.diff(np.concatenate([[0], closing.astype(int), [0]])))
        grips: list[_Grip] = []
        remaining = list(self.objects)
        for begin, end in edges.reshape(-1, 2).tolist():
            name = self._nearest(begin, remaining or [self.objects[-1]])
            held = self._held(begin, end, name)
            delivered = held and self._delivered(begin, end, name, end == edges[-1])
            grips.append(_Grip(begin, end, name, held, delivered))
            if delivered:
                remaining = [o for o in remaining if o != name]
        return grips

    def _nearest(self, frame: int, names: list[str]) -> str:
        known = {name: self.motion.places[name] for name in names if name in self.motion.places}
        at = self.motion.position[frame]
        return min(known, key=lambda name: float(np.linalg.norm(known[name][frame] - at)),
                   default=names[0])

    def _held(self, begin: int, end: int, name: str) -> bool:
        middle = min(end - 1, begin + max(1, (end - begin) // 2))
        opening = self.motion.opening
        if opening is not None and opening[middle] < EMPTY:
            return False
        if name in self.motion.places:
            apart = np.linalg.norm(self.motion.places[name] - self.motion.position, axis=1)
            return bool(apart[middle] < NEAR and apart[end - 1] < NEAR) or bool(
                (apart[begin + 1:end] < NEAR).sum() > (end - begin) // 2)
        return end - begin > 2

    def _delivered(self, begin: int, end: int, name: str, last: bool) -> bool:
        places, after = self.motion.places, min(end, len(self.motion) - 1)
        if name in places and self.destination in places:
            off = places[name][after][:2] - places[self.destination][after][:2]
            return float(np.linalg.norm(off)) < DELIVERED
        moved = self.motion.position[after] - self.motion.position[begin]
        return last or float(np.linalg.norm(moved[:2])) > DELIVERED

    def _add(self, count: int, phase: str, name: str, holding: str = NOTHING,
             trouble: str = 'none') -> None:
        following = FOLLOWING[phase]
        if (phase, self.goal.verb) == ('lower', 'push'):
            following = 'push'
        self.labels += [Semantics.model_construct(
            holding=holding, done=self.finished[-1] if self.finished else NOTHING,
            trouble=trouble, phase=phase, object=name, next=following, reason='')] * count

    def _over(self, begin: int, end: int, target: Array) -> NDArray[np.bool_]:
        """Return whether the gripper is over ``target`` [n, 3] or [3] at each frame.

        With hysteresis, so that noise does not change it.
        """
        off = np.linalg.norm((self.motion.position[begin:end] - target)[:, :2], axis=1)
        state, out = False, np.zeros(end - begin, bool)
        for k, distance in enumerate(off):
            state = distance < (AWAY if state else OVER)
            out[k] = state
        return out

    def approach(self, begin: int, grip: _Grip | None) -> None:
        """Label the frames until a grip begins: reach, lower; after the last one, what is left."""
        end = grip.begin if grip else len(self.motion)
        if begin >= end:
            return
        remaining = [o for o in self.objects if o not in self.finished]
        if grip is None and not remaining:
            self._add(end - begin, 'wait', self.objects[-1])
            return
        name = grip.object if grip else remaining[0]
        if name in self.motion.places:
            target = self.motion.places[name][begin:end]
        else:
            target = self.motion.position[end - 1]
        for over in self._over(begin, end, target):
            self._add(1, 'lower' if over else 'reach', name)

    def hold(self, grip: _Grip) -> None:
        """Label the frames of a grip: grasp, lift, carry, place."""
        begin, end = grip.begin, grip.end
        if not grip.held:
            self._add(end - begin, 'grasp', grip.object)
            return
        first = self._pressed(begin, end)
        self._add(first - begin, 'grasp', grip.object)
        position, there = self.motion.position, min(end, len(self.motion) - 1)
        target = position[there]
        if self.destination in self.motion.places and not grip.delivered:
            target = self.motion.places[self.destination][first:end]
        ahead = np.minimum(np.arange(first, end) + 1, there)
        left = np.linalg.norm((position[ahead] - target)[:, :2], axis=1)
        travelling = np.maximum.accumulate(left[:1].sum() - left > BEGUN)
        for moving, over in zip(travelling, self._over(first, end, target)):
            phase = 'lift' if not moving else 'place' if over else 'carry'
            name = grip.object if phase == 'lift' else self.destination
            self._add(1, phase, name, grip.object)

    def _pressed(self, begin: int, end: int) -> int:
        """Return the first frame at which the fingers press on the object."""
        opening = self.motion.opening
        if opening is None:
            return min(begin + 1, end)
        for k in range(begin + 1, end):
            ahead = min(k + 1, end - 1)
            if not self.wide[k] and abs(opening[ahead] - opening[k]) < SETTLED:
                return k
        return end

    def let_go(self, grip: _Grip) -> int:
        """Label the frames in which the fingers open; return where that ends."""
        begin = end = min(grip.end, len(self.motion))
        while end < len(self.motion) and not self.wide[end] and not self.motion.closing[end]:
            end += 1
        end = max(end, min(begin + 1, len(self.motion)))
        if grip.delivered:
            for k in range(begin, end):
                still = self.motion.opening is not None and k > 0 and bool(
                    self.motion.opening[k] - self.motion.opening[grip.end - 1] < SETTLED)
                self._add(1, 'release', grip.object, grip.object if still else NOTHING)
            self.finished.append(grip.object)
        else:
            self._add(end - begin, 'retry', grip.object,
                      trouble='dropped' if grip.held else 'missed')
        return end

    def push(self) -> None:
        """Label a push without a grip: reach, lower, push."""
        position, name = self.motion.position, self.objects[0]
        low = position[:, 2] < float(np.quantile(position[:, 2], 0.05)) + LOW
        start = int(np.argmax(low))
        if name in self.motion.places:
            place = self.motion.places[name]
            off = np.abs(position - place)
            beside = off[:, 1] < AWAY
            over = self._over(0, len(position), place) | ((off[:, 0] < AWAY) & beside)
            down = low & (off[:, 0] < CONTACT) & beside
        else:
            over = self._over(0, len(position), position[start])
            down = low & (np.arange(len(position)) >= start)
        for pushing, above in zip(down, over):
            phase = 'push' if pushing else 'lower' if above else 'reach'
            self._add(1, phase, self.destination if pushing else name)
