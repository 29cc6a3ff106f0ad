"""``dtvla data view``: episodes along a timeline, as a page or as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dtvla_ros.data import layout, v21
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.sanity import opening
from dtvla_ros.data.thoughts import are_ids, thoughts_of
from dtvla_ros.errors import UserError
from dtvla_ros.files import require_writable, write_text

SHOWN = 6  # episodes without --episodes
SIDE = 160  # longer side of an embedded picture, at most [px]
MOST_FRAMES = 160  # of an episode that are embedded
PAGE, PICTURE = '.html', '.png'


@dataclass(frozen=True, slots=True)
class Story:
    """One episode to look at, N frames long.

    ``pictures``: uint8 [M, H, W, 3] by camera, of the ``frames`` [M]. ``action`` [N, A];
    ``wide`` [N]: how open the gripper is, 0..1, or None. ``thoughts`` and ``phases``: N texts,
    none where the dataset has none.
    """

    number: int
    task: str
    facts: dict[str, Any]
    fps: float
    pictures: dict[str, NDArray[np.uint8]]
    frames: NDArray[np.int64]
    action: NDArray[np.float64]
    wide: NDArray[np.float64] | None
    thoughts: list[str]
    phases: list[str]

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.action)

    def shown(self, count: int) -> list[int]:
        """Return which pictures stand in the middle of ``count`` equal parts of the time."""
        middles = (np.arange(count) + 0.5) * len(self) / count
        return [int(np.abs(self.frames + 0.5 - middle).argmin()) for middle in middles]


def runs(values: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield (value, first, last + 1) of what stays the same from frame to frame."""
    for value, group in groupby(range(len(values)), key=lambda k: values[k]):
        part = list(group)
        yield value, part[0], part[-1] + 1


def view(root: Path, out: Path, episodes: Sequence[int] = (), tokenizer: Path | None = None,
         ) -> int:
    """Write a page (``.html``) or a contact sheet (``.png``); return how many episodes it shows.

    Raises
    ------
    UserError
        If ``out`` is neither, cannot be written, or an episode does not exist.

    """
    if out.suffix not in (PAGE, PICTURE):
        raise UserError(f'--out {out}: give a name that ends in {PAGE} or {PICTURE}')
    require_writable(out)
    reader = v21.open_dataset(root)
    count = len(reader.episodes)
    beyond = next((k for k in episodes if not 0 <= k < count), None)
    if beyond is not None:
        raise UserError(f'--episodes {beyond}: {root} has the episodes 0 to {count - 1}')
    thoughts = None
    if not are_ids(reader) or tokenizer is not None:
        thoughts = thoughts_of(reader, tokenizer)
    chosen = list(episodes) or _some(reader)
    stories = [_story(reader, k, thoughts) for k in tqdm(chosen, desc='read', unit='ep')]
    if out.suffix == PAGE:
        from dtvla_ros.data.view_page import page

        write_text(out, page(root.resolve().name, stories, reader.info))
    else:
        from dtvla_ros.data.view_sheet import write_sheet

        write_sheet(out, stories)
    return len(stories)


def _some(reader: DatasetReader) -> list[int]:
    """Return an episode of each task, then others from all over the dataset.

    Episodes of a single frame are shown only where there are no others.
    """
    rows = reader.episodes
    long = [k for k, row in enumerate(rows) if row['length'] > 1] or list(range(len(rows)))
    first: dict[str, int] = {}
    for number in long:
        first.setdefault((rows[number]['tasks'] or [''])[0], number)
    spread = [long[k] for k in np.linspace(0, len(long) - 1, SHOWN).astype(int)]
    return sorted(list(dict.fromkeys([*first.values(), *spread]))[:SHOWN])


def _story(reader: DatasetReader, number: int, thoughts: list[str] | None) -> Story:
    row = reader.episodes[number]
    part = slice(row['dataset_from_index'], row['dataset_to_index'])
    stride = -(-row['length'] // MOST_FRAMES)
    pictures = {key: np.stack([_shrunk(image) for k, image in enumerate(
        reader.frames(number, key)) if k % stride == 0]) for key in reader.camera_keys}
    features = reader.info['features']
    action = np.asarray(reader.column(layout.ACTION), np.float64)[part]
    wide = opening(np.asarray(reader.column(layout.STATE), np.float64)[part]) if (
        layout.STATE in features) else None
    if wide is not None:
        wide = (wide - wide.min()) / max(float(np.ptp(wide)), 1e-9)
    count = min((len(p) for p in pictures.values()), default=0)
    return Story(
        number, (row['tasks'] or [''])[0], json.loads(row.get('facts') or '{}'),
        float(reader.fps), {key: p[:count] for key, p in pictures.items()},
        np.arange(0, row['length'], stride)[:count], action.reshape(row['length'], -1), wide,
        thoughts[part] if thoughts else [],
        list(reader.column(layout.PHASE)[part]) if layout.PHASE in features else [])


def _shrunk(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1.0:
        return image
    size = round(width * scale), round(height * scale)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
