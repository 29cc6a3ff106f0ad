"""``dtvla data validate``: whether files, numbers and videos agree, and fit a policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dtvla_ros.data import layout
from dtvla_ros.data.reader import (
    DatasetReader,
    V21Reader,
    column_array,
    open_dataset,
    thoughts_of,
)
from dtvla_ros.data.video import count_frames, probe, read_video
from dtvla_ros.errors import UserError
from dtvla_ros.issues import Issue
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest
from dtvla_ros.policy.transform import PolicyTransform, read_transform, transform_of

TIME_TOLERANCE = 1e-3  # between a timestamp and its place in the episode [s]
STALE = 1e-3  # of a channel's range, by which stored and true extremes may differ
NEEDED = ('fps', 'features', 'total_episodes', 'total_frames', 'data_path')
MAY_BE_NAN = (layout.PLACES, layout.POINTS)  # objects that are not in the scene
AGAIN = 'copy, convert or record the dataset again'
DOWNLOAD = 'download or copy it again'
ARROW_NAMES = {'float64': 'double', 'float32': 'float', 'float16': 'halffloat'}


def validate(root: Path, decode: bool = False) -> list[Issue]:
    """Return everything that is wrong with a dataset; nothing when it can be relied upon.

    ``decode``: decode every frame of every video instead of counting them.
    """
    try:
        reader = open_dataset(root)
        missing = [name for name in NEEDED if name not in reader.info]
        if missing:
            return [Issue(f'lacks {", ".join(missing)}', AGAIN, file=str(root / layout.INFO))]
        _ = reader.tasks, reader.episodes
    except UserError as error:
        return [Issue.from_error(error, AGAIN)]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        return [Issue(f'cannot be read ({error!r})', AGAIN, file=str(root / 'meta'))]
    issues = list(_metadata(reader))
    if any('episode_index' in issue.problem for issue in issues):
        return issues  # nothing else can be told apart
    every = range(len(reader.episodes))
    files = _by_file(map(reader.data_path, every))
    for path, numbers in files.items():
        issues += _data_file(reader, path, numbers)
    issues += [Issue('no episode is said to lie in this file',
                     'remove it, or restore the metadata that name it', file=str(path))
               for path in sorted((root / 'data').rglob('*.parquet')) if path not in files]
    for key in reader.video_keys:
        videos = _by_file(reader.video_path(k, key)[0] for k in every)
        for path, numbers in videos.items():
            issues += _video_file(reader, key, path, numbers, decode)
    for key in reader.image_keys:
        issues += _stored_images(reader, key)
    if not isinstance(reader, V21Reader):
        issues += _statistics(reader)
    return issues


def _by_file(paths: Iterable[Path]) -> dict[Path, list[int]]:
    """Return the episodes in every file, from the file of every episode."""
    files: dict[Path, list[int]] = defaultdict(list)
    for number, path in enumerate(paths):
        files[path].append(number)
    return files


def _named(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f'episode {numbers[0]}'
    return f'episodes {numbers[0]} to {numbers[-1]}'


def _metadata(reader: DatasetReader) -> Iterator[Issue]:
    info, issue = reader.info, partial(Issue, file=str(reader.root / layout.INFO))
    episodes, tasks = reader.episodes, reader.tasks
    frames = sum(row['length'] for row in episodes)
    for name, told, found in (('total_episodes', info['total_episodes'], len(episodes)),
                              ('total_frames', info['total_frames'], frames),
                              ('total_tasks', info.get('total_tasks', len(tasks)), len(tasks))):
        if told != found:
            yield issue(f'{name} is {told}, the metadata hold {found}',
                        f'write {found}, or restore what is missing')
    if not (isinstance(info['fps'], (int, float)) and info['fps'] > 0):
        yield issue(f'fps is {info["fps"]!r}', 'write the frames a second')
    if reader.video_keys and not info.get('video_path'):
        yield issue('lacks video_path', 'write where the videos lie')
    issue = partial(Issue, file=str(reader.root / (
        layout.V21_EPISODES if isinstance(reader, V21Reader) else 'meta/episodes')))
    wrong = next((k for k, row in enumerate(episodes) if row['episode_index'] != k), None)
    if wrong is not None:
        yield issue(f'episode_index {episodes[wrong]["episode_index"]} where {wrong} is due',
                    AGAIN)
        return
    begin = 0
    for k, row in enumerate(episodes):
        if row['length'] < 1:
            yield issue(f'episode {k} has {row["length"]} frames', 'leave it out')
        end = begin + row['length']
        if (row['dataset_from_index'], row['dataset_to_index']) != (begin, end):
            yield issue(f'episode {k} is said to be frames {row["dataset_from_index"]} to '
                        f'{row["dataset_to_index"]}, {begin} to {end} are due', AGAIN)
        begin = end
        unknown = [task for task in row['tasks'] if task not in tasks]
        if unknown or not row['tasks']:
            yield issue(f'episode {k} has the task {(unknown or [None])[0]!r}, which is not among '
                        'the tasks', 'add it to the tasks, or correct the episode')
    for k, task in enumerate(tasks):
        if not task.strip():
            yield Issue(f'task {k} is empty', 'write what to do', file=str(reader.root / 'meta'))


def _data_file(reader: DatasetReader, path: Path, numbers: list[int]) -> Iterator[Issue]:
    file = str(path)
    issue = partial(Issue, file=file)
    if not path.is_file():
        yield issue(f'missing; {_named(numbers)} should be in it', DOWNLOAD)
        return
    try:
        schema = pq.read_schema(path)
        table = reader.numbers(path)
    except UserError as error:
        yield Issue.from_error(error, AGAIN)
        return
    except (OSError, pa.ArrowException) as error:
        yield issue(f'no parquet file ({error})', DOWNLOAD)
        return
    yield from _schema(reader, file, schema)
    lengths = [reader.episodes[k]['length'] for k in numbers]
    if len(table) != sum(lengths):
        yield issue(f'{len(table)} rows, {_named(numbers)} have {sum(lengths)} frames', AGAIN)
        return
    episode = np.repeat(numbers, lengths)
    frame = np.concatenate([np.arange(n) for n in lengths])
    columns = {name: column_array(table.column(name)).reshape(len(table), -1)
               for name in table.column_names
               if name in layout.INDEX_COLUMNS
               or pa.types.is_floating(_value_type(schema.field(name).type))}
    yield from _indices(reader, file, columns, episode, frame)
    for name, values in columns.items():
        if name in MAY_BE_NAN or not np.issubdtype(values.dtype, np.floating):
            continue
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            at = bad[0]
            channel = int(np.flatnonzero(~np.isfinite(values[at]))[0])
            yield issue(
                f'{name} is {values[at, channel]} in channel {channel} at episode {episode[at]}, '
                f'frame {frame[at]}, and not finite in {len(bad)} rows',
                'leave the episode out, or record it again')


def _schema(reader: DatasetReader, file: str, schema: pa.Schema) -> Iterator[Issue]:
    features, issue = reader.info['features'], partial(Issue, file=file)
    for name, feature in features.items():
        dtype, size = feature['dtype'], prod(feature['shape'])
        if dtype == 'video':
            continue
        if name not in schema.names:
            yield issue(f'lacks the column {name}',
                        f'convert the data again, or take {name} out of {layout.INFO}')
            continue
        if dtype == 'image':
            continue
        kind = schema.field(name).type
        inner = _value_type(kind)
        fits = {'string': pa.types.is_string(inner) or pa.types.is_large_string(inner),
                'bool': pa.types.is_boolean(inner)}
        if not fits.get(dtype, str(inner) in (dtype, ARROW_NAMES.get(dtype))):
            yield issue(f'{name} is {inner}, {layout.INFO} says {dtype}', 'write one or the other')
        if pa.types.is_fixed_size_list(kind) and kind.list_size != size:
            yield issue(f'{name} has {kind.list_size} channels, {layout.INFO} says {size}',
                        'correct the shape, or convert again')
    undeclared = next((name for name in schema.names if name not in features), None)
    if undeclared is not None:
        yield issue(f'has the column {undeclared}, which {layout.INFO} does not declare',
                    'declare it under features, or drop it')


def _value_type(kind: pa.DataType) -> pa.DataType:
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind


def _indices(reader: DatasetReader, file: str, columns: dict[str, NDArray[Any]],
             episode: NDArray[np.int64], frame: NDArray[np.int64]) -> Iterator[Issue]:
    """Compare the index columns of a file with the episode and frame each row should be."""
    issue, begin = partial(Issue, file=file), reader.episodes[episode[0]]['dataset_from_index']
    due = {'episode_index': episode, 'frame_index': frame,
           'index': begin + np.arange(len(episode)), 'timestamp': frame / reader.fps}
    for name, wanted in due.items():
        if name not in columns:
            continue
        found = columns[name].ravel()
        tolerance = TIME_TOLERANCE if name == 'timestamp' else 0
        bad = np.flatnonzero(~(np.abs(found - wanted) <= tolerance))
        if len(bad):
            at = bad[0]
            why = f' at {reader.fps} frames a second' if name == 'timestamp' else ''
            yield issue(f'{name} is {found[at]:g} at episode {episode[at]}, frame {frame[at]}, '
                        f'{wanted[at]:g} is due{why}; wrong in {len(bad)} rows',
                        'number the frames again (dtvla data convert does)')
    if 'task_index' not in columns:
        return
    found = columns['task_index'].ravel()
    tasks = {task: k for k, task in enumerate(reader.tasks)}
    allowed = {k: {tasks[task] for task in reader.episodes[k]['tasks'] if task in tasks}
               for k in np.unique(episode).tolist()}
    wrong = next((k for k, n in enumerate(episode) if int(found[k]) not in allowed[n]), None)
    if wrong is not None:
        yield issue(f'task_index is {found[wrong]} at episode {episode[wrong]}, frame '
                    f'{frame[wrong]}, the episode is said to have '
                    f'{sorted(allowed[episode[wrong]])}', 'correct the tasks of the episode')


def _video_file(reader: DatasetReader, key: str, path: Path, numbers: list[int], decode: bool,
                ) -> Iterator[Issue]:
    issue, fps = partial(Issue, file=str(path)), reader.fps
    if not path.is_file():
        yield issue(f'missing; {_named(numbers)} should be in it', DOWNLOAD)
        return
    try:
        kind = probe(path)
        count = sum(1 for _ in read_video(path)) if decode else count_frames(path)
    except UserError as error:
        yield Issue.from_error(error, AGAIN)
        return
    except (OSError, ValueError) as error:
        yield issue(f'an image cannot be decoded ({error})', DOWNLOAD)
        return
    rows = sum(reader.episodes[k]['length'] for k in numbers)
    height, width = reader.info['features'][key]['shape'][:2]
    if count != rows:
        yield issue(f'{count} images, {_named(numbers)} have {rows} rows',
                    'record these episodes again, or leave them out')
    if (kind['height'], kind['width']) != (height, width):
        yield issue(f'images of {kind["height"]}x{kind["width"]}, {layout.INFO} says '
                    f'{height}x{width}', 'correct the shape')
    if abs(kind['fps'] - fps) > 0.01:
        yield issue(f'{kind["fps"]:g} images a second, the dataset has {fps}',
                    'encode the video at the rate of the data')
    done = 0
    for k in numbers:
        start = reader.video_path(k, key)[1]
        if abs(start - done / fps) > 0.5 / fps:
            yield issue(f'episode {k} is said to begin at {start:g} s, after {done} images '
                        f'{done / fps:g} s are due', 'correct from_timestamp in meta/episodes')
        done += reader.episodes[k]['length']


def _stored_images(reader: DatasetReader, key: str) -> Iterator[Issue]:
    shape = tuple(reader.info['features'][key]['shape'])
    if len(shape) == 3 and shape[0] == 3 != shape[2]:
        shape = (shape[1], shape[2], 3)
    for number in range(len(reader.episodes)):
        try:
            image = next(reader.frames(number, key), None)
        except UserError as error:
            yield Issue.from_error(error, AGAIN)
            continue
        except (OSError, pa.ArrowException, KeyError):
            continue  # told of the file already
        if image is not None and image.shape != shape:
            yield Issue(f'{key} of {image.shape}, {layout.INFO} says {shape}',
                        'correct the shape', file=str(reader.data_path(number)))


def _statistics(reader: DatasetReader) -> Iterator[Issue]:
    """Compare the extremes in ``meta/stats.json`` with those of state and action."""
    root = reader.root
    issue = partial(Issue, remedy=f'run dtvla data stats {root} --out {root / "meta"}',
                    file=str(root / layout.STATS))
    try:
        stats = reader.stats
    except UserError as error:
        yield Issue.from_error(error, AGAIN)
        return
    for name in (layout.STATE, layout.ACTION):
        try:
            values = reader.rows(name)
        except (UserError, pa.ArrowException, ValueError, KeyError):
            continue  # the dataset lacks it, or the file was told of already
        if name not in stats:
            yield issue(f'says nothing of {name}')
            continue
        span = np.maximum(np.ptp(values, 0), 1e-6)
        for kind, true in (('min', values.min(0)), ('max', values.max(0))):
            told = np.asarray(stats[name].get(kind, np.nan), np.float64).ravel()
            if told.shape != true.shape or not (np.abs(told - true) <= STALE * span).all():
                yield issue(f'{kind} of {name} is not that of the data')
                break


def fits_policy(root: Path, policy: Path, tokenizer: Path | None = None) -> list[Issue]:
    """Return what of a dataset a policy, or a training run, could not learn.

    Of the policy only configuration and tokenizer are read. Raises ``UserError`` for it.
    """
    if (policy / MANIFEST).exists():
        manifest = PolicyManifest.read(policy)
        transform = transform_of(policy, manifest)
        longest = manifest.max_thought_tokens
    else:
        transform, longest = read_transform(policy), None
    reader = open_dataset(root)
    issues = [*_contract(reader, transform, policy)]
    for number, task in enumerate(reader.tasks):
        try:
            transform.check_instruction(task)
        except UserError as error:
            issues.append(Issue(f'task {number}: {error}', 'say it in words of the policy',
                                file=str(root / 'meta')))
    return [*issues, *_thoughts(reader, transform, longest, policy, tokenizer)]


def _contract(reader: DatasetReader, transform: PolicyTransform, policy: Path) -> Iterator[Issue]:
    """Compare cameras, action size and chunk length."""
    config, features = transform.config, reader.info['features']
    issue = partial(Issue, file=str(reader.root / layout.INFO))
    cameras = {layout.CAMERAS.get(key, key) for key in reader.camera_keys}
    for name in config.vision.cameras:
        if name not in cameras:
            yield issue(f'no camera {name!r} among {", ".join(sorted(cameras))}; {policy} looks '
                        'through it', 'name it with dtvla data convert --rename')
    action = features.get(layout.ACTION)
    if action is None or action['shape'] != [config.action_dim]:
        yield issue(f'{layout.ACTION} of shape {action and action["shape"]}, {policy} makes '
                    f'{config.action_dim} numbers', 'use a policy of that size')
        return
    if layout.ACTION_CHUNK not in features:
        yield issue(f'no feature {layout.ACTION_CHUNK}', 'run dtvla data convert')
        return
    stored = prod(features[layout.ACTION_CHUNK]['shape']) // config.action_dim
    if stored < config.chunk_steps:
        yield issue(f'chunks of {stored} actions, {policy} makes {config.chunk_steps}',
                    f'convert or collect with --chunk {config.chunk_steps}')


def _thoughts(reader: DatasetReader, transform: PolicyTransform, longest: int | None,
              policy: Path, tokenizer: Path | None) -> Iterator[Issue]:
    """Check that the policy has the words of every thought, and may think as long."""
    try:
        thoughts = thoughts_of(reader, tokenizer)
    except UserError as error:
        yield Issue.from_error(error, AGAIN)
        return
    if thoughts is None:
        yield Issue(f'no feature {layout.REASONING}', 'annotate the dataset, or train a policy '
                    'without thoughts', file=str(reader.root / layout.INFO))
        return
    words = f'say it in words of {policy}, or train with a tokenizer that has them'

    @cache
    def fault(text: str) -> tuple[str, str] | None:
        try:
            length = len(transform.encode_thought(text)) - 1  # the opening tag is given
        except UserError as error:
            return str(error), words
        if longest is not None and length > longest:
            return (f'thought of {length} ids, the policy stops at {longest}',
                    'give the policy room for it (max_thought_tokens)')
        return None

    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for k, text in enumerate(thoughts):
        if (found := fault(text)) is not None:
            places[found].append(k)
    for (problem, remedy), frames in sorted(places.items(), key=lambda pair: -len(pair[1])):
        number = next(k for k in range(len(reader.episodes)) if frames[0] < reader.span(k).stop)
        yield Issue(f'{problem}: {len(frames)} frames, first episode {number}, frame '
                    f'{frames[0] - reader.span(number).start}', remedy,
                    file=str(reader.data_path(number)))
