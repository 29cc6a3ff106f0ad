"""An arm seen by two cameras, drawn so that every orientation of an image is known."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from dtvla_ros.data import layout
from dtvla_ros.data.layout import Episode

SIDE = 64
FPS = 10
DOWN = np.array([np.pi, 0.0, 0.0])  # the gripper points at the table
PER_UNIT = 0.02  # metres a frame


def _ground(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (400, 400)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return cv2.normalize(smooth, None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)


GROUND, WALL = _ground(0), _ground(1)


def views(gripper: np.ndarray) -> dict[str, np.ndarray]:
    """Return both images of a moment.

    A camera faces the arm: +y right, +x down, +z up. The gripper's looks down: +x right, -y down.
    """
    facing = np.repeat((60 + WALL[:SIDE, :SIDE] // 3)[..., None], 3, 2).astype(np.uint8)
    x, y, z = gripper
    across, down = int(32 + 70 * y), int(36 + 45 * (x - 0.5) - 90 * (z - 0.1))
    cv2.circle(facing, (across, down), 7, (235, 225, 215), -1)
    below = cv2.getRectSubPix(
        GROUND, (SIDE, SIDE), (float(200 + 150 * (x - 0.5)), float(200 - 150 * y)))
    return dict(zip(layout.CAMERAS, (facing, np.repeat(below[..., None], 3, 2))))


def arm_episode(seed: int, frames: int = 40) -> Episode:
    """Return an arm that moves about, closes its fingers and opens them again."""
    rng = np.random.default_rng(seed)
    gripper = np.array([0.5, 0.0, 0.12]) + rng.uniform(-0.1, 0.1, 3) * [1, 1, 0.3]
    goal, wide = gripper, 0.04
    states, actions, images = [], [], {key: [] for key in layout.CAMERAS}
    for k in range(frames):
        if k % 6 == 0:
            goal = np.array([0.5, 0.0, 0.12]) + rng.uniform(-1, 1, 3) * [0.2, 0.3, 0.1]
        close = frames // 3 <= k < 2 * frames // 3
        turn = Rotation.from_rotvec(DOWN + rng.normal(0, 0.02, 3)).as_rotvec()
        states.append([*gripper, *turn, wide, -wide])
        action = np.clip((goal - gripper) / 0.1, -1, 1)
        actions.append([*action, *rng.normal(0, 0.02, 3), 1.0 if close else -1.0])
        for key, image in views(gripper).items():
            images[key].append(image)
        gripper = gripper + PER_UNIT * action + rng.normal(0, 0.0005, 3)
        wide = np.clip(wide + (-0.012 if close else 0.012), 0.01, 0.04)
    return Episode('move about', {key: np.stack(seen) for key, seen in images.items()}, {
        layout.STATE: np.float32(states), layout.ACTION: np.float32(actions),
        layout.PHASE: ['reach' if row[-1] < 0 else 'carry' for row in actions],
        layout.REASONING: [f'now <b>{k // 5}</b> & on' for k in range(frames)]},
        metadata={'seed': seed})
