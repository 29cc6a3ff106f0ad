"""Read LeRobot v3.0 datasets with pyarrow and PyAV."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dtvla_ros.data import layout
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.video import read_video
from dtvla_ros.data.writer import column_array
from dtvla_ros.errors import UserError


def read_info(root: Path) -> dict[str, Any]:
    """Return ``meta/info.json`` of any version. Raises ``UserError`` when it cannot be read."""
    path = root / layout.INFO
    try:
        info = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f'{path}: not a LeRobot dataset; run dtvla collect first') from error
    except ValueError as error:
        raise UserError(f'{path}: malformed JSON ({error}); collect again') from error
    if not isinstance(info, dict):
        raise UserError(f'{path}: not an object; collect again')
    return info


@dataclass(frozen=True)
class DatasetReader:
    """A LeRobot v3.0 dataset in a folder; nothing is read before it is asked for."""

    root: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        """``meta/info.json``. Raises ``UserError`` when it is missing or of another version."""
        path, info = self.root / layout.INFO, read_info(self.root)
        if info.get('codebase_version') != layout.VERSION:
            raise UserError(f'{path}: version {info.get("codebase_version")!r}, '
                            f'expected {layout.VERSION}; run dtvla data convert first')
        return info

    @cached_property
    def stats(self) -> dict[str, Any]:
        """``meta/stats.json``: statistics by feature. Raises ``UserError`` when it is missing."""
        path = self.root / layout.STATS
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f'{path}: cannot read statistics ({error}); run dtvla data stats '
                            f'{self.root} --out {path.parent}') from error

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

    @property
    def image_keys(self) -> list[str]:
        """Features stored as encoded pictures beside the numbers."""
        return [k for k, f in self.info['features'].items() if f['dtype'] == 'image']

    @property
    def camera_keys(self) -> list[str]:
        """Features that are pictures, however they are stored."""
        return [k for k, f in self.info['features'].items() if f['dtype'] in ('video', 'image')]

    @cached_property
    def table(self) -> pa.Table:
        """All frames of all files, without images, ordered by ``index``."""
        paths = sorted((self.root / 'data').glob('*/*.parquet'))
        return pa.concat_tables([self.numbers(path) for path in paths])

    def numbers(self, path: Path) -> pa.Table:
        """Return what a data file holds besides pictures. Raises ``UserError``."""
        pictures = set(self.image_keys)
        try:
            names = [n for n in pq.read_schema(path).names if n not in pictures]
            return pq.read_table(path, columns=names)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f'{path}: cannot read this file ({error}); copy or collect it '
                            'again') from error

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

    def data_path(self, episode: int) -> Path:
        """Return the parquet file of an episode."""
        row = self.episodes[episode]
        return self.root / self.info['data_path'].format(
            chunk_index=row['data/chunk_index'], file_index=row['data/file_index'])

    def video_path(self, episode: int, key: str) -> tuple[Path, float]:
        """Return the file an episode's frames are in and where they start [s]."""
        row = self.episodes[episode]
        path = self.root / self.info['video_path'].format(
            video_key=key, chunk_index=row[f'videos/{key}/chunk_index'],
            file_index=row[f'videos/{key}/file_index'])
        return path, row[f'videos/{key}/from_timestamp']

    def frames(self, episode: int, key: str) -> Iterator[NDArray[np.uint8]]:
        """Yield the images [H, W, 3] of one episode."""
        if key in self.image_keys:
            yield from self._pictures(episode, key)
            return
        path, start = self.video_path(episode, key)
        for _, image in zip(range(self.episodes[episode]['length']), read_video(path, start)):
            yield image

    def _pictures(self, episode: int, key: str) -> Iterator[NDArray[np.uint8]]:
        path, number = self.data_path(episode), self.episodes[episode]['episode_index']
        table = pq.read_table(path, columns=[key], filters=[('episode_index', '=', number)])
        for row, cell in enumerate(table.column(key)):
            value = cell.as_py() or {}
            data = value.get('bytes')
            file = io.BytesIO(data) if data else self.root / (value.get('path') or '')
            try:
                with Image.open(file) as picture:
                    yield np.asarray(picture.convert('RGB'))
            except OSError as error:
                raise UserError(f'{path}: {key}, row {row}: no picture ({error}); record this '
                                'episode again') from error

    def image(self, episode: int, frame: int, key: str) -> NDArray[np.uint8]:
        """Return one image [H, W, 3] by random access."""
        if key in self.image_keys:
            return next(islice(self._pictures(episode, key), frame, None))
        path, start = self.video_path(episode, key)
        return next(read_video(path, start + frame / self.fps))

    def episode(self, number: int) -> Episode:
        """Return one episode with its images."""
        row = self.episodes[number]
        part = slice(row['dataset_from_index'], row['dataset_to_index'])
        names = [n for n, f in self.info['features'].items()
                 if n not in self.camera_keys and n not in layout.INDEX_COLUMNS]
        return Episode(
            task=row['tasks'][0],
            images={key: np.stack(list(self.frames(number, key))) for key in self.camera_keys},
            columns={name: self.column(name)[part] for name in names},
            facts=json.loads(row.get('facts') or '{}'),
            names={name: self.info['features'][name]['names'] for name in names
                   if self.info['features'][name]['names']})
