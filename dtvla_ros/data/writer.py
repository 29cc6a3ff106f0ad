"""Writes LeRobot v3.0 datasets: parquet for the numbers, mp4 for the images.

Episodes are written in *shards* (one parquet, one mp4 per camera) that appear atomically, so
that a killed collection loses at most the shards in progress. ``merge_shards`` numbers them
through, moves their files into the dataset and writes the metadata; it may be repeated whenever
more shards have arrived.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.data import layout
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.reader import column_array
from dtvla_ros.data.video import probe, read_video, write_video
from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json, write_json, writing

SHARDS = '.shards'
SHARD = 'shard.json'
STATISTICS_FRAMES = 200
# Options as files written before call them.
FORMER_NAMES = {'look_share': 'observation_share', 'drop_share': 'release_share',
                'shove_share': 'push_share'}
QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}


def _moments(rows: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    values = np.asarray(rows, np.float64)
    values = np.where(np.isfinite(values), values, np.nan)  # NaN: objects that are not there
    values = np.where(np.isnan(values).all(0), 0.0, values)
    quantiles = np.nanquantile(values, list(QUANTILES.values()), axis=0)
    return {'min': np.nanmin(values, 0), 'max': np.nanmax(values, 0),
            'mean': np.nanmean(values, 0), 'std': np.nanstd(values, 0),
            **dict(zip(QUANTILES, quantiles, strict=True))}


def vector_statistics(rows: NDArray[Any]) -> dict[str, list[Any]]:
    """Return LeRobot's statistics of [N, D] (or [N]) over the frames: quantiles, mean, std."""
    moments = _moments(np.asarray(rows).reshape(len(rows), -1))
    return {**{name: value.tolist() for name, value in moments.items()}, 'count': [len(rows)]}


def image_statistics(images: NDArray[np.uint8]) -> dict[str, list[Any]]:
    """Return the same over the pixels of [N, H, W, 3], per channel [3, 1, 1], in 0..1."""
    moments = _moments(images.reshape(-1, 3))
    return {**{name: (value / 255.0).reshape(3, 1, 1).tolist()
               for name, value in moments.items()}, 'count': [len(images)]}


def require_same_options(path: Path, options: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Write a folder's options, or refuse others: shards are numbered by the plan they follow.

    More ``episodes`` are no other options. ``defaults``: what an older file does not say.
    """
    # As a JSON file gives them back: tuples become lists.
    options, defaults = json.loads(json.dumps([options, defaults]))
    del options['episodes']
    if not path.exists():
        write_json(path, options)
        return
    before = defaults | {FORMER_NAMES.get(name, name): value
                         for name, value in read_json(path, 'choose a new --out').items()}
    changed = sorted(f'{name} ({before.get(name)})' for name in options
                     if before.get(name) != options[name])
    if changed:
        raise UserError(f'{path}: made with another {", ".join(changed)}; use the same options '
                        'or a new --out')


def shard_path(root: Path, number: int) -> Path:
    """Return the folder of a finished shard."""
    return root / SHARDS / f'{number:05d}'


def finished_shards(root: Path) -> list[int]:
    """Return the numbers of the shards that are complete."""
    return sorted(int(p.name) for p in (root / SHARDS).glob('*') if p.name.isdigit())


def missing_shards(root: Path, episodes: int, size: int) -> dict[int, range]:
    """Return which of the planned episodes each shard of ``size`` holds that is not complete."""
    plans = {number: range(first, min(first + size, episodes))
             for number, first in enumerate(range(0, episodes, size))}
    tried = {number: read_json(shard_path(root, number) / SHARD).get('tried', size)
             for number in finished_shards(root)}
    return {number: plan for number, plan in plans.items() if tried.get(number, 0) < len(plan)}


def write_shard(root: Path, number: int, episodes: Sequence[Episode], fps: float,
                videos: Mapping[str, Callable[[Path], int]] | None = None,
                tried: int | None = None) -> Path:
    """Write episodes as shard ``number`` of ``root``; the folder appears when it is complete.

    A shard without episodes is legal: it records that nothing of it was worth keeping.
    ``videos``: instead of the episodes' ``images``, what writes all their frames into one mp4
    file, by video key; each returns how many it wrote. ``tried``: of the planned episodes, as of
    ``missing_shards``.
    """
    features: dict[str, Any] = {}
    with _new_shard(root, number) as work:
        if episodes:
            pq.write_table(pa.concat_tables([pa.table({name: _column(values) for name, values in (
                *e.columns.items(), ('episode_index', np.full(len(e), k)))})
                for k, e in enumerate(episodes)]), work / 'data.parquet', compression='snappy')
            for name, values in episodes[0].columns.items():
                features[name] = _feature(values, episodes[0].names.get(name))
            if videos is None:
                videos = {key: partial(write_video, fps=fps, frames=chain.from_iterable(
                    [e.images[key] for e in episodes])) for key in episodes[0].images}
        for key, write in (videos if videos and episodes else {}).items():
            count, rows = write(work / f'{key}.mp4'), sum(map(len, episodes))
            if count != rows:
                raise UserError(f'{root}: {count} images of {key} for {rows} rows of data; run '
                                'dtvla data validate on the source')
            features[key] = _video_feature(work / f'{key}.mp4', fps)
        (work / SHARD).write_text(json.dumps({'fps': fps, 'episodes': [
            {'task': e.task, 'length': len(e), layout.METADATA: dict(e.metadata)}
            for e in episodes], 'features': features,
            **({} if tried is None else {'tried': tried})}))
    return shard_path(root, number)


def keep_shard(root: Path, number: int, files: Mapping[str, bytes]) -> None:
    """Write the files of a shard made elsewhere; the folder appears when it is complete."""
    with _new_shard(root, number) as work:
        for name, data in files.items():
            (work / name).write_bytes(data)


@contextmanager
def _new_shard(root: Path, number: int) -> Iterator[Path]:
    """Make a folder that becomes the shard's once all is written."""
    final = shard_path(root, number)
    work = final.with_name(f'.{final.name}.{os.getpid()}')
    with writing(root):
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir(parents=True)
            yield work
            shutil.rmtree(final, ignore_errors=True)  # the same, of fewer episodes
            os.replace(work, final)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _column(values: Any) -> pa.Array:
    array = np.asarray(values)
    if array.ndim == 1:
        return pa.array(values, pa.string() if isinstance(values, list) else None)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array[0].size)


