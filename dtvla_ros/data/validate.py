"""``dtvla data validate``: whether files, numbers and videos of a dataset agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dtvla_ros.data import layout, v21
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.video import count_frames, probe, read_video
from dtvla_ros.data.writer import column_array
from dtvla_ros.errors import UserError

TIME_TOLERANCE = 1e-3  # between a timestamp and its place in the episode [s]
STALE = 1e-3  # of a channel's range, by which stored and true extremes may differ
NEEDED = ('fps', 'features', 'total_episodes', 'total_frames', 'data_path')
MAY_BE_NAN = (layout.PLACES, layout.POINTS)  # things that are not in the scene
AGAIN = 'copy, convert or record the dataset again'


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: the file, what was found in it, what to do."""

    file: str
    problem: str
    remedy: str

    @classmethod
    def of(cls, error: UserError) -> Finding:
        """Take a message ``file: problem; remedy`` apart."""
        file, _, rest = str(error).partition(': ')
        problem, _, remedy = rest.rpartition('; ')
        return cls(file, problem or rest, remedy if problem else AGAIN)


def validate(root: Path, decode: bool = False) -> list[Finding]:
    """Return everything that is wrong with a dataset; nothing when it can be relied upon.

    ``decode``: look at every picture of every video, not only count them.
    """
    try:
        reader = v21.open_dataset(root)
        missing = [name for name in NEEDED if name not in reader.info]
        if missing:
            return [Finding(str(root / layout.INFO), f'lacks {", ".join(missing)}', AGAIN)]
        _ = reader.tasks, reader.episodes
    except UserError as error:
        return [Finding.of(error)]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        return [Finding(str(root / 'meta'), f'cannot be read ({error!r})', AGAIN)]
    findings = list(_metadata(reader))
    if any('episode_index' in finding.problem for finding in findings):
        return findings  # nothing else can be told apart
    for path, numbers in _by_file(reader).items():
        findings += _data_file(reader, path, numbers)
    expected = set(_by_file(reader))
    findings += [
        Finding(str(path), 'no episode is said to lie in this file',
                'remove it, or restore the metadata that name it')
        for path in sorted((root / 'data').rglob('*.parquet')) if path not in expected]
    for key in reader.video_keys:
        findings += _videos(reader, key, decode)
    for key in reader.image_keys:
        findings += _pictures(reader, key)
    if not isinstance(reader, v21.V21Reader):
        findings += _statistics(reader)
    return findings


def _metadata(reader: DatasetReader) -> Iterator[Finding]:
    info, file = reader.info, str(reader.root / layout.INFO)
    episodes, tasks = reader.episodes, reader.tasks
    frames = sum(row['length'] for row in episodes)
    for name, told, found in (('total_episodes', info['total_episodes'], len(episodes)),
                              ('total_frames', info['total_frames'], frames),
                              ('total_tasks', info.get('total_tasks', len(tasks)), len(tasks))):
        if told != found:
            yield Finding(file, f'{name} is {told}, the metadata hold {found}',
                          f'write {found}, or restore what is missing')
    if not (isinstance(info['fps'], (int, float)) and info['fps'] > 0):
        yield Finding(file, f'fps is {info["fps"]!r}', 'write the frames a second')
    if reader.video_keys and not info.get('video_path'):
        yield Finding(file, 'lacks video_path', 'write where the videos lie')
    where = str(reader.root / (v21.EPISODES if isinstance(reader, v21.V21Reader)
                               else 'meta/episodes'))
    numbers = [row['episode_index'] for row in episodes]
    if numbers != list(range(len(numbers))):
        at = next(k for k, n in enumerate(numbers) if n != k)
        yield Finding(where, f'episode_index {numbers[at]} where {at} is due', AGAIN)
        return
    begin = 0
    for k, row in enumerate(episodes):
        if row['length'] < 1:
            yield Finding(where, f'episode {k} has {row["length"]} frames', 'leave it out')
        if (row['dataset_from_index'], row['dataset_to_index']) != (begin, begin + row['length']):
            yield Finding(where, f'episode {k} is said to be frames {row["dataset_from_index"]} '
                          f'to {row["dataset_to_index"]}, {begin} to {begin + row["length"]} '
                          'are due', AGAIN)
        begin += row['length']
        strange = [task for task in row['tasks'] if task not in tasks]
        if strange or not row['tasks']:
            yield Finding(where, f'episode {k} has the task {(strange or [None])[0]!r}, which is '
                          'not among the tasks', 'add it to the tasks, or correct the episode')
    for k, task in enumerate(tasks):
        if not task.strip():
            yield Finding(str(reader.root / 'meta'), f'task {k} is empty', 'write what to do')


