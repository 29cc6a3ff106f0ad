"""Read LeRobot v2.0 and v2.1 datasets: a parquet file and a video for every episode."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from dtvla_ros.data.reader import DatasetReader, read_info
from dtvla_ros.errors import UserError

VERSIONS = ('v2.0', 'v2.1')
TASKS = 'meta/tasks.jsonl'
EPISODES = 'meta/episodes.jsonl'
EPISODES_STATS = 'meta/episodes_stats.jsonl'
NORM_STATS = 'meta/norm_stats.json'
DATA = 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'
VIDEO = 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'
CHUNK = 1000
_OWN = ('episode_index', 'tasks', 'length')


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file. Raises ``UserError`` naming file and line."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f'{path}: missing ({error.strerror}); download the whole meta '
                        'folder') from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line or '{}')
        except ValueError as error:
            raise UserError(f'{path}: line {number} is malformed JSON ({error}); download it '
                            'again') from error
        if row:
            rows.append(row)
    return rows


class V21Reader(DatasetReader):
    """A LeRobot v2.x dataset in a folder, read as if it were one of v3.0."""

    @cached_property
    def info(self) -> dict[str, Any]:
        """``meta/info.json``. Raises ``UserError`` when it is missing or of another version."""
        info = read_info(self.root)
        if info.get('codebase_version') not in VERSIONS:
            raise UserError(f'{self.root}: version {info.get("codebase_version")!r}, expected '
                            f'one of {", ".join(VERSIONS)}')
        return info

    @cached_property
    def tasks(self) -> list[str]:
        """Instructions in the order of ``task_index``."""
        rows = sorted(read_lines(self.root / TASKS), key=lambda row: row['task_index'])
        return [row['task'] for row in rows]

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """One row of metadata per episode, in order.

        What ``episodes.jsonl`` says besides tasks and length becomes the episode's facts.
        """
        rows, begin = [], 0
        for row in sorted(read_lines(self.root / EPISODES), key=lambda r: r['episode_index']):
            facts = {name: value for name, value in row.items() if name not in _OWN}
            rows.append({name: row[name] for name in _OWN} | {
                'dataset_from_index': begin, 'dataset_to_index': begin + row['length'],
                'facts': json.dumps(facts)})
            begin += row['length']
        return rows

    @cached_property
    def stats(self) -> dict[str, Any]:
        """Not written for a whole v2.1 dataset. Raises ``UserError``."""
        raise UserError(f'{self.root}: statistics of the whole are made by dtvla data stats')

    @cached_property
    def table(self) -> pa.Table:
        """All frames of all files, without images, ordered by ``index``."""
        return pa.concat_tables(
            [self.numbers(self.data_path(k)) for k in range(len(self.episodes))])

    def data_path(self, episode: int) -> Path:
        """Return the parquet file of an episode."""
        return self.root / self.info.get('data_path', DATA).format(**self._place(episode))

    def video_path(self, episode: int, key: str) -> tuple[Path, float]:
        """Return the file an episode's frames are in and where they start [s]."""
        template = self.info.get('video_path') or VIDEO
        return self.root / template.format(video_key=key, **self._place(episode)), 0.0

    def _place(self, episode: int) -> dict[str, int]:
        number = self.episodes[episode]['episode_index']
        size = self.info.get('chunks_size', CHUNK)
        return {'episode_index': number, 'episode_chunk': number // size}


def open_dataset(root: Path) -> DatasetReader:
    """Return the reader of a LeRobot dataset of any version this package knows.

    Raises ``UserError`` when ``root`` is none.
    """
    version = read_info(root).get('codebase_version')
    reader = V21Reader(root) if version in VERSIONS else DatasetReader(root)
    _ = reader.info
    return reader
