"""``dtvla data convert``: any LeRobot dataset as one of v3.0 that the trainer reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dtvla_ros.data import layout
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.reader import (
    DatasetReader,
    V21Reader,
    column_array,
    open_dataset,
    thought_decoder,
    thoughts_are_ids,
)
from dtvla_ros.data.video import Clip, can_join, join_videos, write_video
from dtvla_ros.data.writer import SHARDS, finished_shards, merge_shards, write_shard
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_json

EPISODES_PER_SHARD = 25
OPTIONS = 'convert.json'
Decoder = Callable[[NDArray[np.integer]], str]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How a dataset is converted.

    ``tokenizer``: file or folder that token-id thoughts belong to. ``chunk``: actions kept with
    each frame. ``rename``: feature names here -> names in the new dataset.
    """

    tokenizer: Path | None = None
    chunk: int = 8
    rename: Mapping[str, str] = field(default_factory=dict)

    def new_name(self, name: str) -> str:
        """Return what a feature is called in the new dataset."""
        return self.rename.get(name, name)


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of a dataset.

    ``info`` of the new one; frames without a thought; episodes with several tasks, of which the
    first is kept; whether the videos were copied untouched.
    """

    info: dict[str, Any]
    unthought: int
    several_tasks: int
    copied: bool


def convert(source: Path, out: Path, options: ConvertOptions) -> Converted:
    """Write ``source`` as a v3.0 dataset ``out``; the same call goes on where it was stopped.

    Raises
    ------
    UserError
        If ``out`` holds anything but the beginning of the same conversion, or the source lacks
        what the trainer needs.

    """
    reader = open_dataset(source)
    _require_features(reader, options)
    decode = None
    if thoughts_are_ids(reader) and layout.REASONING not in options.rename:
        decode = thought_decoder(reader, options.tokenizer)
    _begin(reader, out, options)
    clips = {key: [Clip(*reader.video_path(k, key), row['length'])
                   for k, row in enumerate(reader.episodes)] for key in reader.video_keys}
    copied = bool(clips) and isinstance(reader, V21Reader) and all(
        can_join((clip.path for clip in part), reader.fps) for part in clips.values())
    done, count = finished_shards(out), len(reader.episodes)
    with tqdm(total=count, desc='convert', unit='ep') as bar:
        for number, first in enumerate(range(0, count, EPISODES_PER_SHARD)):
            part = range(first, min(first + EPISODES_PER_SHARD, count))
            if number not in done:
                videos = {options.new_name(key): _video_writer(reader, key, part, clips, copied)
                          for key in reader.camera_keys}
                write_shard(out, number, [_episode(reader, k, options, decode) for k in part],
                            reader.fps, videos)
            bar.update(len(part))
    info = merge_shards(out, reader.info.get('robot_type') or 'unknown')
    if (source / layout.NORM_STATS).exists():
        shutil.copyfile(source / layout.NORM_STATS, out / layout.NORM_STATS)
    shutil.rmtree(out / SHARDS)
    unthought = 0
    if layout.REASONING in info['features']:
        unthought = sum(not text for text in DatasetReader(out).column(layout.REASONING))
    several = sum(len(row['tasks']) > 1 for row in reader.episodes)
    return Converted(info, unthought, several, copied)


def _require_features(reader: DatasetReader, options: ConvertOptions) -> None:
    """Refuse what the trainer could not read, before anything is written."""
    features = reader.info['features']
    unknown = sorted(set(options.rename) - set(features))
    if unknown:
        raise UserError(f'--rename {unknown[0]}: {reader.root} has no such feature; it has '
                        f'{", ".join(features)}')
    names = [options.new_name(name) for name in features]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f'--rename: two features would be called {twice}')
    missing = [name for name in (layout.STATE, layout.ACTION, *layout.CAMERAS)
               if name not in names]
    if missing:
        raise UserError(
            f'{reader.root}: no feature {", ".join(missing)}; say which it is with --rename '
            f'OLD={missing[0]} (it has {", ".join(features)})')
    if float(reader.fps) != int(reader.fps):
        raise UserError(f'{reader.root / layout.INFO}: {reader.fps} frames a second; v3.0 needs '
                        'a whole number')


def _begin(reader: DatasetReader, out: Path, options: ConvertOptions) -> None:
    """Make ``out``, or accept the beginning of the same conversion in it."""
    told = {
        'source': reader.root.resolve().name, 'episodes': len(reader.episodes),
        'frames': sum(row['length'] for row in reader.episodes), 'chunk': options.chunk,
        'tokenizer': options.tokenizer.name if options.tokenizer else None,
        'rename': dict(options.rename), 'version': reader.info['codebase_version']}
    path = out / OPTIONS
    if not (out.exists() and any(out.iterdir())):
        write_json(path, told)
        return
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f'{out} exists and is no conversion that was begun; choose another '
                        '--out') from None
    if (out / layout.INFO).exists() and not (out / SHARDS).exists():
        raise UserError(f'{out} is converted already; choose another --out')
    if before != told:
        raise UserError(f'{path}: begun from another dataset or with other options; choose '
                        'another --out')


def _video_writer(reader: DatasetReader, key: str, part: range,
                  clips: Mapping[str, Sequence[Clip]], copied: bool) -> Callable[[Path], int]:
    """Return what writes one camera's images of the episodes ``part`` into a file."""
    if key in clips:
        return partial(join_videos, clips=[clips[key][k] for k in part], fps=reader.fps,
                       copy=copied)
    return lambda path: write_video(
        path, chain.from_iterable(reader.frames(k, key) for k in part), reader.fps)


def _episode(reader: DatasetReader, number: int, options: ConvertOptions,
             decode: Decoder | None) -> Episode:
    """Return an episode's numbers and thoughts under their new names, with action chunks."""
    row = reader.episodes[number]
    columns: dict[str, Any] = {}
    names: dict[str, Sequence[str]] = {}
    path = reader.data_path(number)
    table = (reader.numbers(path) if isinstance(reader, V21Reader) else
             reader.table.slice(row['dataset_from_index'], row['length']))
    if len(table) != row['length']:
        raise UserError(f'{path}: {len(table)} rows for episode {number}, its metadata say '
                        f'{row["length"]}; run dtvla data validate')
    for name, feature in reader.info['features'].items():
        if name in layout.INDEX_COLUMNS or name in reader.camera_keys:
            continue
        if name not in table.column_names:
            raise UserError(f'{path}: lacks the feature {name}; run dtvla data validate')
        column, new = table.column(name), options.new_name(name)
        if feature['dtype'] == 'string':
            columns[new] = column.to_pylist()
        elif name == layout.REASONING and decode is not None:
            columns[new] = [*map(decode, column_array(column))]
        else:
            columns[new] = column_array(column)
            if feature.get('names'):
                names[new] = layout.flat_names(feature['names'])
    if layout.ACTION_CHUNK not in columns:
        actions = columns[layout.ACTION].astype(np.float32)
        columns[layout.ACTION_CHUNK], columns[layout.ACTION_IS_PAD] = layout.action_chunks(
            actions, np.arange(len(actions)), options.chunk)
    task = row['tasks'][0] if row.get('tasks') else reader.tasks[
        int(column_array(table.column('task_index'))[0])]
    return Episode(task=task, images={}, columns=columns, metadata=reader.metadata(number),
                   names=names)
