"""A dataset and a config small enough for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dtvla_ros.actions.grid import location_word
from dtvla_ros.data import layout, writer
from dtvla_ros.data.layout import Episode
from dtvla_ros.training.config import AuxiliaryConfig, ModelConfig, SftConfig

TASKS = ('put the can in the wooden bin', 'push the green cube onto the yellow mark')
CONFIG = SftConfig(
    model=ModelConfig(width=32, layers=1, image_size=32, tokens=(16, 4), channels=(8, 8, 8),
                      chunk_steps=4),
    batch_size=8, auxiliary=AuxiliaryConfig(localisation_steps=0, captioning_steps=0),
    warmup_steps=5, learning_rate=3e-3, shift=(1, 1), validation_share=0.3, precision='no')


def tiny_episode(seed: int, frames: int = 12) -> Episode:
    """Return an episode whose actions and thoughts depend on what is in the image."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0.3, 0.7), rng.uniform(-0.3, 0.3)
    image = np.full((32, 32, 3), 180, np.uint8)
    row, column = int((0.75 - x) * 50), int((y + 0.3) * 40)
    image[row:row + 5, column:column + 5] = (200, 30, 30)
    gripper = np.array([0.45, 0.0, 0.1])
    actions, states = [], []
    for k in range(2 * frames):
        states.append([*gripper, np.pi, 0.0, 0.0, 0.04, -0.04])
        move = np.clip((np.array([x, y, 0.05]) - gripper) / 0.05, -1, 1)
        turn = rng.normal(0, 0.05, 3)
        actions.append([*move, *turn, 1.0 if k > frames else -1.0])
        gripper = gripper + 0.02 * move
    steps = np.asarray(actions, np.float32)
    starts = 2 * np.arange(frames)
    where = f'{location_word("x", x)} {location_word("y", y)}'
    images = {key: np.repeat(image[None], frames, 0) for key in layout.CAMERAS}
    return Episode(TASKS[seed % 2], images, {
        layout.STATE: np.float32(states)[starts], layout.ACTION: steps[starts],
        **layout.action_chunks(steps, starts, 8),
        layout.PLACES: np.full((frames, 3), (x, y, 0.0), np.float32),
        layout.POINTS: np.full((frames, 2), (column + 2.5, row + 2.5), np.float32) / 32,
        layout.REASONING: [f'holding nothing now reach can at {where}'] * frames},
        names={layout.PLACES: ['can.x', 'can.y', 'can.z']})


def write_dataset(root: Path, episodes: list[Episode], without: Sequence[str] = (),
                  fps: float = 10) -> Path:
    """Write episodes ``without`` some columns as a v3.0 dataset of ``fps`` frames a second."""
    for episode in episodes:
        for column in without:
            del episode.columns[column]
    writer.write_shard(root, 0, episodes, fps)
    writer.merge_shards(root)
    return root


def tiny_dataset(root: Path, episodes: int = 10, places: bool = True) -> Path:
    return write_dataset(root, [tiny_episode(k) for k in range(episodes)],
                         () if places else (layout.PLACES, layout.POINTS))
