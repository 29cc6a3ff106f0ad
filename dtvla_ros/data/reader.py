"""Reads LeRobot datasets, v2.0 to v3.0, with pyarrow and PyAV."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
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
from dtvla_ros.errors import UserError
from dtvla_ros.policy.vocabulary import load_tokenizer

THINK, END_THINK = '<think>', '</think>'
_NOT_TEXT = ('<pad>', '<bos>', '<eos>', '[PAD]', '<s>', '</s>')


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
        return self._features('video')

    @property
    def image_keys(self) -> list[str]:
        """Features stored as encoded images beside the numbers."""
        return self._features('image')

    @property
    def camera_keys(self) -> list[str]:
        """Features that are images, however they are stored."""
        return self._features('video', 'image')

    def _features(self, *dtypes: str) -> list[str]:
        return [k for k, f in self.info['features'].items() if f['dtype'] in dtypes]

    @cached_property
    def table(self) -> pa.Table:
        """All frames of all files, without images, ordered by ``index``."""
        paths = sorted((self.root / 'data').glob('*/*.parquet'))
        return pa.concat_tables([self.numbers(path) for path in paths])

    def numbers(self, path: Path) -> pa.Table:
        """Return what a data file holds besides images. Raises ``UserError``."""
        images = set(self.image_keys)
        try:
            names = [n for n in pq.read_schema(path).names if n not in images]
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

    def rows(self, name: str) -> NDArray[np.float64]:
        """Return a numeric feature of all frames as [N, D]. Raises ``UserError``."""
        values = np.asarray(self.column(name), np.float64)
        return values.reshape(len(values), -1)

    def metadata(self, episode: int) -> dict[str, Any]:
        """Return the JSON scalars kept with an episode."""
        return json.loads(self.episodes[episode].get(layout.METADATA) or '{}')

    def span(self, episode: int) -> slice:
        """Return the rows of an episode in ``table``."""
        row = self.episodes[episode]
        return slice(row['dataset_from_index'], row['dataset_to_index'])

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
            return self._stored_images(episode, key)
        path, start = self.video_path(episode, key)
        return islice(read_video(path, start), self.episodes[episode]['length'])

    def _stored_images(self, episode: int, key: str) -> Iterator[NDArray[np.uint8]]:
        path, number = self.data_path(episode), self.episodes[episode]['episode_index']
        table = pq.read_table(path, columns=[key], filters=[('episode_index', '=', number)])
        for row, cell in enumerate(table.column(key)):
            value = cell.as_py() or {}
            data = value.get('bytes')
            file = io.BytesIO(data) if data else self.root / (value.get('path') or '')
            try:
                with Image.open(file) as image:
                    yield np.asarray(image.convert('RGB'))
            except OSError as error:
                raise UserError(f'{path}: {key}, row {row}: no image ({error}); record this '
                                'episode again') from error

    def image(self, episode: int, frame: int, key: str) -> NDArray[np.uint8]:
        """Return one image [H, W, 3] by random access."""
        if key in self.image_keys:
            return next(islice(self._stored_images(episode, key), frame, None))
        path, start = self.video_path(episode, key)
        return next(read_video(path, start + frame / self.fps))

    def episode(self, number: int) -> Episode:
        """Return one episode with its images."""
        features = self.info['features']
        names = [n for n in features
                 if n not in self.camera_keys and n not in layout.INDEX_COLUMNS]
        return Episode(
            task=self.episodes[number]['tasks'][0],
            images={key: np.stack(list(self.frames(number, key))) for key in self.camera_keys},
            columns={name: self.column(name)[self.span(number)] for name in names},
            metadata=self.metadata(number),
            names={name: features[name]['names'] for name in names if features[name]['names']})


class V21Reader(DatasetReader):
    """A LeRobot v2.x dataset, a parquet file and a video an episode, read as if it were v3.0."""

    @cached_property
    def info(self) -> dict[str, Any]:
        """``meta/info.json``. Raises ``UserError`` when it is missing or of another version."""
        info = read_info(self.root)
        if info.get('codebase_version') not in layout.V21_VERSIONS:
            raise UserError(f'{self.root}: version {info.get("codebase_version")!r}, expected '
                            f'one of {", ".join(layout.V21_VERSIONS)}')
        return info

    @cached_property
    def tasks(self) -> list[str]:
        """Instructions in the order of ``task_index``."""
        rows = sorted(_read_lines(self.root / layout.V21_TASKS), key=lambda r: r['task_index'])
        return [row['task'] for row in rows]

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """One row of metadata per episode, in order.

        What ``episodes.jsonl`` says besides tasks and length becomes the episode's metadata.
        """
        rows, begin, own = [], 0, ('episode_index', 'tasks', 'length')
        lines = _read_lines(self.root / layout.V21_EPISODES)
        for row in sorted(lines, key=lambda r: r['episode_index']):
            metadata = {name: value for name, value in row.items() if name not in own}
            rows.append({name: row[name] for name in own} | {
                'dataset_from_index': begin, 'dataset_to_index': begin + row['length'],
                layout.METADATA: json.dumps(metadata)})
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
        template = self.info.get('data_path', layout.V21_DATA)
        return self.root / template.format(**self._indices(episode))

    def video_path(self, episode: int, key: str) -> tuple[Path, float]:
        """Return the file an episode's frames are in and where they start [s]."""
        template = self.info.get('video_path') or layout.V21_VIDEO
        return self.root / template.format(video_key=key, **self._indices(episode)), 0.0

    def _indices(self, episode: int) -> dict[str, int]:
        number = self.episodes[episode]['episode_index']
        size = self.info.get('chunks_size', layout.FILES_PER_CHUNK)
        return {'episode_index': number, 'episode_chunk': number // size}


def open_dataset(root: Path) -> DatasetReader:
    """Return the reader of a LeRobot dataset of any version this package knows.

    Raises ``UserError`` when ``root`` is none.
    """
    version = read_info(root).get('codebase_version')
    reader = (V21Reader if version in layout.V21_VERSIONS else DatasetReader)(root)
    _ = reader.info
    return reader


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file. Raises ``UserError`` naming file and line."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f'{path}: missing ({error.strerror}); download the whole meta '
                        'folder') from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line or '{}'))
        except ValueError as error:
            raise UserError(f'{path}: line {number} is malformed JSON ({error}); download it '
                            'again') from error
    return [row for row in rows if row]


