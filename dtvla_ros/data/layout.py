"""Names and paths of LeRobot datasets as this project writes and reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions.contract import ActionContract

VERSION = 'v3.0'
FILES_PER_CHUNK = 1000
INFO = 'meta/info.json'
STATS = 'meta/stats.json'
NORM_STATS = 'meta/norm_stats.json'  # statistics as a policy reads them
TASKS = 'meta/tasks.parquet'
EPISODES = 'meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
DATA = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'

# The same of v2.0 and v2.1, where info.json does not say.
V21_VERSIONS = ('v2.0', 'v2.1')
V21_TASKS = 'meta/tasks.jsonl'
V21_EPISODES = 'meta/episodes.jsonl'
V21_DATA = 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'
V21_VIDEO = 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'

# LeRobot's own names for the LIBERO camera pair -> the policy's camera names.
CAMERAS = {'observation.images.image': 'primary', 'observation.images.wrist_image': 'wrist'}
IMAGES = 'observation.images.'  # before the name of any other camera
CONTRACT = 'action_contract'  # key of info.json: what the actions are, where not OSC_POSE
STATE = 'observation.state'
STATE_NAMES = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'finger_left', 'finger_right')
JOINTS = 'observation.joint_positions'
ACTION = 'action'
ACTION_CHUNK = 'action_chunk'
ACTION_IS_PAD = 'action_is_pad'
# Where everything is, base frame [m]: x, y, z of each object, named in the feature's ``names``.
PLACES = 'observation.places'
# Where the origin of each of these appears in the first camera's image, as fractions of its width
# and height from the upper left corner: across, down of each object.
POINTS = 'observation.image_points'
REASONING = 'reasoning'
PHASE = 'phase'
INTERVENTION = 'intervention'  # whether a person drove: the action is theirs
FORCED = 'thought_forced'  # whether a person put words into the thought
# JSON scalars kept with an episode: a column of ``meta/episodes``.
METADATA = 'facts'
SUCCESS = 'success'  # one of these: whether the episode succeeded; null where nobody told
KIND, SINGLE = 'kind', 'look'  # one of these scalars, and its value where one frame is meant

# Columns every frame has, in LeRobot's order.
INDEX_COLUMNS = ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index')


@dataclass(frozen=True, slots=True)
class Episode:
    """One recorded episode.

    ``task``: the instruction. ``images``: uint8 RGB [N, H, W, 3] by video key. ``columns``:
    arrays [N, D] or [N], or lists of N strings, by feature name. ``metadata``: JSON scalars
    kept with the episode (task name, seed, kind). ``names``: the D channels' names, by feature.
    """

    task: str
    images: Mapping[str, NDArray[np.uint8]]
    columns: Mapping[str, NDArray[Any] | list[str]]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def camera_of(key: str) -> str:
    """Return what policies call the camera of a video key."""
    return CAMERAS.get(key) or key.removeprefix(IMAGES)


def camera_key(camera: str) -> str:
    """Return the video key of a camera that policies call so; inverse of `camera_of`."""
    return next((key for key, name in CAMERAS.items() if name == camera), IMAGES + camera)


def own_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern in order, without the ``._name`` that macOS puts beside."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith('.'))


def action_chunks(actions: NDArray[np.float32], starts: NDArray[np.int64], length: int,
                  breaks: Sequence[int] = (), contract: ActionContract = ActionContract(),
                  ) -> dict[str, NDArray[Any]]:
    """Return columns: the next ``length`` actions from each start [N, length * D], the padding.

    Slots past the end repeat the last gripper command with no motion, as ``contract`` has it.
    ``breaks``: steps at which something the policy could not foresee happened; a chunk begun
    before is padding from there.
    """
    steps = starts[:, None] + np.arange(length)  # [N, length]
    padding = steps >= len(actions)
    for step in breaks:
        padding |= (starts[:, None] < step) & (steps >= step)
    chunk = actions[np.minimum(steps, len(actions) - 1)]  # [N, length, D]
    chunk[steps >= len(actions)] = contract.at_rest(actions[-1])
    return {ACTION_CHUNK: chunk.reshape(len(starts), -1), ACTION_IS_PAD: padding}
