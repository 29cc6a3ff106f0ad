"""Names and paths of a LeRobot v3.0 dataset as this project writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 'v3.0'
FILES_PER_CHUNK = 1000
INFO = 'meta/info.json'
STATS = 'meta/stats.json'
TASKS = 'meta/tasks.parquet'
EPISODES = 'meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
DATA = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'

# LeRobot's own names for the LIBERO camera pair -> the policy's camera names.
CAMERAS = {
    'observation.images.image': 'primary',
    'observation.images.wrist_image': 'wrist',
}
STATE = 'observation.state'
ACTION = 'action'
ACTION_CHUNK = 'action_chunk'
ACTION_IS_PAD = 'action_is_pad'
# Where everything is, base frame [m]: x, y, z of each thing, named in the feature's ``names``.
PLACES = 'observation.places'
# Where the origin of each of these appears in the first camera's image, as fractions of its width
# and height from the upper left corner: across, down of each thing.
POINTS = 'observation.image_points'
REASONING = 'reasoning'
PHASE = 'phase'

# Columns every frame has, in LeRobot's order.
INDEX_COLUMNS = ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index')


@dataclass(frozen=True, slots=True)
class Episode:
    """One recorded episode.

    ``task``: the instruction. ``images``: uint8 RGB [N, H, W, 3] by video key. ``columns``:
    arrays [N, D] or [N], or lists of N strings, by feature name. ``facts``: JSON scalars kept
    with the episode (task name, seed, kind). ``names``: the D channels' names, by feature.
    """

    task: str
    images: Mapping[str, NDArray[np.uint8]]
    columns: Mapping[str, NDArray[Any] | list[str]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(next(iter(self.columns.values())))


def flat_names(names: Any) -> list[str]:
    """Return a feature's channel names, which datasets also write as {'motors': [...]}."""
    if isinstance(names, Mapping):
        return [str(name) for part in names.values()
                for name in (part if isinstance(part, list) else [part])]
    return [str(name) for name in names or []]
