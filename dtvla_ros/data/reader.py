"""Reads LeRobot datasets, v2.0 to v3.0, with pyarrow and PyAV."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, islice
from operator import itemgetter
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
from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json
from dtvla_ros.policy.vocabulary import load_tokenizer

_THOUGHT = re.compile('<think>(.*?)</think>', re.DOTALL)
_NOT_TEXT = ('<pad>', '<bos>', '<eos>', '[PAD]', '<s>', '</s>')


def column_array(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a numeric parquet column as [N] or [N, D]."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    rows, nested = len(array), pa.types.is_nested(array.type)
    while pa.types.is_fixed_size_list(array.type) or pa.types.is_list(array.type):
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(rows, -1) if nested else values


@dataclass(frozen=True)
class DatasetReader:
    """A LeRobot dataset in a folder; nothing is read before it is asked for.

    ``versions``: those that are accepted. v2.x, a parquet file and a video an episode, is read as
    if it were v3.0.
    """

    root: Path
    versions: tuple[str, ...] = (layout.VERSION,)

    @cached_property
    def info(self) -> dict[str, Any]:
        """``meta/info.json``. Raises ``UserError`` if it is missing or of another version."""
        path = self.root / layout.INFO
        info = read_json(path, 'run dtvla collect first, or copy the whole dataset')
        if info.get('codebase_version') not in self.versions:
            raise UserError(f'{path}: version {info.get("codebase_version")!r}, expected '
                            f'{" or ".join(self.versions)}; run dtvla data convert first')
        fps = info.get('fps')
        if 'features' not in info or not (isinstance(fps, (int, float)) and fps > 0):
            raise UserError(f'{path}: fps is {fps!r}, or it lacks features; copy, convert or '
                            'record the dataset again')
        return info

    @property
    def is_v2(self) -> bool:
        return self.info['codebase_version'] in layout.V21_VERSIONS

    @cached_property
    def stats(self) -> dict[str, Any]:
        """``meta/stats.json``: statistics by feature. Raises ``UserError`` when it is missing."""
        path = self.root / layout.STATS
        return read_json(path, f'run dtvla data stats {self.root} --out {path.parent}')

    @cached_property
    def tasks(self) -> list[str]:
        """Instructions in the order of ``task_index``."""
        rows = (_read_lines(self.root / layout.V21_TASKS) if self.is_v2 else
                pq.read_table(self.root / layout.TASKS).to_pylist())
        name = 'task' if not rows or 'task' in rows[0] else '__index_level_0__'
        return [row[name] for row in sorted(rows, key=itemgetter('task_index'))]

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """One row of metadata per episode, in order, with the names of v3.0.

        What ``episodes.jsonl`` of v2.x says besides tasks and length becomes metadata.
        """
        rows = _read_lines(self.root / layout.V21_EPISODES) if self.is_v2 else [
            row for path in sorted((self.root / 'meta/episodes').glob('*/*.parquet'))
            for row in pq.read_table(path).to_pylist()]
        rows.sort(key=itemgetter('episode_index'))
        if not self.is_v2:
            return rows
        own, ends = ('episode_index', 'tasks', 'length'), accumulate(r['length'] for r in rows)
        return [{name: row[name] for name in own} | {
            'dataset_from_index': end - row['length'], 'dataset_to_index': end,
            layout.METADATA: json.dumps({k: v for k, v in row.items() if k not in own})}
            for row, end in zip(rows, ends)]

    @cached_property
    def lengths(self) -> list[int]:
        return [row['length'] for row in self.episodes]

    @property
    def fps(self) -> int:
        return self.info['fps']

    @property
    def video_keys(self) -> list[str]:
        """Features stored as video."""
        return [key for key in self.camera_keys if self.info['features'][key]['dtype'] == 'video']

    @property
    def image_keys(self) -> list[str]:
        """Features stored as encoded images beside the numbers."""
        return [key for key in self.camera_keys if key not in self.video_keys]

    @property
    def camera_keys(self) -> list[str]:
        """Features that are images, however they are stored."""
        return [k for k, f in self.info['features'].items() if f['dtype'] in ('video', 'image')]

    def channels(self, feature: str) -> list[str]:
        """Return a feature's channel names, none where it has none."""
        names = self.info['features'].get(feature, {}).get('names')
        if isinstance(names, Mapping):  # datasets also write {'motors': [...]}
            names = [name for part in names.values()
                     for name in (part if isinstance(part, list) else [part])]
        return [str(name) for name in names or []]

    @cached_property
    def table(self) -> pa.Table:
        """All frames of all episodes, without images, in order. Raises ``UserError``."""
        paths = dict.fromkeys(map(self.data_path, range(len(self.episodes))))
        try:
            return pa.concat_tables([self.numbers(path) for path in paths])
        except pa.ArrowException as error:
            raise UserError(f'{self.root}: its files hold different columns ({error}); run dtvla '
                            'data validate') from error

    def numbers(self, path: Path) -> pa.Table:
        """Return what a data file holds besides images. Raises ``UserError``."""
        try:
            names = [n for n in pq.read_schema(path).names if n not in self.image_keys]
            return pq.read_table(path, columns=names)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f'{path}: unreadable ({error}); copy or collect it again') from error

    def column(self, name: str, episode: int | None = None) -> NDArray[Any] | list[str]:
        """Return a feature of an episode, or of all: [N, ...] or strings. Raises ``UserError``."""
        if name not in self.table.column_names:
            raise UserError(f'{self.root}: the dataset has no feature {name!r}')
        column = self.table.column(name)
        if episode is not None:
            column = column[self.span(episode)]
        if pa.types.is_string(column.type):
            return column.to_pylist()
        values = column_array(column)
        shape = self.info['features'][name]['shape']
        return values if values.ndim == 1 else values.reshape(len(values), *shape)

    def rows(self, name: str) -> NDArray[np.float64]:
        """Return a numeric feature of all frames as [N, D]. Raises ``UserError``."""
        values = np.asarray(self.column(name), np.float64)
        return values.reshape(len(values), -1)

    def metadata(self, episode: int) -> dict[str, Any]:
        """Return the JSON scalars kept with an episode."""
        return json.loads(self.episodes[episode].get(layout.METADATA) or '{}')

    def task(self, episode: int) -> str:
        """Return the first instruction of an episode."""
        tasks = self.episodes[episode]['tasks']
        return tasks[0] if tasks else self.tasks[int(self.column('task_index', episode)[0])]

    def span(self, episode: int) -> slice:
        """Return the rows of an episode in ``table``."""
        row = self.episodes[episode]
        return slice(row['dataset_from_index'], row['dataset_to_index'])

    def data_path(self, episode: int) -> Path:
        return self._path(self.info.get('data_path') or layout.V21_DATA, 'data', episode)

    def video_path(self, episode: int, key: str) -> tuple[Path, float]:
        """Return the file an episode's frames are in and where they start [s]."""
        path = self._path(self.info.get('video_path') or layout.V21_VIDEO, f'videos/{key}',
                          episode, video_key=key)
        return path, self.episodes[episode].get(f'videos/{key}/from_timestamp', 0.0)

    def _path(self, template: str, kind: str, episode: int, **names: str) -> Path:
        row = self.episodes[episode]
        number, size = row['episode_index'], self.info.get('chunks_size', layout.FILES_PER_CHUNK)
        return self.root / template.format(
            episode_index=number, episode_chunk=number // size,
            chunk_index=row.get(f'{kind}/chunk_index', 0),
            file_index=row.get(f'{kind}/file_index', 0), **names)

    def frames(self, episode: int, key: str, first: int = 0) -> Iterator[NDArray[np.uint8]]:
        """Yield the images [H, W, 3] of one episode from frame ``first`` on."""
        row = self.episodes[episode]
        if key not in self.image_keys:
            path, start = self.video_path(episode, key)
            yield from islice(read_video(path, start + first / self.fps), row['length'] - first)
            return
        path = self.data_path(episode)
        table = pq.read_table(path, columns=[key],
                              filters=[('episode_index', '=', row['episode_index'])])
        for frame, cell in enumerate(table.column(key)[first:], first):
            data, name = map((cell.as_py() or {}).get, ('bytes', 'path'))
            file = io.BytesIO(data) if data else self.root / (name or '')
            try:
                with Image.open(file) as image:
                    yield np.asarray(image.convert('RGB'))
            except OSError as error:
                raise UserError(f'{path}: {key}, row {frame}: no image ({error}); record this '
                                'episode again') from error

    def image(self, episode: int, frame: int, key: str) -> NDArray[np.uint8]:
        """Return one image [H, W, 3] by random access."""
        return next(self.frames(episode, key, frame))

    def episode(self, number: int, images: bool = True) -> Episode:
        """Return one episode, with its ``images`` or without."""
        columns = [name for name in self.info['features']
                   if name not in (*self.camera_keys, *layout.INDEX_COLUMNS)]
        return Episode(
            task=self.task(number),
            images={key: np.stack(list(self.frames(number, key)))
                    for key in self.camera_keys} if images else {},
            columns={name: self.column(name, number) for name in columns},
            metadata=self.metadata(number),
            names={name: names for name in columns if (names := self.channels(name))})

    @property
    def thoughts_are_ids(self) -> bool:
        """Whether thoughts are kept as padded token ids, not as text."""
        feature = self.info['features'].get(layout.REASONING, {'dtype': 'string'})
        return feature['dtype'] != 'string'

    def thoughts(self, tokenizer: Path | None = None) -> list[str]:
        """Return the thought of every frame as text, none for a dataset without thoughts.

        Of ids it is the text between the think tags, '' where there is none or a tag is missing.
        ``tokenizer``: the ``tokenizer.json`` they belong to, or its folder. Raises ``UserError``
        without it, and for an id that it does not have.
        """
        if layout.REASONING not in self.info['features']:
            return []
        column = self.column(layout.REASONING)
        if not self.thoughts_are_ids:
            return list(column)
        if tokenizer is None:
            raise UserError(f'{self.root}: reasoning is token ids; give the folder or file of the '
                            'tokenizer they belong to with --tokenizer')
        table = load_tokenizer(tokenizer / 'tokenizer.json' if tokenizer.is_dir() else tokenizer)
        size, ids = table.get_vocab_size(), np.asarray(column, np.int64)
        skipped = {table.token_to_id(token) for token in _NOT_TEXT}
        if len(unknown := ids[(ids < 0) | (ids >= size)]):
            raise UserError(f'reasoning id {unknown[0]} is outside the {size} ids of {tokenizer}; '
                            'give the tokenizer the dataset was made with')

        @lru_cache(4096)
        def decode(row: bytes) -> str:
            shown = [k for k in np.frombuffer(row, np.int64).tolist() if k not in skipped]
            found = _THOUGHT.search(table.decode(shown, skip_special_tokens=False))
            return found[1].strip() if found else ''

        return [decode(row.tobytes()) for row in ids]


def open_dataset(root: Path) -> DatasetReader:
    """Return the reader of a dataset of any known version. Raises ``UserError`` for no dataset."""
    reader = DatasetReader(root, (*layout.V21_VERSIONS, layout.VERSION))
    _ = reader.info
    return reader


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file. Raises ``UserError``."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({error}); download the meta folder') from error


def unpadded(ids: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """Return the rows of [N, W] without padding: the id that most begin or end with."""
    pad = Counter([*ids[:, 0].tolist(), *ids[:, -1].tolist()]).most_common(1)[0][0]
    return [row[row != pad] for row in ids]