def _feature(values: Any, names: Sequence[str] | None) -> dict[str, Any]:
    array = np.asarray(values)
    return {'dtype': 'string' if isinstance(values, list) else str(array.dtype),
            'shape': list(array.shape[1:]) or [1], 'names': list(names) if names else None}


def _video_feature(path: Path, fps: float) -> dict[str, Any]:
    found = probe(path)
    told = {f'video.{name}': found[name] for name in ('height', 'width', 'codec', 'pix_fmt')}
    return {'dtype': 'video', 'shape': [found['height'], found['width'], 3],
            'names': ['height', 'width', 'channels'],
            'info': {**told, 'video.channels': 3, 'video.fps': fps, 'video.is_depth_map': False,
                     'has_audio': False}}


def merge_shards(root: Path, robot_type: str = 'panda',
                 contract: ActionContract = ActionContract()) -> dict[str, Any]:
    """Write all of a dataset but its shards, from them; return info. Raises ``UserError``.

    ``contract``: what the actions are.
    """
    shards = [(folder, shard) for folder in (shard_path(root, k) for k in finished_shards(root))
              if (shard := read_json(folder / SHARD))['episodes']]
    if not shards:
        raise UserError(f'{root}: no episode was solved; try other --tasks or another --seed')
    if (root / layout.INFO).exists() and all(
            shard.get('file') == file for file, (_, shard) in enumerate(shards)):
        return read_json(root / layout.INFO)  # nothing has been added
    features, fps = shards[0][1]['features'], shards[0][1]['fps']
    videos = [key for key, feature in features.items() if feature['dtype'] == 'video']
    with writing(root):
        for folder, shard in shards:
            _take_back(root, folder, shard.pop('file', None), videos)
        for name in ('data', 'videos', 'meta/episodes'):
            shutil.rmtree(root / name, ignore_errors=True)
        return _merge(root, robot_type, contract, shards, features, fps, videos)


def _files(root: Path, folder: Path, file: int, videos: Sequence[str]) -> dict[Path, Path]:
    """Return where each file of a shard, the ``file``-th of the dataset, lies in either."""
    place = dict(zip(('chunk_index', 'file_index'), divmod(file, layout.FILES_PER_CHUNK)))
    return {folder / 'data.parquet': root / layout.DATA.format(**place), **{
        folder / f'{key}.mp4': root / layout.VIDEO.format(video_key=key, **place)
        for key in videos}}


def _take_back(root: Path, folder: Path, file: int | None, videos: Sequence[str]) -> None:
    """Move the files of a shard that was merged back into it."""
    for kept, moved in ({} if file is None else _files(root, folder, file, videos)).items():
        if not kept.exists():
            if not moved.exists():
                raise UserError(f'{moved}: no such file; delete {folder} to have it made again')
            os.replace(moved, kept)


