"""``dtvla data validate``: whether files, numbers and videos agree, and fit a policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dtvla_ros.actions.contract import ActionContract, differences
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader, column_array, open_dataset, value_type
from dtvla_ros.data.video import RATE, count_frames, other_rate, probe, read_video
from dtvla_ros.errors import UserError
from dtvla_ros.issues import Issue
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest
from dtvla_ros.policy.shapes import Size, same_shape, shown
from dtvla_ros.policy.transform import PolicyTransform, read_transform, transform_of

TIME_TOLERANCE = 1e-3  # between a timestamp and its place in the episode [s]
STALE = 1e-3  # of a channel's range, by which stored and true extremes may differ
MAY_BE_NAN = (layout.PLACES, layout.POINTS)  # objects that are not in the scene
AGAIN = 'copy or record the dataset again'
NUMBER = 'number the frames again (dtvla data convert does)'
UNREADABLE = (OSError, pa.ArrowException, KeyError, TypeError, ValueError)

Found = Iterator[tuple[str, str]]  # problem and remedy


def _issues(file: Path, found: Iterable[tuple[str, str]]) -> list[Issue]:
    """Return what a check of a file says, with the error that ends it."""
    issues: list[Issue] = []
    try:
        for problem, remedy in found:
            issues.append(Issue(problem, remedy, file=str(file)))
    except UserError as error:
        issues.append(Issue.from_error(error, AGAIN))
    except UNREADABLE as error:
        issues.append(Issue(f'cannot be read ({error!r})', AGAIN, file=str(file)))
    return issues


def validate(root: Path, decode: bool = False) -> list[Issue]:
    """Return everything that is wrong with a dataset; nothing when it can be relied upon.

    ``decode``: decode every frame of every video instead of counting them.
    """
    try:
        reader = open_dataset(root)
        _ = reader.tasks, reader.episodes  # without them nothing else can be told apart
    except UserError as error:
        return [Issue.from_error(error)]
    issues = _issues(root / (layout.V21_EPISODES if reader.is_v2 else 'meta/episodes'),
                     _episodes(reader))
    issues += _issues(root / layout.INFO, _totals(reader))
    damaged: list[Issue] = []
    every = range(len(reader.episodes))
    files = _by_file(map(reader.data_path, every))
    for path, numbers in files.items():
        found = _issues(path, _data_file(reader, path, numbers))
        if not found:
            found = [issue for number in numbers for key in reader.image_keys
                     for issue in _issues(path, _stored_images(reader, key, number, decode))]
        damaged += found
    issues += damaged
    issues += [Issue('no episode is said to lie in this file',
                     'remove it, or restore the metadata that name it', file=str(path))
               for path in layout.own_files(root / 'data', '**/*.parquet') if path not in files]
    for key in reader.video_keys:
        for path, numbers in _by_file(reader.video_path(k, key)[0] for k in every).items():
            issues += _issues(path, _video_file(reader, key, path, numbers, decode))
    if not damaged:
        issues += _issues(root / 'data', _lengths(reader))
    if not (reader.is_v2 or damaged):
        issues += _issues(root / layout.STATS, _statistics(reader))
    return issues


def _by_file(paths: Iterable[Path]) -> dict[Path, list[int]]:
    """Return the episodes in every file, from the file of every episode."""
    files: dict[Path, list[int]] = defaultdict(list)
    for number, path in enumerate(paths):
        files[path].append(number)
    return files


def _named(numbers: list[int]) -> str:
    return f'episode {numbers[0]}' + (f' to {numbers[-1]}' if len(numbers) > 1 else '')


def _totals(reader: DatasetReader) -> Found:
    for name, found in (('total_episodes', len(reader.episodes)),
                        ('total_frames', sum(reader.lengths)),
                        ('total_tasks', len(reader.tasks))):
        if reader.info.get(name) != found:
            yield (f'{name} is {reader.info.get(name)!r}, the metadata hold {found}',
                   f'write {found}, or restore what is missing')
    for name in ('data_path', *(['video_path'] if reader.video_keys else [])):
        if not reader.info.get(name):
            yield f'lacks {name}', 'write where the files lie'


def _episodes(reader: DatasetReader) -> Found:
    tasks = reader.tasks
    if not reader.episodes:
        yield 'no episode', AGAIN
    for k, row in enumerate(reader.episodes):
        for task in row['tasks'] or [None]:
            if task not in tasks:
                yield (f'episode {k} has the task {task!r}, which is not among the tasks',
                       'add it to the tasks, or correct the episode')
    for k, task in enumerate(tasks):
        if not task.strip():
            yield f'task {k} is empty', 'write what to do'


def _data_file(reader: DatasetReader, path: Path, numbers: list[int]) -> Found:
    table, schema = reader.numbers(path), pq.read_schema(path)
    yield from _schema(reader, schema)
    lengths = [reader.lengths[k] for k in numbers]
    if len(table) != sum(lengths):
        yield f'{len(table)} rows, {_named(numbers)} have {sum(lengths)} frames', AGAIN
        return
    episode = np.repeat(numbers, lengths)
    frame = np.concatenate([np.arange(n) for n in lengths])
    columns = {name: column_array(table.column(name)).reshape(len(table), -1)
               for name in table.column_names
               if name in layout.INDEX_COLUMNS
               or pa.types.is_floating(value_type(schema.field(name).type))}
    yield from _indices(reader, columns, episode, frame)
    for name, values in columns.items():
        bad = np.argwhere(~np.isfinite(values))
        if len(bad) and name not in MAY_BE_NAN:
            (at, channel), count = bad[0], len(np.unique(bad[:, 0]))
            yield (f'{name} is {values[at, channel]} in channel {channel} at episode '
                   f'{episode[at]}, frame {frame[at]}, and not finite in {count} rows',
                   'leave the episode out, or record it again')


def _schema(reader: DatasetReader, schema: pa.Schema) -> Found:
    features = reader.info['features']
    for name, feature in features.items():
        dtype = feature['dtype']
        if dtype != 'video' and name not in schema.names:
            yield (f'lacks the column {name}',
                   f'convert the data again, or take {name} out of {layout.INFO}')
        if dtype in ('video', 'image') or name not in schema.names:
            continue
        inner = value_type(schema.field(name).type)
        if inner != pa.type_for_alias(dtype):
            yield f'{name} is {inner}, {layout.INFO} says {dtype}', 'write one or the other'
    if undeclared := next((name for name in schema.names if name not in features), None):
        yield (f'has the column {undeclared}, which {layout.INFO} does not declare',
               'declare it under features, or drop it')


def _indices(reader: DatasetReader, columns: dict[str, NDArray[Any]],
             episode: NDArray[np.int64], frame: NDArray[np.int64]) -> Found:
    """Compare the index columns of a file with the episode and frame each row should be."""
    begin = reader.episodes[episode[0]]['dataset_from_index']
    tasks = {task: k for k, task in enumerate(reader.tasks)}
    said = [[tasks[task] for task in row['tasks'] if task in tasks] for row in reader.episodes]
    given = columns.get('task_index', np.zeros((len(frame), 1), int)).ravel()
    due = {'episode_index': episode, 'frame_index': frame,
           'index': begin + np.arange(len(episode)), 'timestamp': frame / reader.fps,
           # Any of the episode's tasks will do.
           'task_index': np.array([task if task in said[k] else (said[k] or [-1])[0]
                                   for task, k in zip(given, episode, strict=True)])}
    for name, wanted in due.items():
        found = columns.get(name, wanted).ravel()
        tolerance = TIME_TOLERANCE if name == 'timestamp' else 0
        bad = np.flatnonzero(~(np.abs(found - wanted) <= tolerance))
        if len(bad):
            at = bad[0]
            why = f' at {reader.fps} frames a second' if name == 'timestamp' else ''
            yield (f'{name} is {found[at]:g} at episode {episode[at]}, frame {frame[at]}, '
                   f'{wanted[at]:g} is due{why}; wrong in {len(bad)} rows',
                   NUMBER if name in ('timestamp', 'index') else AGAIN)


def _video_file(reader: DatasetReader, key: str, path: Path, numbers: list[int], decode: bool,
                ) -> Found:
    fps, kind = reader.fps, probe(path)
    count = sum(1 for _ in read_video(path)) if decode else count_frames(path)
    rows = sum(reader.lengths[k] for k in numbers)
    shape = tuple(reader.info['features'][key]['shape'][:2])
    if count != rows:
        yield (f'{count} images, {_named(numbers)} have {rows} rows',
               'record these episodes again, or leave them out')
    if (kind['height'], kind['width']) != shape:
        yield (f'images of {kind["height"]}x{kind["width"]}, {layout.INFO} says '
               f'{"x".join(map(str, shape))}', 'correct the shape')
    if abs(kind['fps'] - fps) > RATE:
        problem, _, remedy = other_rate(kind['fps'], fps).partition('; ')
        yield problem, remedy
    done = 0
    for k in numbers:
        start = reader.video_path(k, key)[1]
        if abs(start - done / fps) > 0.5 / fps:
            yield (f'episode {k} is said to begin at {start:g} s, after {done} images '
                   f'{done / fps:g} s are due', 'correct from_timestamp in meta/episodes')
        done += reader.lengths[k]



def _stored_images(reader: DatasetReader, key: str, number: int, decode: bool) -> Found:
    """Decode the images of an episode that lie beside the numbers, or only the first."""
    for _ in islice(reader.frames(number, key), None if decode else 1):
        pass
    yield from ()


def _lengths(reader: DatasetReader) -> Found:
    """Find demonstrations in pieces: most end before their first chunk of actions does.

    Single frames that `dtvla collect` records to teach localisation are meant to.
    """
    padding = reader.info['features'].get(layout.ACTION_IS_PAD)
    if padding is None:
        return
    meant = [k for k in range(len(reader.episodes))
             if reader.metadata(k).get(layout.KIND) != layout.SINGLE]
    steps = prod(padding['shape'])
    short = [k for k in meant if reader.lengths[k] / reader.fps < steps / reader.contract.rate_hz]
    if 2 * len(short) > len(meant):
        lengths = [reader.lengths[k] for k in short]
        yield (f'{len(short)} of {len(reader.episodes)} episodes, of {min(lengths)} to '
               f'{max(lengths)} frames, are shorter than a chunk of {steps} actions',
               'record whole episodes; from bags, see what dtvla data from-bag says of gaps')


def _statistics(reader: DatasetReader) -> Found:
    """Compare the extremes in ``meta/stats.json`` with those of state and action."""
    remedy = f'run dtvla data stats {reader.root} --out {reader.root / "meta"}'
    for name in (layout.STATE, layout.ACTION):
        if name in reader.info['features']:
            values, stats = reader.rows(name), reader.stats.get(name, {})
            told = [np.ravel(stats.get(kind, np.nan)).tolist() for kind in ('min', 'max')]
            true, span = (values.min(0), values.max(0)), np.maximum(np.ptp(values, 0), 1e-6)
            if np.shape(told) != np.shape(true) or not (
                    np.abs(np.subtract(told, true)) <= STALE * span).all():
                yield f'the extremes of {name} are not those of the data', remedy


def fits_policy(root: Path, policy: Path, tokenizer: Path | None = None) -> list[Issue]:
    """Return what a policy, of which only config and tokenizer are read, could not learn."""
    if (policy / MANIFEST).exists():
        manifest = PolicyManifest.read(policy)
        transform, longest = transform_of(policy, manifest), manifest.max_thought_tokens
    else:
        transform, longest = read_transform(policy), None
    reader = open_dataset(root)
    return [*_issues(root / layout.INFO, contract(
                reader, transform.config, str(policy), transform.contract)),
            *_issues(root / layout.INFO, shapes(reader, transform.sizes, str(policy))),
            *_issues(root / 'meta', _instructions(reader, transform)),
            *_issues(root / 'data', _thoughts(reader, transform, longest, policy, tokenizer))]


def contract(reader: DatasetReader, config: DecoderConfig, policy: str,
             wanted: ActionContract = ActionContract()) -> Found:
    """Compare cameras, thoughts, actions and chunk length with what a policy needs."""
    features = reader.info['features']
    cameras = {layout.camera_of(key) for key in reader.camera_keys}
    for name in config.vision.cameras:
        if name not in cameras:
            yield (f'no camera {name!r} among {", ".join(sorted(cameras))}; {policy} looks '
                   'through it', 'name it with dtvla data convert --rename')
    if layout.REASONING not in features:
        yield (f'no feature {layout.REASONING}',
               'annotate the dataset, or train a policy without thoughts')
    action = features.get(layout.ACTION)
    if action is None or action['shape'] != [config.action_dim]:
        found = f'actions of {prod(action["shape"])} numbers' if action else 'no actions'
        yield (f'{found}, {policy} makes {config.action_dim}',
               f'it needs {", ".join(wanted.channels)}')
        return
    for told in differences(wanted, reader.contract):
        yield f'{told}: {policy} makes others', 'choose a dataset of the same arm, or a new policy'
    if layout.ACTION_CHUNK not in features:
        yield f'no feature {layout.ACTION_CHUNK}', 'run dtvla data convert'
        return
    stored = prod(features[layout.ACTION_CHUNK]['shape']) // config.action_dim
    if stored < config.chunk_steps:
        yield (f'chunks of {stored} actions, {policy} makes {config.chunk_steps}',
               f'convert or collect with --chunk {config.chunk_steps}')


def shapes(reader: DatasetReader, sizes: Mapping[str, Size], other: str) -> Found:
    """Compare the shapes of a dataset's images with those of another, or of a policy's."""
    for camera, size in reader.image_sizes.items():
        if camera in sizes and not same_shape(size, sizes[camera]):
            yield (f'the images of the camera {camera!r} are {shown(size)}, those of {other} '
                   f'{shown(sizes[camera])}: squeezed to a square, they would not look alike',
                   'choose datasets of one shape, or begin anew with this one alone')


def _instructions(reader: DatasetReader, transform: PolicyTransform) -> Found:
    for number, task in enumerate(reader.tasks):
        try:
            transform.check_instruction(task)
        except UserError as error:
            yield f'task {number}: {error}', 'say it in words of the policy'


def _thoughts(reader: DatasetReader, transform: PolicyTransform, longest: int | None,
              policy: Path, tokenizer: Path | None) -> Found:
    """Check that the policy has the words of every thought, and may think as long."""
    @cache
    def fault(text: str) -> tuple[str, str] | None:
        try:
            length = len(transform.encode_thought(text)) - 1  # the opening tag is given
        except UserError as error:
            return (str(error),
                    f'say it in words of {policy}, or train with a tokenizer that has them')
        if longest is not None and length > longest:
            return (f'thought of {length} ids, the policy stops at {longest}',
                    'give the policy room for it (max_thought_tokens)')
        return None

    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for k, text in enumerate(reader.thoughts(tokenizer)):
        if (found := fault(text)) is not None:
            places[found].append(k)
    for (problem, remedy), frames in sorted(places.items(), key=lambda pair: -len(pair[1])):
        number = next(k for k in range(len(reader.episodes)) if frames[0] < reader.span(k).stop)
        file = reader.data_path(number).relative_to(reader.root)
        yield (f'{problem}: {len(frames)} frames, first episode {number}, frame '
               f'{frames[0] - reader.span(number).start} of {file}', remedy)
