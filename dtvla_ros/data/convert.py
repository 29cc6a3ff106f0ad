"""``dtvla data convert``: any LeRobot dataset as one of v3.0 that the trainer reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dtvla_ros.data import layout, writer
from dtvla_ros.data.layout import Episode
from dtvla_ros.data.reader import DatasetReader, open_dataset
from dtvla_ros.data.video import can_join, join_videos, write_video
from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json, write_json
from dtvla_ros.interrupt import resumable

EPISODES_PER_SHARD = 25
OPTIONS = 'convert.json'


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


class Converted(NamedTuple):
    """What became of a dataset.

    ``info`` of the new one; frames without a thought; episodes with several tasks, of which the
    first is kept; whether the videos were copied untouched; cameras left out, and why.
    """

    info: dict[str, Any]
    unthought: int
    several_tasks: int
    copied: bool
    left_out: Mapping[str, str]


def convert(source: Path, out: Path, options: ConvertOptions) -> Converted:
    """Write ``source`` as a v3.0 dataset ``out``; the same call goes on where it was stopped.

    Raises ``UserError`` if ``out`` holds anything but the beginning of the same conversion, or the
    source lacks what the trainer needs.
    """
    reader = open_dataset(source)
    _require_features(reader, options)
    told = source / layout.NORM_STATS
    statistics = read_json(told, 'remove it, or copy it again') if os.path.lexists(told) else None
    decoded = reader.thoughts_are_ids and layout.REASONING not in options.rename
    thoughts = reader.thoughts(options.tokenizer) if decoded else []
    _begin(reader, out, options)
    count = len(reader.episodes)
    files = {key: [(reader.video_path(k, key)[0], length)
                   for k, length in enumerate(reader.lengths)] for key in reader.video_keys}
    copied = bool(files) and reader.is_v2 and all(
        can_join((path for path, _ in videos), reader.fps) for videos in files.values())

    def write(path: Path, key: str, part: range) -> int:
        """Write one camera's images of some episodes into a file."""
        if copied and key in files:
            return join_videos(path, [files[key][k] for k in part], reader.fps)
        return write_video(
            path, chain.from_iterable(reader.frames(k, key) for k in part), reader.fps)

    done = writer.finished_shards(out)
    with resumable(lambda: f'{out}: of {count} episodes {EPISODES_PER_SHARD} each are kept in '
                           f'{len(writer.finished_shards(out))} shards; repeat the command to go '
                           'on'):
        for number, first in enumerate(tqdm(range(0, count, EPISODES_PER_SHARD), desc='convert')):
            part = range(first, min(first + EPISODES_PER_SHARD, count))
            if number not in done:
                writer.write_shard(
                    out, number, [_episode(reader, k, options, thoughts) for k in part],
                    reader.fps, {options.new_name(key): partial(write, key=key, part=part)
                                 for key in reader.camera_keys})
    info = writer.merge_shards(
        out, reader.info.get('robot_type') or 'unknown', reader.contract)
    if statistics is not None:
        write_json(out / layout.NORM_STATS, statistics)
    shutil.rmtree(out / writer.SHARDS)
    several = sum(len(row['tasks']) > 1 for row in reader.episodes)
    return Converted(info, DatasetReader(out).thoughts().count(''), several, copied,
                     reader.left_out)


def _require_features(reader: DatasetReader, options: ConvertOptions) -> None:
    """Refuse what the trainer could not read, before anything is written."""
    names = list(reader.info['features'])
    renamed, there = [*map(options.new_name, names)], f'it has {", ".join(names)}'
    if unknown := sorted(set(options.rename) - set(names)):
        raise UserError(f'--rename {unknown[0]}: {reader.root} has no such feature; {there}')
    if twice := next((name for name in renamed if renamed.count(name) > 1), None):
        raise UserError(f'--rename: two features would be called {twice}')
    cameras = layout.CAMERAS if reader.contract.is_normalised else ()  # or the policy's own
    needed = (layout.STATE, layout.ACTION, *cameras)
    if deep := next((name for name in reader.left_out if options.new_name(name) in needed), None):
        raise UserError(f'{reader.root}: {deep} is {reader.left_out[deep]}; say which camera is '
                        f'{options.new_name(deep)} with --rename')
    if missing := next((name for name in needed if name not in renamed), None):
        raise UserError(f'{reader.root}: no feature {missing}; say which it is with '
                        f'--rename OLD={missing} ({there})')
    reader.require_finite(*(name for name in names if options.new_name(name) in (
        layout.STATE, layout.ACTION, layout.ACTION_CHUNK)))


def _begin(reader: DatasetReader, out: Path, options: ConvertOptions) -> None:
    """Make ``out``, or accept the beginning of the same conversion in it."""
    told = {
        'source': reader.root.resolve().name, 'episodes': len(reader.episodes),
        'frames': len(reader.table), 'chunk': options.chunk,
        'tokenizer': options.tokenizer.name if options.tokenizer else None,
        'rename': dict(options.rename), 'version': reader.info['codebase_version']}
    path = out / OPTIONS
    if out.exists() and any(out.iterdir()) and not path.exists():
        raise UserError(f'{out} exists and is no conversion that was begun; choose another --out')
    if (out / layout.INFO).exists() and not (out / writer.SHARDS).exists():
        raise UserError(f'{out} is converted already; choose another --out')
    writer.require_same_options(path, told, {})


def _episode(reader: DatasetReader, number: int, options: ConvertOptions,
             thoughts: list[str]) -> Episode:
    """Return an episode's numbers and thoughts under their new names, with action chunks."""
    made = reader.episode(number, images=False)
    columns = {options.new_name(name): values if isinstance(values, list) or values.ndim == 1
               else values.reshape(len(values), -1) for name, values in made.columns.items()}
    if thoughts:
        columns[layout.REASONING] = thoughts[reader.span(number)]
    if not {layout.ACTION_CHUNK, layout.ACTION_IS_PAD} <= columns.keys():
        actions = np.asarray(columns[layout.ACTION], np.float32).reshape(len(made), -1)
        columns |= layout.action_chunks(
            actions, np.arange(len(actions)), options.chunk, contract=reader.contract)
    names = {options.new_name(name): value for name, value in made.names.items()}
    return replace(made, columns=columns, names=names)
