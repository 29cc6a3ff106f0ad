"""Perturbs a suite's episodes: seven families, three strengths, seeded.

The families are those of LIBERO-Plus (https://arxiv.org/abs/2510.13626).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dtvla_ros.errors import UserError

from . import appearance
from .env import CAMERAS, LazyObservation, mujoco  # a renderer is chosen there
from .rewording import reword

STRENGTHS = (1, 2, 3)
TRIES = 30  # places tried before something stays where it is
CLEAR = 0.003  # what is nearer than about this touches [m]
# By strength 1, 2, 3.
SHIFT, TURN = (0.015, 0.03, 0.045), (10.0, 20.0, 40.0)  # of an object [m, deg]
AZIMUTH, ELEVATION, ZOOM = (3.0, 7.0, 15.0), (2.0, 4.0, 8.0), (0.03, 0.06, 0.12)  # [deg, deg, -]
JOINTS = (0.05, 0.1, 0.2)  # of every joint of the arm [rad]
BRIGHTNESS, COLOUR, SWING = (0.25, 0.5, 1.0), (0.05, 0.12, 0.25), (10.0, 25.0, 50.0)  # [ln,-,deg]
TINT = (0.2, 0.4, 0.6)  # largest loss of a colour channel [-]
GRAIN, BLUR = (8.0, 16.0, 32.0), (0.4, 0.7, 1.2)  # [of 255, px of a image of 128]


def parse(text: str) -> tuple[str, int]:
    """Return a family and its strength, 0 to 3, of ``family:strength``; 0 changes nothing.

    Raises UserError if there is no such family or strength.
    """
    family, _, strength = text.partition(':')
    if family not in FAMILIES or strength not in ('0', '1', '2', '3'):
        raise UserError(f'unknown perturbation "{text}"; there is: {", ".join(FAMILIES)}, each '
                        'as family:strength, which must be 1, 2 or 3 (camera:2)')
    return family, int(strength)


class PerturbedEnv:
    """An environment whose every episode is disturbed as its seed says; else the same one.

    Needs of the environment, besides Gymnasium's: ``sim`` (robosuite's MjSim), ``robot``
    (robosuite's) and ``observe()``. A seed disturbs in the same direction at every strength.
    """

    def __init__(self, env: Any, perturbations: Sequence[str] = ()):
        self.env = env
        self._model: Any = None
        self._saved: list[tuple[NDArray, NDArray]] = []  # arrays of the model, as they were
        self._seed, self._step = 0, 0
        self.use(perturbations)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def use(self, perturbations: Sequence[str]) -> None:
        """Disturb by these from the next reset on.

        Raises UserError if one is unknown or a family comes twice.
        """
        parsed = dict(map(parse, perturbations))
        if len(parsed) < len(perturbations):
            raise UserError(f'perturbation families must differ: {", ".join(perturbations)}')
        self._active = {family: strength for family, strength in parsed.items() if strength}

    @property
    def active(self) -> tuple[str, ...]:
        """Families that disturb at present."""
        return tuple(self._active)

    @property
    def model(self) -> mujoco.MjModel:
        """MuJoCo's model."""
        return self.env.sim.model._model

    @property
    def data(self) -> mujoco.MjData:
        """MuJoCo's data."""
        return self.env.sim.data._data

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """Start as the environment does, then disturb."""
        for array, value in self._saved:
            array[:] = value
        obs, info = self.env.reset(seed=seed, options=options)
        if not self._active:
            return obs, info
        self._save()
        self._seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
        self._step = 0
        for family, strength in self._active.items():
            rng = np.random.default_rng([zlib.crc32(family.encode()), self._seed])
            if (change := FAMILIES[family]) is not None:
                change(self, strength - 1, rng)
            elif family == 'language':
                info = info | {'instruction': reword(info['instruction'], strength, rng)}
        mujoco.mj_camlight(self.model, self.data)  # not mj_forward: physics must not notice
        return self._seen(self.env.observe()), info

    def step(self, action: NDArray) -> tuple[Mapping[str, Any], float, bool, bool, dict[str, Any]]:
        """Run one control step."""
        obs, *rest = self.env.step(action)
        self._step += 1
        return (self._seen(obs), *rest)  # type: ignore[return-value]

    def _seen(self, obs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the policy sees: with noise, images out of focus and grainy."""
        if 'noise' not in self._active:
            return obs
        k, seed = self._active['noise'] - 1, (self._seed, self._step)

        def spoil(key: str) -> NDArray[np.uint8]:
            image = obs[key]
            rng = np.random.default_rng([zlib.crc32(key.encode()), *seed])
            blur = BLUR[k] * image.shape[0] / 128.0
            soft = gaussian_filter(image.astype(np.float32), (blur, blur, 0.0))
            grain = GRAIN[k] * rng.standard_normal(image.shape, np.float32)
            return np.clip(np.rint(soft + grain), 0, 255).astype(np.uint8)

        return LazyObservation({key: obs[key] for key in obs if key not in CAMERAS}, spoil)

    def _save(self) -> None:
        if self._model is not self.model:
            self._model = self.model
            self._saved = [(array, array.copy()) for array in appearance.arrays(self.model)]

    def _free_joints(self) -> list[int]:
        return np.flatnonzero(self.model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)).tolist()

    def _touching(self, roots: Collection[int]) -> set[int]:
        """Return which other bodies (their roots) touch those that begin at ``roots``."""
        model, found = self.model, set()
        margin = np.array(model.geom_margin)
        model.geom_margin[:] += CLEAR
        mujoco.mj_fwdPosition(model, self.data)
        model.geom_margin[:] = margin
        for contact in self.data.contact[:self.data.ncon]:
            pair = {int(model.body_rootid[model.geom_bodyid[g]])
                    for g in (contact.geom1, contact.geom2)}
            if not pair.isdisjoint(roots):
                found |= pair
        return found.difference(roots)


def _far(rng: Generator, n: int) -> NDArray[np.float64]:
    """Return [n] numbers of either sign, all of at least half the full size 1."""
    return rng.choice([-1.0, 1.0], n) * rng.uniform(0.5, 1.0, n)


def _layout(env: PerturbedEnv, k: int, rng: Generator) -> None:
    """Shift and turn what stands freely; it touches nothing new, and the task is not solved.

    Objects that touch each other move as one. What lies in or on a fixture stays.
    """
    data = env.data
    before = np.array(data.qpos)
    for _ in range(TRIES):
        for pile in _piles(env):
            _move(env, pile, k, rng)
        mujoco.mj_forward(env.model, data)
        if not env.success():
            return
        data.qpos[:] = before
        mujoco.mj_forward(env.model, data)


def _piles(env: PerturbedEnv) -> list[dict[int, int]]:
    """Return groups of free bodies that touch each other and else only the background.

    Each maps a body to its joint; the one that stands on the background comes first.
    """
    model = env.model
    joints = {int(model.body_rootid[model.jnt_bodyid[j]]): j for j in env._free_joints()}
    background = {0, *(b for b in model.body_rootid
                       if appearance.BACKGROUND.search(model.body(b).name))}
    touching = {body: env._touching([body]) for body in joints}
    piles, left = [], dict(joints)
    while left:
        found, fringe, fixed = [], [next(iter(left))], False
        while fringe:
            body = fringe.pop()
            if body in left:
                del left[body]
                found.append(body)
                fringe += touching[body] & joints.keys()
                fixed |= not touching[body] <= joints.keys() | background
        if not fixed:
            found.sort(key=lambda body: not touching[body] & background)
            piles.append({body: joints[body] for body in found})
    return piles


def _move(env: PerturbedEnv, pile: Mapping[int, int], k: int, rng: Generator) -> None:
    model, data = env.model, env.data
    before, touched = np.array(data.qpos), env._touching(pile)
    starts = [int(model.jnt_qposadr[joint]) for joint in pile.values()]
    for joint in pile.values():
        data.qvel[model.jnt_dofadr[joint]:model.jnt_dofadr[joint] + 6] = 0.0
    foot = before[starts[0]:starts[0] + 3]
    for _ in range(TRIES):
        shift = np.append(SHIFT[k] * _far(rng, 2), 0.0)
        turn = Rotation.from_euler('z', TURN[k] * _far(rng, 1)[0], degrees=True)
        for at in starts:
            data.qpos[at:at + 3] = foot + shift + turn.apply(before[at:at + 3] - foot)
            old = Rotation.from_quat(before[[at + 4, at + 5, at + 6, at + 3]])
            data.qpos[at + 3:at + 7] = (turn * old).as_quat()[[3, 0, 1, 2]]
        if env._touching(pile) == touched:
            return
    data.qpos[:] = before


def _robot(env: PerturbedEnv, k: int, rng: Generator) -> None:
    """Bend every joint of the arm; the arm touches nothing new."""
    robot = env.robot
    before = np.array(robot._joint_positions)
    body = int(env.model.body(robot.robot_model.root_body).rootid[0])
    touched = env._touching([body])
    for _ in range(TRIES):
        robot.set_robot_joint_positions(before + JOINTS[k] * _far(rng, len(before)))
        if env._touching([body]) == touched:
            break
    else:
        robot.set_robot_joint_positions(before)
    env.data.qvel[robot._ref_joint_vel_indexes] = 0.0
    mujoco.mj_forward(env.model, env.data)
    robot.controller.update(force=True)
    robot.controller.reset_goal()


def _camera(env: PerturbedEnv, k: int, rng: Generator) -> None:
    """Swing every camera that stands in the world around what it looks at, and move it closer."""
    model = env.model
    azimuth, elevation, zoom = _far(rng, 3) * [AZIMUTH[k], ELEVATION[k], ZOOM[k]]
    heights = [env.data.qpos[model.jnt_qposadr[j] + 2] for j in env._free_joints()]
    height = float(np.mean(heights)) if heights else 0.0
    for camera, pivot in appearance.views(model, height).items():
        appearance.swing(model, camera, pivot, azimuth, elevation, zoom)


def _light(env: PerturbedEnv, k: int, rng: Generator) -> None:
    """Change brightness, colour and direction of the lights."""
    model = env.model
    gain = np.exp(BRIGHTNESS[k] * _far(rng, 1)) * (1.0 + COLOUR[k] * _far(rng, 3))  # [3]
    towards = rng.uniform(0.0, 2.0 * np.pi)
    for light in (model.light_diffuse, model.light_ambient, model.light_specular,
                  *appearance.headlight(model)):
        light[:] *= gain
    appearance.turn_lights(model, towards, SWING[k])


def _texture(env: PerturbedEnv, k: int, rng: Generator) -> None:
    """Tint walls, floor and table; from strength 2 on exchange their materials.

    At strength 2 they get each other's, at 3 any of the scene's, the objects' included. A
    material is taken only where its image is wrapped the same way.
    """
    model, geoms = env.model, appearance.background(env.model)
    images = model.mat_texid[:, appearance.RGB]
    wrapping = {m: int(model.tex_type[t]) for m, t in enumerate(images) if t >= 0}
    own = sorted({int(model.geom_matid[g]) for g in geoms})
    pool = [m for m in (own if k < 2 else wrapping) if m in wrapping]
    changed = {}
    for old in own:
        tint = rng.uniform(1.0 - TINT[k], 1.0, 3)
        others = [m for m in pool if m != old and wrapping[m] == wrapping.get(old)]
        pick = int(rng.choice(others)) if others else old
        changed[old] = (pick if k > 0 else old, tint)
    for g in geoms:
        old = int(model.geom_matid[g])
        material, tint = changed[old]
        colour = model.mat_rgba[material] if material >= 0 else model.geom_rgba[g]
        model.geom_rgba[g] = np.append(colour[:3] * tint, colour[3])
        model.geom_matid[g] = material


# None: they act on what is read, the instruction or the images.
FAMILIES: dict[str, Callable[[PerturbedEnv, int, Generator], None] | None] = {
    'layout': _layout, 'camera': _camera, 'robot': _robot, 'language': None, 'light': _light,
    'texture': _texture, 'noise': None,
}
