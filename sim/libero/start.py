"""Start states with shifted or permuted objects, beside the benchmark's own."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from dtvla_ros.errors import UserError

from .scene import LiberoScene

STARTS = ('benchmark', 'random', 'jitter', 'shuffle')
JITTER = {'jitter': 0.04, 'shuffle': 0.025}  # half the width of a uniform offset [m]
CONTAINER_EXTRA = 0.03  # for what the goal puts objects in or on, under 'jitter' [m]
APART = 0.09  # least distance of two objects' origins, if they did not start closer [m]
CONTAINER_APART = 0.15
REACH = 0.72  # from the base; beyond it the elbow is straight [m]
TRIES = 300


def owner(scene: LiberoScene, place: str) -> str:
    """Return the object, fixture or table that a region belongs to, or ``place`` itself."""
    region = scene.regions.get(place)
    return str(region['target']) if region else place


def supports(scene: LiberoScene) -> dict[str, str]:
    """Return what every object starts on or in: an object, a fixture or the workspace."""
    return {s[1]: owner(scene, s[2]) for s in scene.initial
            if len(s) == 3 and s[1] in scene.objects}


def containers(scene: LiberoScene) -> set[str]:
    """Return the objects that the goal puts something in or on."""
    return {o for g in scene.goals if len(g) == 3
            if (o := owner(scene, g[2])) in scene.objects}


def rearrange(scene: LiberoScene, kind: str, rng: Generator) -> None:
    """Move what stands freely: ``'jitter'`` shifts it, ``'shuffle'`` also permutes its places.

    Objects on a moved object move along, those in or on fixtures stay; containers are not
    permuted. Nothing touches what it did not touch before, and everything stays in reach.

    Raises UserError if there are not two objects to permute, RuntimeError if no such arrangement
    is found.
    """
    on = supports(scene)
    rooted = {*scene.objects, *scene.fixtures}
    standing = [n for n in scene.objects if on.get(n) not in rooted]
    goal_containers = containers(scene)
    permuted = [n for n in standing if n not in goal_containers]
    if kind == 'shuffle' and len(permuted) < 2:
        raise UserError('the task has no two objects to permute; use another start')
    before = {n: scene.position(n) for n in scene.objects}
    base = scene.data.xpos[scene.base, :2].copy()
    touching = _touching(scene)
    away = np.stack([before[n][:2] for n in standing])  # [n, 2]
    farthest = max(REACH, np.linalg.norm(away - base, axis=1).max())
    pairs = itertools.combinations(standing, 2)  # in the order of pdist
    least = np.minimum(pdist(away) - 0.01, [
        CONTAINER_APART if goal_containers.intersection(pair) else APART for pair in pairs])
    for _ in range(TRIES):
        offsets: dict[str, NDArray[np.float64]] = {}
        slots = {n: n for n in standing}
        if kind == 'shuffle':
            slots |= zip(permuted, (permuted[k] for k in rng.permutation(len(permuted))))
        for name in standing:
            extra = CONTAINER_EXTRA if kind == 'jitter' and name in goal_containers else 0.0
            width = JITTER[kind] + extra
            offsets[name] = before[slots[name]][:2] - before[name][:2] + rng.uniform(
                -width, width, 2)
        for name in scene.objects:
            root = name
            while root not in offsets and on.get(root) in scene.objects:
                root = on[root]
            if root in offsets:
                address = scene.joint_address(name)
                scene.data.qpos[address:address + 2] = before[name][:2] + offsets[root]
        scene.forward()
        now = np.stack([scene.position(n)[:2] for n in standing])
        if (np.linalg.norm(now - base, axis=1).max() <= farthest and (pdist(now) >= least).all()
                and _touching(scene) <= touching and not scene.success()):
            return
    raise RuntimeError(f'no {kind} start found in {TRIES} tries')


def _touching(scene: LiberoScene) -> set[frozenset[str]]:
    """Return the pairs of objects and fixtures in contact."""
    owner = {g: n for n in (*scene.objects, *scene.fixtures) for g in scene.geoms(n)}
    pairs = (frozenset({owner.get(c.geom1, ''), owner.get(c.geom2, '')})
             for c in scene.data.contact[:scene.data.ncon])
    return {p for p in pairs if len(p) == 2 and '' not in p}
