"""Domain randomisation: other surfaces, lights, cameras and clutter for a demonstration.

Nothing of it is what the families of ``perturbation`` draw: textures are made here, lights change
each by itself and turn less or further, cameras swing less or further, and have another lens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from . import appearance
from .env import LazyObservation, SceneGeom, mujoco  # a renderer is chosen there

PLAIN = 0.2  # share of surfaces of one colour
SMALL_SWING, WIDE_SWING = (1.5, 1.0), ((15.0, 20.0), (8.0, 10.0))  # azimuth, elevation [deg]
AIM, ROLL, LENS = 0.04, 4.0, 0.08  # of the cameras: [m], [deg], share of the field of view
# Two lights differ by at least APART [ln]: the families change them all alike.
BRIGHTNESS, APART, COLOUR = 0.9, 0.25, 0.2  # of a light [ln], [ln], share of a channel
SMALL_TURN, WIDE_TURN = 5.0, (50.0, 60.0)  # of the lights [deg]
THINGS = 4  # that lie about, at most
REACH = 0.45  # how far from the middle of what stands freely [m]
CLEAR = 0.06  # between such a thing and what stands there [m]


@contextmanager
def randomised(env: Any, rng: Generator) -> Iterator[LazyObservation]:
    """Draw how the present scene looks; afterwards it looks as before. Physics notices nothing.

    Gives the observation of it. The environment is one of this package.
    """
    model, standing = env.model, _standing(env)
    saved = [(array, array.copy()) for array in appearance.arrays(model)]
    textures = _surfaces(model, rng)
    _lights(model, rng)
    _cameras(model, standing, rng)
    mujoco.mj_camlight(model, env.data)
    env.clutter = _clutter(env, standing, rng)
    env.upload_textures(textures)
    try:
        yield env.observe()
    finally:
        for array, value in saved:
            array[:] = value
        for number, pixels in textures.items():
            _pixels(model, number)[:] = pixels
        mujoco.mj_camlight(model, env.data)
        env.clutter = ()
        env.upload_textures(textures)


def _pixels(model: mujoco.MjModel, texture: int) -> NDArray[np.uint8]:
    """Return a texture's own pixels [H, W, channels]."""
    shape = [int(part[texture]) for part in (
        model.tex_height, model.tex_width, model.tex_nchannel)]
    start = int(model.tex_adr[texture])
    return model.tex_data[start:start + int(np.prod(shape))].reshape(shape)


def _surfaces(model: mujoco.MjModel, rng: Generator) -> dict[int, NDArray[np.uint8]]:
    """Cover walls, floor and table anew; return the pixels that their textures had."""
    before: dict[int, NDArray[np.uint8]] = {}
    geoms = appearance.background(model)
    for material in sorted({int(model.geom_matid[g]) for g in geoms}):
        texture = int(model.mat_texid[material, appearance.RGB]) if material >= 0 else -1
        tint = np.append(rng.uniform(0.7, 1.0, 3) if texture >= 0 else rng.random(3), 1.0)
        if texture >= 0 and texture not in before:
            pixels = _pixels(model, texture)
            before[texture] = pixels.copy()
            pixels[..., :3] = pattern(rng, pixels.shape[0], pixels.shape[1])
        for g in geoms:
            if model.geom_matid[g] == material:
                model.geom_rgba[g] = tint
    return before


