"""Labels frames by rules from proprioception, instruction and places: repeatable, offline."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.annotation.question import NOTHING, Semantics
from dtvla_ros.annotation.source import Array, Goal, Motion, latched
from dtvla_ros.thought import DESTINATION_PHASES

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


def label_frames(motion: Motion, goal: Goal) -> list[Semantics]:
    """Return a label for each frame of an episode."""
    labeller = _Labeller(motion, goal)
    if goal.verb == 'push' and not motion.closing.any():
        labeller.push()
    else:
        labeller.grips()
    return labeller.labels


class _Labeller:
    """Fills ``labels`` from the first frame to the last."""

    def __init__(self, motion: Motion, goal: Goal):
        self.motion, self.wide, self.done = motion, motion.is_wide(), NOTHING
        self.position, self.places, self.opening = motion.position, motion.places, motion.opening
        self.labels: list[Semantics] = []
        self.following = FOLLOWING | ({'lower': 'push'} if goal.verb == 'push' else {})
        self.objects = goal.objects or (UNKNOWN,)
        self.destination = goal.destination or self.objects[0]

    def grips(self) -> None:
        """Label all frames; the gripper is commanded to close and to open again, or never."""
        closing, remaining, free = self.motion.closing, list(self.objects), 0
        edges = np.flatnonzero(np.diff(np.concatenate([[0], closing.astype(int), [0]])))
        for begin, end in edges.reshape(-1, 2).tolist():
            name = self._nearest(begin, remaining or [self.objects[-1]])
            held = self._held(begin, end, name)
            delivered = held and self._delivered(begin, end, name, end == edges[-1])
            self._approach(free, begin, name)
            self._hold(begin, end, name, held, delivered)
            free = self._let_go(end, name, held, delivered)
            if delivered:
                self.done = name
                remaining = [o for o in remaining if o != name]
        if remaining:
            self._approach(free, len(self.motion), remaining[0])
        else:
            self._add(['wait'] * (len(self.motion) - free), self.objects[-1])

    def _nearest(self, frame: int, names: list[str]) -> str:
        return min((name for name in names if name in self.places), key=lambda name: float(
            np.linalg.norm(self.places[name][frame] - self.position[frame])), default=names[0])

    def _held(self, begin: int, end: int, name: str) -> bool:
        middle = min(end - 1, begin + max(1, (end - begin) // 2))
        if self.opening is not None and self.opening[middle] < EMPTY:
            return False
        if name not in self.places:
            return end - begin > 2
        near = np.linalg.norm(self.places[name] - self.position, axis=1) < NEAR
        return bool(near[middle] and near[end - 1]
                    or near[begin + 1:end].sum() > (end - begin) // 2)

    def _delivered(self, begin: int, end: int, name: str, last: bool) -> bool:
        after = min(end, len(self.motion) - 1)
        if name in self.places and self.destination in self.places:
            off = self.places[name][after] - self.places[self.destination][after]
            return float(np.linalg.norm(off[:2])) < DELIVERED
        moved = self.position[after] - self.position[begin]
        return last or float(np.linalg.norm(moved[:2])) > DELIVERED

    def _add(self, phases: Iterable[str], name: str, holding: str = NOTHING,
             trouble: str = 'none') -> None:
        """Label the next frames; what carries, places or pushes is about the destination."""
        for phase in phases:
            self.labels.append(Semantics.model_construct(
                holding=holding, done=self.done, trouble=trouble, phase=phase, reason='',
                object=self.destination if phase in DESTINATION_PHASES else name,
                next=self.following[phase]))

    def _over(self, begin: int, end: int, target: Array) -> NDArray[np.bool_]:
        """Return whether the gripper is over ``target`` [n, 3] or [3] at each frame, latched."""
        off = np.linalg.norm((self.position[begin:end] - target)[:, :2], axis=1)
        return latched(off < OVER, off >= AWAY)

    def _approach(self, begin: int, end: int, name: str) -> None:
        """Label the frames before a grip: reach, lower."""
        if begin < end:
            place = self.places.get(name)
            target = self.position[end - 1] if place is None else place[begin:end]
            self._add(np.where(self._over(begin, end, target), 'lower', 'reach').tolist(), name)

    def _hold(self, begin: int, end: int, name: str, held: bool, delivered: bool) -> None:
        """Label the frames of a grip: grasp and, if anything is held, lift, carry, place."""
        first = self._pressed(begin, end) if held else end
        self._add(['grasp'] * (first - begin), name)
        there = min(end, len(self.motion) - 1)
        target = self.position[there]
        if self.destination in self.places and not delivered:
            target = self.places[self.destination][first:end]
        ahead = np.minimum(np.arange(first, end) + 1, there)
        left = np.linalg.norm((self.position[ahead] - target)[:, :2], axis=1)
        travelling = np.maximum.accumulate(left[:1].sum() - left > BEGUN)
        over = self._over(first, end, target)
        self._add(np.where(travelling, np.where(over, 'place', 'carry'), 'lift').tolist(),
                  name, name)

    def _pressed(self, begin: int, end: int) -> int:
        """Return the first frame at which the fingers press on the object."""
        if self.opening is None:
            return min(begin + 1, end)
        frames = np.arange(begin + 1, end)
        change = np.abs(self.opening[np.minimum(frames + 1, end - 1)] - self.opening[frames])
        return int(next(iter(frames[~self.wide[frames] & (change < SETTLED)]), end))

    def _let_go(self, begin: int, name: str, held: bool, delivered: bool) -> int:
        """Label the frames in which the fingers open; return where that ends."""
        count = len(self.motion)
        over = np.flatnonzero((self.wide | self.motion.closing)[begin:])
        end = max(begin + int(over[0]) if len(over) else count, min(begin + 1, count))
        if not delivered:
            self._add(['retry'] * (end - begin), name, trouble='dropped' if held else 'missed')
            return end
        for k in range(begin, end):
            still = self.opening is not None and (
                self.opening[k] - self.opening[begin - 1] < SETTLED)
            self._add(['release'], name, name if still else NOTHING)
        return end

    def push(self) -> None:
        """Label a push without a grip: reach, lower, push."""
        position, name = self.position, self.objects[0]
        low = position[:, 2] < float(np.quantile(position[:, 2], 0.05)) + LOW
        start = int(np.argmax(low))
        if name in self.places:
            place = self.places[name]
            off = np.abs(position - place)
            beside = off[:, 1] < AWAY
            over = self._over(0, len(position), place) | ((off[:, 0] < AWAY) & beside)
            down = low & (off[:, 0] < CONTACT) & beside
        else:
            over = self._over(0, len(position), position[start])
            down = low & (np.arange(len(position)) >= start)
        self._add(np.where(down, 'push', np.where(over, 'lower', 'reach')).tolist(), name)
