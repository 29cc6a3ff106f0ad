"""Reads LeRobot datasets, v2.0 to v3.0, with pyarrow and PyAV."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.data import layout, metadata
from dtvla_ros.data.channels import EndEffector, are_joints, end_effector, gripper_channel
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.video import probe, read_video
from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json, unreadable
from dtvla_ros.policy.shapes import Size
from dtvla_ros.policy.vocabulary import load_tokenizer

RECORD = 'copy or record this episode again'
_THOUGHT = re.compile('<think>(.*?)</think>', re.DOTALL)
_NOT_TEXT = ('<pad>', '<bos>', '<eos>', '[PAD]', '<s>', '</s>')
_DEPTH = ('I', 'F')  # with which Pillow's modes of more than 8 bits a channel begin
_NOT_DEEP = ('gray', 'gray8')
_FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'PPM', 'TIFF')  # others of Pillow's run programs


def is_list(kind: pa.DataType) -> bool:
    """Return whether values of this type are lists, of fixed size or not."""
    return (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
            or pa.types.is_large_list(kind) or pa.types.is_list_view(kind))


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's single values."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    while is_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return pa.string() if text else kind


def column_array(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a numeric parquet column as [N] or [N, D]."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    rows, nested = len(array), is_list(array.type)
    while is_list(array.type):
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(rows, -1) if nested else values


class _BadCell(Exception):
    """Says of which row what is wrong."""

    def __init__(self, row: int, problem: str):
        super().__init__(problem)
        self.row = row


def _normalised(column: pa.ChunkedArray, feature: Mapping[str, Any]) -> pa.Array:
    """Return a column as its feature says: texts, or numbers of its dtype, ``shape`` in a row.

    No text is ''. Raises ``_BadCell`` for a null or a row of another length, ``ArrowException``
    where values are not of the dtype.
    """
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    dtype, size, nested = feature['dtype'], prod(feature['shape']), is_list(array.type)
    if dtype == metadata.TEXT:
        array = pc.fill_null(array.cast(pa.string()), '')
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            cells = array.cast(pa.binary()).to_pylist()
            raise _BadCell(next(k for k, cell in enumerate(cells) if cell.decode(
                errors='replace').encode() != cell), 'is no UTF-8') from None
        return array
    if isinstance(array, pa.ExtensionArray):  # a tensor
        array = array.storage
        nested = is_list(array.type)
    count, row = len(array), np.arange(len(array))
    while True:
        if array.null_count:
            at = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            raise _BadCell(int(row[at]), 'is null')
        if not is_list(array.type):
            break
        row = np.repeat(row, pc.list_value_length(array).to_numpy(zero_copy_only=False))
        array = array.flatten()
    lengths = np.bincount(row, minlength=count)
    if len(wrong := np.flatnonzero(lengths != size)):
        raise _BadCell(int(wrong[0]), f'holds {lengths[wrong[0]]} numbers where {size} are due')
    if value_type(array.type) == pa.string():
        raise pa.ArrowInvalid('text')
    array = array.cast(pa.type_for_alias(dtype))
    return pa.FixedSizeListArray.from_arrays(array, size) if nested else array


@dataclass(frozen=True)
class DatasetReader:
    """A LeRobot dataset in a folder; nothing is read before it is asked for.

    ``versions``: those that are accepted. v2.x, a parquet file and a video an episode, is read as
    if it were v3.0.
    """

    root: Path
    versions: Sequence[str] = (layout.VERSION,)

    @cached_property
    def info(self) -> dict[str, Any]:
        """``meta/info.json``, as ``metadata.read_info`` gives it. Raises ``UserError``."""
        return metadata.read_info(self.root, self.versions)

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
        """Instructions in the order of ``task_index``. Raises ``UserError``."""
        return metadata.read_tasks(self.root, self.is_v2)

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """One row per episode, as ``metadata.read_episodes`` gives it. Raises ``UserError``."""
        return metadata.read_episodes(self.root, self.info)

    @cached_property
    def lengths(self) -> list[int]:
        return [row['length'] for row in self.episodes]

    @property
    def fps(self) -> int:
        return self.info['fps']

    @property
    def video_keys(self) -> list[str]:
        """Cameras stored as video."""
        return [key for key in self.camera_keys if self.info['features'][key]['dtype'] == 'video']

    @property
    def image_keys(self) -> list[str]:
        """Cameras stored as encoded images beside the numbers."""
        return [key for key in self.camera_keys if key not in self.video_keys]

    @cached_property
    def camera_keys(self) -> list[str]:
        """Features that are colour images, however they are stored."""
        return [key for key in self._image_features if key not in self.left_out]

    @property
    def image_sizes(self) -> dict[str, Size]:
        """How large the images are, width and height [px], by what policies call the camera."""
        shapes = {key: self.info['features'][key]['shape'] for key in self.camera_keys}
        return {layout.camera_of(key): (shape[1], shape[0]) for key, shape in shapes.items()}

    def require_size(self, image: NDArray[np.uint8], key: str, path: Path) -> None:
        """Raise ``UserError`` for an image of another size than ``info`` says."""
        height, width = self.info['features'][key]['shape'][:2]
        if image.shape[:2] != (height, width):
            raise UserError(f'{path}: images of {image.shape[0]}x{image.shape[1]} of {key}, '
                            f'{layout.INFO} says {height}x{width}; correct the shape')

    @property
    def _image_features(self) -> list[str]:
        return [k for k, f in self.info['features'].items() if f['dtype'] in metadata.IMAGES]

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Features of images that nothing here reads, and why: depth, of more than 8 bits."""
        found = {}
        for key in self._image_features:
            try:
                depth = self._depth(key)
            except Exception:  # noqa: S112 - Pillow raises about anything; whoever reads it says so
                continue
            if depth:
                found[key] = f'{depth}: depth, not a colour image of 8 bits'
        return found

    def _depth(self, key: str) -> str:
        """Return in what form a feature holds depth, '' where it does not."""
        feature = self.info['features'][key]
        for told in (feature, feature.get('info'), feature.get('video_info')):
            if isinstance(told, Mapping) and True in (
                    told.get('is_depth_map'), told.get('video.is_depth_map')):
                return 'is_depth_map'
        if not self.episodes:
            return ''
        if feature['dtype'] == 'video':
            kind = probe(self.video_path(0, key)[0])['pix_fmt'] or ''
            return kind if kind.startswith('gray') and kind not in _NOT_DEEP else ''
        path = self.data_path(0)
        batch = next(pq.ParquetFile(path).iter_batches(1, columns=[key]), None)
        if batch is None or not len(batch) or not batch.num_columns:
            return ''
        with self._open_image(batch.column(0)[0].as_py()) as image:
            return f'mode {image.mode}' if image.mode.startswith(_DEPTH) else ''

    def _open_image(self, cell: Any) -> Image.Image:
        """Open what a cell of images holds: their bytes, or the path of a file."""
        if not isinstance(cell, Mapping):
            raise ValueError('neither bytes nor path')
        data, name = cell.get('bytes'), cell.get('path')
        return Image.open(io.BytesIO(data) if data else self.root / (name or ''),
                          formats=_FORMATS)

    def channels(self, feature: str) -> list[str]:
        """Return a feature's channel names, none where it has none, or not one for each."""
        told = self.info['features'].get(feature, {})
        names = told.get('names')
        if isinstance(names, Mapping):  # datasets also write {'motors': [...]}, or {'x': 0}
            parts = list(names.values())
            names = sorted(names, key=names.__getitem__) if parts and all(
                isinstance(part, int) for part in parts) else [
                    name for part in parts
                    for name in (part if isinstance(part, list) else [part])]
        names = [str(name) for name in names] if isinstance(names, list) else []
        return names if len(names) == prod(told.get('shape', [0])) else []

    @cached_property
    def end_effector(self) -> EndEffector:
        """Which channels of the state are the end effector's."""
        shape = self.info['features'].get(layout.STATE, {}).get('shape', [0])
        return end_effector(self.channels(layout.STATE), prod(shape))

    def require_pose(self, *parts: str) -> None:
        """Raise ``UserError`` where the state's names say that it has no such ``parts``."""
        for part in parts:
            if not getattr(self.end_effector, part):
                what = 'rotation vector' if part == 'rotation' else part
                names = self.channels(layout.STATE)
                shown = ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
                raise UserError(
                    f'{self.root / layout.INFO}: {layout.STATE} ({shown or "too few channels"}) '
                    f'has no {what} of the end effector; record its pose, or name the channels '
                    f'that are it ({", ".join(layout.STATE_NAMES)})')

    @cached_property
    def contract(self) -> ActionContract:
        """What the dataset says that its actions are; today's usual ones where it says nothing.

        Raises ``UserError`` where that is damaged.
        """
        told = self.info.get(layout.CONTRACT)
        if told is None:
            return ActionContract()
        try:
            return ActionContract.from_dict(told)
        except (UserError, AttributeError) as error:
            raise UserError(f'{self.root / layout.INFO}: {layout.CONTRACT}: {error}; copy or '
                            'convert the dataset again') from None

    @property
    def gripper(self) -> int | None:
        """Which channel of the action commands the gripper, None where that is not known."""
        if layout.CONTRACT in self.info:
            return self.contract.gripper_index
        shape = self.info['features'].get(layout.ACTION, {}).get('shape', [0])
        return gripper_channel(self.channels(layout.ACTION), prod(shape))

    def require_offsets(self) -> None:
        """Raise ``UserError`` where the action's names say that it is of joints, or reordered.

        Not where the dataset says what its actions are.
        """
        if layout.CONTRACT in self.info:
            return
        names = self.channels(layout.ACTION)
        if are_joints(names) or self.gripper not in (None, len(names) - 1) and names:
            raise UserError(
                f'{self.root / layout.INFO}: {layout.ACTION} ({", ".join(names[:8])}) is not the '
                "end effector's offset and turn, then the gripper, which policies here make; "
                'record such actions (docs/recording.md)')

    @cached_property
    def table(self) -> pa.Table:
        """All frames of all episodes, without images, in order; the declared features.

        Raises ``UserError`` unless each row's ``episode_index``, ``frame_index`` and
        ``task_index`` are those that the metadata say.
        """
        if not self.episodes:
            raise UserError(f'{self.root}: no episode in it; copy or record it again')
        paths = list(dict.fromkeys(map(self.data_path, range(len(self.episodes)))))
        tables = [self.numbers(path) for path in paths]
        declared = [name for name in self.info['features'] if name not in self._image_features]
        for name in declared:
            there = [name in table.column_names for table in tables]
            if any(there) and not all(there):
                raise UserError(f'{paths[there.index(False)]}: lacks the column {name}, which '
                                'other files have; copy it again, or leave its episodes out')
        table = pa.concat_tables([table.select(
            [name for name in declared if name in table.column_names]) for table in tables])
        self._check_rows(table)
        return table

    def _check_rows(self, table: pa.Table) -> None:
        """Refuse rows that are not those of the episodes and frames they should be."""
        if len(table) != sum(self.lengths):
            raise UserError(f'{self.root}: {len(table)} rows, the metadata say '
                            f'{sum(self.lengths)}; copy the whole dataset again')
        episode = np.repeat(np.arange(len(self.lengths)), self.lengths)
        frame = np.arange(len(episode)) - np.repeat(
            [row['dataset_from_index'] for row in self.episodes], self.lengths)
        known = {task: number for number, task in enumerate(self.tasks)}
        for name, due in (('episode_index', episode), ('frame_index', frame),
                          ('task_index', None)):
            if name not in table.column_names:
                raise UserError(f'{self.data_path(0)}: lacks the column {name}, or '
                                f'{layout.INFO} does not declare it; copy it again')
            found = column_array(table.column(name)).ravel()
            if due is None:  # any of the episode's tasks will do
                allowed = [{known.get(task, -1) for task in row['tasks']} or set(known.values())
                           for row in self.episodes]
                bad = np.array([k not in allowed[e] for k, e in zip(
                    found.tolist(), episode.tolist(), strict=True)], bool)
            else:
                bad = found != due
            if bad.any():
                at = int(bad.argmax())
                wanted = f'{due[at]} is due' if due is not None else (
                    "which is none of the episode's tasks")
                raise UserError(
                    f'{self.data_path(int(episode[at]))}: {name} is {found[at]} at episode '
                    f'{episode[at]}, frame {frame[at]}, {wanted}; wrong in {bad.sum()} rows: copy '
                    'the whole dataset again')

    def numbers(self, path: Path) -> pa.Table:
        """Return what a data file holds besides images, as ``info`` says it. Raises ``UserError``.

        Numbers are of their feature's dtype. A null, a row of another length, and values that
        are not of the dtype are refused.
        """
        try:
            names = [n for n in pq.read_schema(path).names if n not in self._image_features]
            table = pq.read_table(path, columns=names)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(path, error, 'copy or collect it again') from None
        for at, name in enumerate(table.column_names):
            if (feature := self.info['features'].get(name)) is None:
                continue
            try:
                table = table.set_column(at, name, _normalised(table.column(name), feature))
            except _BadCell as error:
                raise UserError(f'{path}: {name} {error} at {_place(table, error.row)}; '
                                f'{RECORD}') from None
            except pa.ArrowException:
                raise UserError(
                    f'{path}: {name} is {table.schema.field(name).type!s:.40}, {layout.INFO} says '
                    f'{feature["dtype"]}; write one or the other') from None
        return table

    def column(self, name: str, episode: int | None = None) -> NDArray[Any] | list[str]:
        """Return a feature of an episode, or of all: [N, ...] or strings. Raises ``UserError``."""
        if name not in self.table.column_names:
            raise UserError(f'{self.root}: the dataset has no feature {name!r}; convert or record '
                            'it with one')
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
        values = self.column(name)
        if isinstance(values, list):
            raise UserError(f'{self.root / layout.INFO}: {name} is text where numbers are due; '
                            'convert it with --rename, or record it again')
        return np.asarray(values, np.float64).reshape(len(values), -1)

    def require_finite(self, *names: str) -> None:
        """Raise ``UserError`` with episode and frame for a NaN or infinity in these features."""
        for name in names:
            bad = np.argwhere(~np.isfinite(self.rows(name)))
            if len(bad):
                row, channel = bad[0].tolist()
                number = next(k for k in range(len(self.episodes)) if row < self.span(k).stop)
                raise UserError(
                    f'{self.data_path(number)}: {name} is not finite in channel {channel} at '
                    f'episode {number}, frame {row - self.span(number).start}, and in '
                    f'{len(np.unique(bad[:, 0]))} rows; leave the episode out, or record it again')

    def success(self, episode: int) -> bool | None:
        """Return whether an episode succeeded; None where nobody told, or it is one moment."""
        told = self.metadata(episode)
        value = told.get(layout.SUCCESS)
        return value if isinstance(value, bool) and (
            told.get(layout.KIND) != layout.SINGLE) else None

    def metadata(self, episode: int) -> dict[str, Any]:
        """Return the JSON scalars kept with an episode."""
        return self.episodes[episode][layout.METADATA]

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
        """Yield the images [H, W, 3] of one episode from frame ``first`` on.

        Raises ``UserError`` for a file that is missing, damaged or too short, and for images of
        another size than ``info`` says.
        """
        row = self.episodes[episode]
        if key in self.image_keys:
            path, images = self.data_path(episode), self._stored_images(episode, key, first)
        else:
            path, start = self.video_path(episode, key)
            # Of a file of its own nothing may be left.
            images = islice(read_video(path, start + first / self.fps, self.fps),
                            row['length'] - first + self.is_v2)
        frame = first
        for image in images:
            if frame == row['length']:
                raise UserError(f'{path}: more images than the {frame} rows of episode {episode}; '
                                f'{RECORD}')
            self.require_size(image, key, path)
            yield image
            frame += 1
        if frame < row['length']:
            raise UserError(f'{path}: ends after {frame} of the {row["length"]} images of episode '
                            f'{episode}; {RECORD}')

    def _stored_images(self, episode: int, key: str, first: int) -> Iterator[NDArray[np.uint8]]:
        """Yield images that are stored beside the numbers."""
        path, number = self.data_path(episode), self.episodes[episode]['episode_index']
        try:
            if key not in pq.read_schema(path).names:
                raise UserError(f'{path}: lacks the column {key}; {RECORD}')
            table = pq.read_table(path, columns=[key], filters=[('episode_index', '=', number)])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(path, error, RECORD) from None
        for frame, cell in enumerate(table.column(key)[first:], first):
            try:
                with self._open_image(cell.as_py()) as image:
                    if image.mode.startswith(_DEPTH):
                        raise ValueError(f'mode {image.mode}: more than 8 bits, depth')
                    pixels = np.asarray(image.convert('RGB'))
            except Exception as error:  # Pillow raises about anything
                raise UserError(f'{path}: {key} at episode {episode}, frame {frame}: no image '
                                f'({error!s:.80}); {RECORD}') from None
            yield pixels

    def image(self, episode: int, frame: int, key: str) -> NDArray[np.uint8]:
        """Return one image [H, W, 3] by random access."""
        return next(self.frames(episode, key, frame))

    def episode(self, number: int, images: bool = True) -> Episode:
        """Return one episode, with its ``images`` or without."""
        columns = [name for name in self.table.column_names if name not in layout.INDEX_COLUMNS]
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
        size, ids = table.get_vocab_size(), np.asarray(self.rows(layout.REASONING), np.int64)
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
    reader = DatasetReader(root, metadata.READ)
    _ = reader.info
    return reader


def _place(table: pa.Table, row: int) -> str:
    """Return which episode and frame a row of a data file is, as far as it says so itself."""
    where = [f'{name} {table.column(f"{name}_index")[row]}' for name in ('episode', 'frame')
             if f'{name}_index' in table.column_names]
    return ', '.join(where) or f'row {row}'


def unpadded(ids: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """Return the rows of [N, W] without padding: the id that most begin or end with."""
    pad = Counter([*ids[:, 0].tolist(), *ids[:, -1].tolist()]).most_common(1)[0][0]
    return [row[row != pad] for row in ids]