def pattern(rng: Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Return a texture [height, width, 3]: one colour, clouds, grain, stripes or tiles of two."""
    colours = [_colour(rng), _colour(rng)]
    if rng.random() < 0.5:  # alike
        colours[1] = np.clip(colours[0] + rng.normal(0.0, 0.15, 3), 0.0, 1.0)
    size = 128
    y, x = np.mgrid[:size, :size] / size
    clouds = sum(
        cv2.resize(rng.random((2 ** k, max(2 ** k // stretch, 1)), np.float32), (size, size),
                   interpolation=cv2.INTER_CUBIC) / 2.0 ** k
        for stretch in [int(rng.choice([1, 8]))] for k in range(2, 7)) * 2.0
    turn = rng.uniform(0.0, np.pi)
    wave = (np.cos(turn) * x + np.sin(turn) * y) * rng.uniform(2.0, 12.0) + 0.3 * clouds
    count = int(rng.integers(2, 10))
    kinds = {
        'plain': np.zeros((size, size)),
        'clouds': clouds,
        'stripes': 0.5 + 0.5 * np.sin(2.0 * np.pi * wave),
        'tiles': (np.floor(x * count) + np.floor(y * count)) % 2.0,
    }
    chosen = rng.choice(list(kinds), p=[PLAIN, *[(1.0 - PLAIN) / 3.0] * 3])
    share = np.clip(kinds[chosen], 0.0, 1.0)[..., None]  # [size, size, 1]
    image = colours[0] * (1.0 - share) + colours[1] * share
    return cv2.resize(np.rint(255.0 * image).astype(np.uint8), (width, height))


def _colour(rng: Generator) -> NDArray[np.float64]:
    """Return a colour [3], 0..1: of any hue, often pale."""
    grey, pure = rng.uniform(0.1, 1.0), rng.random(3)
    return grey + rng.beta(1.0, 2.0) * (pure - grey)


def _lights(model: mujoco.MjModel, rng: Generator) -> None:
    """Change brightness and colour of each light, and turn them."""
    while True:
        gain = rng.uniform(-BRIGHTNESS, BRIGHTNESS, model.nlight + 1)
        if np.ptp(gain) >= APART or not model.nlight:
            break
    factor = np.exp(gain)[:, None] * rng.uniform(1.0 - COLOUR, 1.0 + COLOUR, (len(gain), 3))
    for light in (model.light_diffuse, model.light_ambient, model.light_specular):
        light[:] *= factor[:-1]
    for light in appearance.headlight(model):
        light[:] *= factor[-1]
    wide = rng.random() < 0.4
    appearance.turn_lights(model, rng.uniform(0.0, 2.0 * np.pi),
                           rng.uniform(*WIDE_TURN) if wide else rng.uniform(0.0, SMALL_TURN))


def _cameras(model: mujoco.MjModel, standing: NDArray[np.float64], rng: Generator) -> None:
    """Swing the cameras that stand in the world, aim them elsewhere, roll them, change lenses."""
    if rng.random() < 0.5:
        swing = rng.choice([-1.0, 1.0], 2) * [rng.uniform(*limits) for limits in WIDE_SWING]
        swing *= rng.permutation([0.0, 1.0]) if rng.random() < 0.5 else 1.0
    else:
        swing = rng.uniform(-1.0, 1.0, 2) * SMALL_SWING
    height = float(standing[:, 2].mean()) if len(standing) else 0.0
    aim, roll, lens = rng.uniform(-AIM, AIM, 2), rng.uniform(-ROLL, ROLL), rng.uniform(-LENS, LENS)
    for camera, pivot in appearance.views(model, height).items():
        appearance.swing(model, camera, pivot, *swing)
        model.cam_pos[camera, :2] += aim
        rolled = appearance.pose(model, camera) * Rotation.from_euler('z', roll, degrees=True)
        model.cam_quat[camera] = rolled.as_quat()[[3, 0, 1, 2]]
        model.cam_fovy[camera] *= 1.0 + lens


def _standing(env: Any) -> NDArray[np.float64]:
    """Return where the objects of the scene are [N, 3], world."""
    places = np.stack([env.place(name) for name in env.object_names])
    return places[np.isfinite(places).all(1)]


def _clutter(env: Any, standing: NDArray[np.float64], rng: Generator) -> Sequence[SceneGeom]:
    """Return things to draw on the table beside what stands there: books, pens and balls."""
    model, hit = env.model, np.zeros(1, np.int32)
    surfaces, above = set(appearance.background(model)), standing[:, 2].max() + 0.15
    things: list[SceneGeom] = []
    for _ in range(int(rng.integers(0, THINGS + 1))):
        kind = rng.choice(['book', 'pen', 'ball'])
        book = np.append(rng.uniform(0.03, 0.07, 2), rng.uniform(0.002, 0.008))
        pen = np.array([rng.uniform(0.004, 0.008), rng.uniform(0.04, 0.08), 0.0])
        ball = np.full(3, rng.uniform(0.008, 0.014))
        shape, size, half_height, pitch = {
            'book': (mujoco.mjtGeom.mjGEOM_BOX, book, book[2], 0.0),
            'pen': (mujoco.mjtGeom.mjGEOM_CAPSULE, pen, pen[0], np.pi / 2.0),  # lying
            'ball': (mujoco.mjtGeom.mjGEOM_SPHERE, ball, ball[0], 0.0)}[kind]
        x, y = standing[:, :2].mean(0) + rng.uniform(-REACH, REACH, 2)
        room = np.linalg.norm(standing[:, :2] - [x, y], axis=1).min() - size[:2].max()
        if room < CLEAR:
            continue
        down = mujoco.mj_ray(
            model, env.data, np.array([x, y, above]), np.array([0.0, 0.0, -1.0]),
            np.array([0, 1, 1, 0, 0, 0], np.uint8), 1, -1, hit)
        if down < 0.0 or int(hit[0]) not in surfaces or above - down < 0.1:
            continue  # nothing there, something else, or the floor
        turn = Rotation.from_euler('ZY', [rng.uniform(0.0, 2.0 * np.pi), pitch])
        things.append(SceneGeom(
            shape, size, np.array([x, y, above - down + half_height]), turn.as_matrix(),
            np.append(_colour(rng), 1.0)))
    return things