def _by_file(reader: DatasetReader) -> dict[Path, list[int]]:
    """Return the episodes in every data file."""
    files: dict[Path, list[int]] = defaultdict(list)
    for number in range(len(reader.episodes)):
        files[reader.data_path(number)].append(number)
    return files


def _data_file(reader: DatasetReader, path: Path, numbers: list[int]) -> Iterator[Finding]:
    if not path.is_file():
        yield Finding(str(path), f'missing; {_episodes(numbers)} should be in it',
                      'download or copy it again')
        return
    try:
        schema = pq.read_schema(path)
        table = reader.numbers(path)
    except UserError as error:
        yield Finding.of(error)
        return
    except (OSError, pa.ArrowException) as error:
        yield Finding(str(path), f'no parquet file ({error})', 'download or copy it again')
        return
    features = reader.info['features']
    yield from _schema(path, schema, features)
    rows = sum(reader.episodes[k]['length'] for k in numbers)
    if len(table) != rows:
        yield Finding(str(path), f'{len(table)} rows, {_episodes(numbers)} have {rows} frames',
                      AGAIN)
        return
    yield from _indices(reader, path, numbers, table)
    episode, frame = _due(reader, numbers)
    for name in table.column_names:
        if name in MAY_BE_NAN or not pa.types.is_floating(_value_type(schema.field(name).type)):
            continue
        values = column_array(table.column(name)).reshape(rows, -1)
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            at = bad[0]
            channel = int(np.flatnonzero(~np.isfinite(values[at]))[0])
            yield Finding(
                str(path), f'{name} is {values[at, channel]} in channel {channel} at episode '
                f'{episode[at]}, frame {frame[at]}, and not finite in {len(bad)} rows',
                'leave the episode out, or record it again')