def _merge(root: Path, robot_type: str, contract: ActionContract,
           shards: Sequence[tuple[Path, dict[str, Any]]], features: dict[str, Any], fps: float,
           videos: Sequence[str]) -> dict[str, Any]:
    tasks: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    numbers: dict[str, list[NDArray[Any]]] = defaultdict(list)
    images: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for file, (folder, shard) in enumerate(shards):
        if (shard['features'], shard['fps']) != (features, fps):
            raise UserError(f'{folder}: its features differ from those of the shards before it; '
                            'collect into a new folder')
        place = dict(zip(('chunk_index', 'file_index'), divmod(file, layout.FILES_PER_CHUNK)))
        table = pq.read_table(folder / 'data.parquet')
        table = table.drop_columns([n for n in layout.INDEX_COLUMNS if n in table.column_names])
        for name, values in _number(shard['episodes'], rows, tasks, place, videos, fps).items():
            table = table.append_column(name, pa.array(values))
        target = root / layout.DATA.format(**place)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target, compression='snappy')
        for name, feature in features.items():
            if feature['dtype'] not in ('video', 'string', 'bool'):
                numbers[name].append(column_array(table.column(name)))
        for key in videos:
            link_or_copy(folder / f'{key}.mp4', root / layout.VIDEO.format(video_key=key, **place))
            if sum(map(len, images[key])) < STATISTICS_FRAMES:
                images[key].append(np.stack([
                    *islice(read_video(folder / f'{key}.mp4'), 0, None, 20)]))
    stats = {k: vector_statistics(np.concatenate(v)) for k, v in numbers.items()}
    stats |= {k: image_statistics(np.concatenate(v)) for k, v in images.items()}
    info = {
        'codebase_version': layout.VERSION, 'robot_type': robot_type, 'total_episodes': len(rows),
        'total_frames': rows[-1]['dataset_to_index'], 'total_tasks': len(tasks),
        'chunks_size': layout.FILES_PER_CHUNK, 'data_files_size_in_mb': 100,
        'video_files_size_in_mb': 200, 'fps': fps, 'splits': {'train': f'0:{len(rows)}'},
        'data_path': layout.DATA, 'video_path': layout.VIDEO, 'features': features | {
            name: {'dtype': 'float32' if name == 'timestamp' else 'int64', 'shape': [1],
                   'names': None} for name in layout.INDEX_COLUMNS},
        **({} if contract.is_normalised else {layout.CONTRACT: contract.to_dict()})}
    target = root / layout.EPISODES.format(chunk_index=0, file_index=0)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), target)
    _write_tasks(root / layout.TASKS, list(tasks))
    (root / layout.STATS).write_text(json.dumps(stats, indent=1))
    (root / layout.INFO).write_text(json.dumps(info, indent=1))
    for file, (folder, shard) in enumerate(shards):
        write_json(folder / SHARD, shard | {'file': file})
        for kept in _files(root, folder, file, videos):
            kept.unlink()
    return info


def _number(episodes: Sequence[Mapping[str, Any]], rows: list[dict[str, Any]],
            tasks: dict[str, int], place: Mapping[str, int], videos: Sequence[str], fps: float,
            ) -> dict[str, NDArray[Any]]:
    """Add a file's episodes to ``rows`` and ``tasks``; return the index columns of its frames."""
    lengths = np.array([episode['length'] for episode in episodes])
    frame = np.concatenate([np.arange(length) for length in lengths])
    first, begin = len(rows), rows[-1]['dataset_to_index'] if rows else 0
    files = {f'{kind}/{name}': value for kind in ('data', *(f'videos/{k}' for k in videos))
             for name, value in place.items()}
    for episode, end in zip(episodes, np.cumsum(lengths).tolist(), strict=True):
        start = end - episode['length']
        rows.append({
            'episode_index': len(rows), 'tasks': [episode['task']], 'length': episode['length'],
            'dataset_from_index': begin + start, 'dataset_to_index': begin + end,
            'meta/episodes/chunk_index': 0, 'meta/episodes/file_index': 0,
            layout.METADATA: json.dumps(episode[layout.METADATA]), **files,
            **{f'videos/{key}/from_timestamp': start / fps for key in videos},
            **{f'videos/{key}/to_timestamp': end / fps for key in videos}})
    numbers = [tasks.setdefault(episode['task'], len(tasks)) for episode in episodes]
    return dict(zip(layout.INDEX_COLUMNS, (
        (frame / fps).astype(np.float32), frame,
        np.repeat(first + np.arange(len(episodes)), lengths),
        begin + np.arange(len(frame)), np.repeat(numbers, lengths)), strict=True))


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_tasks(path: Path, tasks: Sequence[str]) -> None:
    # LeRobot reads this file with pandas and expects the task text to be the index.
    pandas = {'index_columns': ['task'], 'column_indexes': [], 'pandas_version': '2.2.0',
              'columns': [{'name': name, 'field_name': name, 'pandas_type': kind,
                           'numpy_type': stored, 'metadata': None} for name, kind, stored in (
                               ('task_index', 'int64', 'int64'), ('task', 'unicode', 'object'))]}
    table = pa.table({'task_index': pa.array(range(len(tasks)), pa.int64()),
                      'task': pa.array(list(tasks), pa.string())})
    pq.write_table(table.replace_schema_metadata({b'pandas': json.dumps(pandas).encode()}), path)
