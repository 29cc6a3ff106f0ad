"""Read LeRobot v3.0 datasets with pyarrow and PyAV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dtvla_ros.errors import UserError
from dtvla_ros.training.dataset import layout
from dtvla_ros.training.dataset.layout import Episode
from dtvla_ros.training.dataset.video import read_video
from dtvla_ros.training.dataset.writer import column_array


@dataclass(frozen=True)
class DatasetReader:
    """A LeRobot v3.0 dataset in a folder; nothing is read before it is asked for."""

    root: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        """``meta/info.json``. Raises ``UserError`` when it is missing or of another version."""
        path = self.root / layout.INFO
        try:
            info = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise UserError(f'{path}: not a LeRobot dataset; run dtvla collect first') from error
        except ValueError as error:
            raise UserError(f'{path}: malformed JSON ({error}); collect again') from error
        if info.get('codebase_version') != layout.VERSION:
            raise UserError(f'{path}: version {info.get("codebase_version")!r}, '
                            f'expected {layout.VERSION}; convert the dataset first')
        return info

    @cached_property
    def stats(self) -> dict[str, Any]:
        """``meta/stats.json``: statistics by feature."""
        return json.loads((self.root / layout.STATS).read_text())

    @cached_property
    def tasks(self) -> list[str]:
        """Instructions in the order of ``task_index``."""
        table = pq.read_table(self.root / layout.TASKS).to_pydict()
        text = table.get('task', table.get('__index_level_0__'))
        return [task for _, task in sorted(zip(table['task_index'], text, strict=True))]

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """One row of metadata per episode, in order."""
        rows: list[dict[str, Any]] = []
        for path in sorted((self.root / 'meta/episodes').glob('*/*.parquet')):
            rows += pq.read_table(path).to_pylist()
        return sorted(rows, key=lambda row: row['episode_index'])

    @property
    def fps(self) -> int:
        """Frames per second."""
        return self.info['fps']

    @property
    def video_keys(self) -> list[str]:
        """Features stored as video."""
        return [k for k, f in self.info['features'].items() if f['dtype'] == 'video']

    @cached_property
    def table(self) -> pa.Table:
        """All frames of all files, without images, ordered by ``index``."""
        paths = sorted((self.root / 'data').glob('*/*.parquet'))
        return pa.concat_tables([pq.read_table(path) for path in paths])

    def column(self, name: str) -> NDArray[Any] | list[str]:
        """Return a feature of all frames: an array [N, ...], or a list of strings.

        Raises ``UserError`` when the dataset lacks it.
        """
        if name not in self.table.column_names:
            raise UserError(f'{self.root}: the dataset has no feature {name!r}')
        column = self.table.column(name)
        if pa.types.is_string(column.type):
            return column.to_pylist()
        values = column_array(column)
        shape = self.info['features'][name]['shape']
        return values if values.ndim == 1 else values.reshape(len(values), *shape)

    def video_path(self, episode: int, key: str) -> tuple[Path, float]:
        """Return the file an episode's frames are in and where they start [s]."""
        row = self.episodes[episode]
        path = self.root / self.info['video_path'].format(
            video_key=key, chunk_index=row[f'videos/{key}/chunk_index'],
            file_index=row[f'videos/{key}/file_index'])
        return path, row[f'videos/{key}/from_timestamp']

    def frames(self, episode: int, key: str) -> Iterator[NDArray[np.uint8]]:
        """Yield the images [H, W, 3] of one episode."""
        path, start = self.video_path(episode, key)
        for _, image in zip(range(self.episodes[episode]['length']), read_video(path, start)):
            yield image

    def image(self, episode: int, frame: int, key: str) -> NDArray[np.uint8]:
        """Return one image [H, W, 3] by random access."""
        path, start = self.video_path(episode, key)
        return next(read_video(path, start + frame / self.fps))

    def episode(self, number: int) -> Episode:
        """Return one episode with its images."""
        row = self.episodes[number]
        part = slice(row['dataset_from_index'], row['dataset_to_index'])
        names = [n for n, f in self.info['features'].items()
                 if f['dtype'] != 'video' and n not in layout.INDEX_COLUMNS]
        return Episode(
            task=row['tasks'][0],
            images={key: np.stack(list(self.frames(number, key))) for key in self.video_keys},
            columns={name: self.column(name)[part] for name in names},
            facts=json.loads(row.get('facts') or '{}'),
            names={name: self.info['features'][name]['names'] for name in names
                   if self.info['features'][name]['names']})