def _due(reader: DatasetReader, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return which episode and frame each row of a file should be."""
    lengths = [reader.episodes[k]['length'] for k in numbers]
    return np.repeat(numbers, lengths), np.concatenate([np.arange(n) for n in lengths])


def _schema(path: Path, schema: pa.Schema, features: Mapping[str, Any]) -> Iterator[Finding]:
    for name, feature in features.items():
        if feature['dtype'] == 'video':
            continue
        if name not in schema.names:
            yield Finding(str(path), f'lacks the column {name}',
                          f'convert the data again, or take {name} out of {layout.INFO}')
            continue
        kind = schema.field(name).type
        if feature['dtype'] == 'image':
            continue
        inner, dtype = _value_type(kind), feature['dtype']
        named = {'string': pa.types.is_string(inner) or pa.types.is_large_string(inner),
                 'bool': pa.types.is_boolean(inner)}
        if not named.get(dtype, str(inner) in (dtype, {'float64': 'double', 'float32': 'float',
                                                       'float16': 'halffloat'}.get(dtype))):
            yield Finding(str(path), f'{name} is {inner}, {layout.INFO} says {dtype}',
                          'write one or the other')
        if pa.types.is_fixed_size_list(kind) and kind.list_size != prod(feature['shape']):
            yield Finding(str(path), f'{name} has {kind.list_size} channels, {layout.INFO} says '
                          f'{prod(feature["shape"])}', 'correct the shape, or convert again')
    undeclared = [name for name in schema.names if name not in features]
    if undeclared:
        yield Finding(str(path), f'has the column {undeclared[0]}, which {layout.INFO} does not '
                      'declare', 'declare it under features, or drop it')


def _value_type(kind: pa.DataType) -> pa.DataType:
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind


def _indices(reader: DatasetReader, path: Path, numbers: list[int], table: pa.Table,
             ) -> Iterator[Finding]:
    episode, frame = _due(reader, numbers)
    begin = reader.episodes[numbers[0]]['dataset_from_index']
    tasks = {task: k for k, task in enumerate(reader.tasks)}
    due = {'episode_index': episode, 'frame_index': frame,
           'index': begin + np.arange(len(episode)), 'timestamp': frame / reader.fps}
    for name, wanted in due.items():
        if name not in table.column_names:
            continue
        found = column_array(table.column(name)).ravel()
        tolerance = TIME_TOLERANCE if name == 'timestamp' else 0
        bad = np.flatnonzero(~(np.abs(found - wanted) <= tolerance))
        if len(bad):
            at = bad[0]
            why = f' at {reader.fps} frames a second' if name == 'timestamp' else ''
            yield Finding(str(path), f'{name} is {found[at]:g} at episode {episode[at]}, frame '
                          f'{frame[at]}, {wanted[at]:g} is due{why}; wrong in {len(bad)} rows',
                          'number the frames again (dtvla data convert does)')
    if 'task_index' in table.column_names:
        found = column_array(table.column('task_index')).ravel()
        allowed = {k: {tasks.get(task) for task in reader.episodes[k]['tasks']} for k in numbers}
        wrong = next((k for k, (task, number) in enumerate(zip(found, episode))
                      if int(task) not in allowed[number]), None)
        if wrong is not None:
            yield Finding(str(path), f'task_index is {found[wrong]} at episode {episode[wrong]}, '
                          f'frame {frame[wrong]}, the episode is said to have '
                          f'{sorted(k for k in allowed[episode[wrong]] if k is not None)}',
                          'correct the tasks of the episode')


def _episodes(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f'episode {numbers[0]}'
    return f'episodes {numbers[0]} to {numbers[-1]}'


def _videos(reader: DatasetReader, key: str, decode: bool) -> Iterator[Finding]:
    files: dict[Path, list[int]] = defaultdict(list)
    for number in range(len(reader.episodes)):
        files[reader.video_path(number, key)[0]].append(number)
    height, width = reader.info['features'][key]['shape'][:2]
    for path, numbers in files.items():
        rows = sum(reader.episodes[k]['length'] for k in numbers)
        if not path.is_file():
            yield Finding(str(path), f'missing; {_episodes(numbers)} should be in it',
                          'download or copy it again')
            continue
        try:
            kind = probe(path)
            count = sum(1 for _ in read_video(path)) if decode else count_frames(path)
        except UserError as error:
            yield Finding.of(error)
            continue
        except (OSError, ValueError) as error:
            yield Finding(str(path), f'a picture cannot be decoded ({error})',
                          'download or copy it again')
            continue
        if count != rows:
            yield Finding(str(path), f'{count} pictures, {_episodes(numbers)} have {rows} rows',
                          'record these episodes again, or leave them out')
        if (kind['height'], kind['width']) != (height, width):
            yield Finding(str(path), f'pictures of {kind["height"]}x{kind["width"]}, '
                          f'{layout.INFO} says {height}x{width}', 'correct the shape')
        if abs(kind['fps'] - reader.fps) > 0.01:
            yield Finding(str(path), f'{kind["fps"]:g} pictures a second, the dataset has '
                          f'{reader.fps}', 'encode the video at the rate of the data')
        done = 0
        for k in numbers:
            start = reader.video_path(k, key)[1]
            if abs(start - done / reader.fps) > 0.5 / reader.fps:
                yield Finding(str(path), f'episode {k} is said to begin at {start:g} s, after '
                              f'{done} pictures {done / reader.fps:g} s are due',
                              'correct from_timestamp in meta/episodes')
            done += reader.episodes[k]['length']


def _pictures(reader: DatasetReader, key: str) -> Iterator[Finding]:
    shape = tuple(reader.info['features'][key]['shape'])
    if len(shape) == 3 and shape[0] == 3 != shape[2]:
        shape = (shape[1], shape[2], 3)
    for number in range(len(reader.episodes)):
        try:
            image = next(reader.frames(number, key), None)
        except UserError as error:
            yield Finding.of(error)
            continue
        except (OSError, pa.ArrowException, KeyError):
            continue  # told of the file already
        if image is not None and image.shape != shape:
            yield Finding(str(reader.data_path(number)), f'{key} of {image.shape}, '
                          f'{layout.INFO} says {shape}', 'correct the shape')


def _statistics(reader: DatasetReader) -> Iterator[Finding]:
    path, remedy = reader.root / layout.STATS, (
        f'run dtvla data stats {reader.root} --out {reader.root / "meta"}')
    try:
        stats = reader.stats
    except UserError as error:
        yield Finding.of(error)
        return
    for name in (layout.STATE, layout.ACTION):
        if name not in reader.info['features']:
            continue
        try:
            values = np.asarray(reader.column(name), np.float64).reshape(len(reader.table), -1)
        except (UserError, pa.ArrowException, ValueError):
            continue  # told of the file already
        if name not in stats:
            yield Finding(str(path), f'says nothing of {name}', remedy)
            continue
        span = np.maximum(np.ptp(values, 0), 1e-6)
        for kind, true in (('min', values.min(0)), ('max', values.max(0))):
            told = np.asarray(stats[name].get(kind, np.nan), np.float64).ravel()
            if told.shape != true.shape or not (np.abs(told - true) <= STALE * span).all():
                yield Finding(str(path), f'{kind} of {name} is not that of the data', remedy)
                break