def thoughts_are_ids(reader: DatasetReader) -> bool:
    """Return whether a dataset keeps its thoughts as padded token ids, not as text."""
    feature = reader.info['features'].get(layout.REASONING)
    return feature is not None and feature['dtype'] != 'string'


def unpadded(ids: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """Return the rows of [N, W] without padding: the id that most begin or end with."""
    pad = Counter([*ids[:, 0].tolist(), *ids[:, -1].tolist()]).most_common(1)[0][0]
    kept = []
    for row in ids:
        there = np.flatnonzero(row != pad)
        kept.append(row[there[0]:there[-1] + 1] if len(there) else row[:0])
    return kept


def thought_decoder(reader: DatasetReader, tokenizer: Path | None,
                    ) -> Callable[[NDArray[np.integer]], str]:
    """Return a function from padded ids [W] to the text between the think tags.

    ``tokenizer``: a ``tokenizer.json``, or the folder it lies in. The text is '' where there is
    no thought or a tag is missing. Raises ``UserError`` without a ``tokenizer``, as does the
    function for an id that the tokenizer does not have.
    """
    if tokenizer is None:
        raise UserError(f'{reader.root}: reasoning is token ids; give the folder or file of the '
                        'tokenizer they belong to with --tokenizer')
    table = load_tokenizer(tokenizer / 'tokenizer.json' if tokenizer.is_dir() else tokenizer)
    size = table.get_vocab_size()
    skipped = {table.token_to_id(token) for token in _NOT_TEXT}

    @lru_cache(4096)
    def decode(row: tuple[int, ...]) -> str:
        unknown = next((k for k in row if not 0 <= k < size), None)
        if unknown is not None:
            raise UserError(f'reasoning id {unknown} is outside the {size} ids of {tokenizer}; '
                            'give the tokenizer the dataset was made with')
        text = table.decode([k for k in row if k not in skipped], skip_special_tokens=False)
        _, begun, rest = text.partition(THINK)
        inside, ended, _ = rest.partition(END_THINK)
        return inside.strip() if begun and ended else ''

    return lambda row: decode(tuple(int(k) for k in row))


def thoughts_of(reader: DatasetReader, tokenizer: Path | None = None) -> list[str] | None:
    """Return the thought of every frame as text; None for a dataset without thoughts.

    Raises ``UserError`` when thoughts are ids and no ``tokenizer`` is given.
    """
    if layout.REASONING not in reader.info['features']:
        return None
    column = reader.column(layout.REASONING)
    if not thoughts_are_ids(reader):
        return list(column)
    return [*map(thought_decoder(reader, tokenizer), np.asarray(column))]
