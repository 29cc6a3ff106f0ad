"""Write LeRobot v3.0 datasets: parquet for the numbers, mp4 for the images.

Episodes are written in *shards* (one parquet, one mp4 per camera) that appear atomically, so
that a killed collection loses at most the shards in progress. ``merge_shards`` numbers them
through and writes the metadata; it may be repeated whenever more shards have arrived.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dtvla_ros.data import layout
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.statistics import image_statistics, vector_statistics
from dtvla_ros.data.video import probe, read_video, write_video
from dtvla_ros.errors import UserError

SHARDS = '.shards'
STATISTICS_FRAMES = 200


def shard_path(root: Path, number: int) -> Path:
    """Return the folder of a finished shard."""
    return root / SHARDS / f'{number:05d}'


def _column(values: Any) -> pa.Array:
    if isinstance(values, list):
        return pa.array(values, pa.string())
    array = np.asarray(values)
    flat = array.reshape(len(array), -1)
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def _feature(values: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
    if isinstance(values, list):
        return {'dtype': 'string', 'shape': [1], 'names': None}
    array = np.asarray(values)
    shape = list(array.shape[1:]) or [1]
    return {'dtype': str(array.dtype), 'shape': shape, 'names': list(names) if names else None}


def _video_feature(path: Path, fps: int) -> dict[str, Any]:
    found = probe(path)
    return {
        'dtype': 'video', 'shape': [found['height'], found['width'], 3],
        'names': ['height', 'width', 'channels'],
        'info': {
            'video.height': found['height'], 'video.width': found['width'], 'video.channels': 3,
            'video.codec': found['codec'], 'video.pix_fmt': found['pix_fmt'], 'video.fps': fps,
            'video.is_depth_map': False, 'has_audio': False,
        },
    }


def write_shard(
    root: Path, number: int, episodes: Sequence[Episode], fps: int,
    videos: Mapping[str, Callable[[Path], int]] | None = None,
) -> Path:
    """Write episodes as shard ``number`` of ``root``; the folder appears when it is complete.

    A shard without episodes is legal: it records that nothing of it was worth keeping.
    ``videos``: instead of the episodes' ``images``, what writes all their frames into one mp4
    file, by video key; each returns how many it wrote.
    """
    final = shard_path(root, number)
    work = final.with_name(f'.{final.name}.{os.getpid()}')
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    meta: dict[str, Any] = {'fps': fps, 'episodes': [], 'features': {}}
    tables = []
    for local, episode in enumerate(episodes):
        columns = {name: _column(values) for name, values in episode.columns.items()}
        columns['episode_index'] = pa.array(np.full(len(episode), local, np.int64))
        tables.append(pa.table(columns))
        meta['episodes'].append(
            {'task': episode.task, 'length': len(episode), 'facts': dict(episode.facts)})
    if episodes:
        pq.write_table(pa.concat_tables(tables), work / 'data.parquet', compression='snappy')
        for name, values in episodes[0].columns.items():
            meta['features'][name] = _feature(values, episodes[0].names.get(name))
        if videos is None:
            videos = {key: partial(_write_images, episodes, key, fps)
                      for key in episodes[0].images}
        for key, write in videos.items():
            count, rows = write(work / f'{key}.mp4'), sum(map(len, episodes))
            if count != rows:
                raise ValueError(f'{final}: {count} images of {key} for {rows} frames')
            meta['features'][key] = _video_feature(work / f'{key}.mp4', fps)
    (work / 'shard.json').write_text(json.dumps(meta))
    os.replace(work, final)
    return final


def _write_images(episodes: Sequence[Episode], key: str, fps: int, path: Path) -> int:
    return write_video(path, (image for e in episodes for image in e.images[key]), fps)


def finished_shards(root: Path) -> list[int]:
    """Return the numbers of the shards that are complete."""
    folder = root / SHARDS
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_tasks(path: Path, tasks: Sequence[str]) -> None:
    # LeRobot reads this file with pandas and expects the task text to be the index.
    pandas = {
        'index_columns': ['task'], 'column_indexes': [], 'pandas_version': '2.2.0',
        'columns': [
            {'name': 'task_index', 'field_name': 'task_index', 'pandas_type': 'int64',
             'numpy_type': 'int64', 'metadata': None},
            {'name': 'task', 'field_name': 'task', 'pandas_type': 'unicode',
             'numpy_type': 'object', 'metadata': None},
        ],
    }
    table = pa.table({'task_index': pa.array(range(len(tasks)), pa.int64()),
                      'task': pa.array(list(tasks), pa.string())})
    pq.write_table(table.replace_schema_metadata({b'pandas': json.dumps(pandas).encode()}), path)


def merge_shards(root: Path, robot_type: str = 'panda') -> dict[str, Any]:
    """Write data, videos and metadata of all finished shards of ``root``; return info.

    Raises ``UserError`` when there is no episode, or when shards disagree on their features.
    """
    for name in ('data', 'videos', 'meta/episodes'):
        shutil.rmtree(root / name, ignore_errors=True)
    tasks: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    features: dict[str, Any] = {}
    numbers: dict[str, list[np.ndarray]] = {}
    pixels: dict[str, list[np.ndarray]] = {}
    fps = frames = files = 0
    for number in finished_shards(root):
        folder = shard_path(root, number)
        meta = json.loads((folder / 'shard.json').read_text())
        if not meta['episodes']:
            continue
        if features and (meta['features'] != features or meta['fps'] != fps):
            raise UserError(f'{folder}: its features differ from those of the shards before it; '
                            'collect into a new folder')
        features, fps = meta['features'], meta['fps']
        place = {'chunk_index': files // layout.FILES_PER_CHUNK,
                 'file_index': files % layout.FILES_PER_CHUNK}
        files += 1
        table = pq.read_table(folder / 'data.parquet')
        videos = [key for key, feature in features.items() if feature['dtype'] == 'video']
        offset = 0
        index: dict[str, list[np.ndarray]] = {name: [] for name in layout.INDEX_COLUMNS}
        for episode in meta['episodes']:
            length = episode['length']
            task = tasks.setdefault(episode['task'], len(tasks))
            frame = np.arange(length)
            index['timestamp'].append((frame / fps).astype(np.float32))
            index['frame_index'].append(frame)
            index['episode_index'].append(np.full(length, len(rows)))
            index['index'].append(frames + offset + frame)
            index['task_index'].append(np.full(length, task))
            row = {
                'episode_index': len(rows), 'tasks': [episode['task']], 'length': length,
                'data/chunk_index': place['chunk_index'], 'data/file_index': place['file_index'],
                'dataset_from_index': frames + offset,
                'dataset_to_index': frames + offset + length,
                'meta/episodes/chunk_index': 0, 'meta/episodes/file_index': 0,
                'facts': json.dumps(episode['facts']),
            }
            for key in videos:
                row |= {f'videos/{key}/{name}': value for name, value in place.items()}
                row[f'videos/{key}/from_timestamp'] = offset / fps
                row[f'videos/{key}/to_timestamp'] = (offset + length) / fps
            rows.append(row)
            offset += length
        frames += offset
        table = table.drop_columns(['episode_index'])
        for name, parts in index.items():
            table = table.append_column(name, pa.array(np.concatenate(parts)))
        target = root / layout.DATA.format(**place)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target, compression='snappy')
        for name, feature in features.items():
            if feature['dtype'] not in ('video', 'string', 'bool'):
                numbers.setdefault(name, []).append(column_array(table.column(name)))
        for key in videos:
            _link(folder / f'{key}.mp4', root / layout.VIDEO.format(video_key=key, **place))
            if sum(map(len, pixels.get(key, []))) < STATISTICS_FRAMES:
                seen = [f for k, f in enumerate(read_video(folder / f'{key}.mp4')) if k % 20 == 0]
                pixels.setdefault(key, []).append(np.stack(seen))
    if not rows:
        raise UserError(f'{root}: no finished episode; run dtvla collect first')
    stats = {name: vector_statistics(np.concatenate(parts)) for name, parts in numbers.items()}
    stats |= {key: image_statistics(np.concatenate(parts)) for key, parts in pixels.items()}
    scalar = {'timestamp': 'float32'}
    info = {
        'codebase_version': layout.VERSION, 'robot_type': robot_type,
        'total_episodes': len(rows), 'total_frames': frames, 'total_tasks': len(tasks),
        'chunks_size': layout.FILES_PER_CHUNK,
        'data_files_size_in_mb': 100, 'video_files_size_in_mb': 200,
        'fps': fps, 'splits': {'train': f'0:{len(rows)}'},
        'data_path': layout.DATA, 'video_path': layout.VIDEO,
        'features': features | {
            name: {'dtype': scalar.get(name, 'int64'), 'shape': [1], 'names': None}
            for name in layout.INDEX_COLUMNS},
    }
    target = root / layout.EPISODES.format(chunk_index=0, file_index=0)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), target)
    _write_tasks(root / layout.TASKS, list(tasks))
    (root / layout.STATS).write_text(json.dumps(stats, indent=1))
    (root / layout.INFO).write_text(json.dumps(info, indent=1))
    return info


def column_array(column: pa.ChunkedArray) -> np.ndarray:
    """Return a numeric parquet column as [N] or [N, D]."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    rows, nested = len(array), pa.types.is_nested(array.type)
    while pa.types.is_fixed_size_list(array.type) or pa.types.is_list(array.type):
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(rows, -1) if nested else values
