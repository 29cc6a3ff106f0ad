"""What ``meta/`` of a LeRobot dataset says, checked, and in one form whatever its version.

Every reader of datasets gets its metadata here: what one command refuses, none takes. All
functions raise ``UserError`` naming file, place and remedy.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dtvla_ros.data import layout
from dtvla_ros.errors import UserError
from dtvla_ros.files import parse_json, read_json, unreadable

NUMBERS = ('bool', 'float16', 'float32', 'float64', *(
    f'{sign}int{bits}' for sign in ('', 'u') for bits in (8, 16, 32, 64)))
TEXT, IMAGES = 'string', ('image', 'video')
READ = (*layout.V21_VERSIONS, layout.VERSION)
FASTEST = 1000  # frames a second that are believed
MOST = 2 ** 40  # of anything that is counted
LONGEST = 2 ** 30  # video [s]
LONGEST_NAME = 200  # of a feature [bytes]: files are called so
AGAIN = 'correct it, or copy the whole dataset again'
# What the templates of paths may be filled with.
FIELDS: dict[str, Any] = {'episode_index': 0, 'episode_chunk': 0, 'chunk_index': 0,
                          'file_index': 0, 'video_key': 'camera'}


def read_info(root: Path, versions: Sequence[str] = READ) -> dict[str, Any]:
    """Return ``meta/info.json`` of a dataset of one of ``versions``.

    A rate that is a whole number is an int; an image's shape is [H, W, C].
    """
    path = root / layout.INFO
    if not root.is_dir():
        raise UserError(f'{root}: {"a file" if root.exists() else "no such folder"}; give the '
                        'folder of a dataset, which holds meta and data, or make one with dtvla '
                        'collect --out')
    remedy = 'give the folder of a LeRobot dataset, which holds meta and data, or copy all of it'
    if not path.exists():  # Hugging Face's cache keeps datasets further down
        inner = [found.parents[1] for pattern in ('*', 'snapshots/*')
                 for found in sorted(root.glob(f'{pattern}/{layout.INFO}'))]
        remedy = f'give {inner[0]}' if inner else remedy
    info = read_json(path, remedy)
    info['codebase_version'] = _version(root, info.get('codebase_version'), versions)
    fps = info.get('fps')
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= FASTEST:
        raise UserError(f'{path}: fps is {fps!r}, no number of frames a second; {AGAIN}')
    info['fps'] = int(fps) if fps == int(fps) else fps
    features = info.get('features')
    if not isinstance(features, Mapping) or not features:
        raise UserError(f'{path}: features is {features!r:.40}, not what each frame holds; '
                        f'{AGAIN}')
    info['features'] = {name: _feature(path, name, told) for name, told in features.items()}
    info['chunks_size'] = _whole(info, 'chunks_size', str(path), layout.FILES_PER_CHUNK)
    if not info['chunks_size']:
        raise UserError(f'{path}: chunks_size is 0; {AGAIN}')
    for name in ('data_path', 'video_path'):
        template = info.get(name)
        try:
            if template is not None and '\0' in template.format(**FIELDS):
                raise ValueError('a zero byte')
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f'{path}: {name} is {template!r:.80}, no path with '
                            f'{", ".join(FIELDS)} ({error}); {AGAIN}') from None
    return info


def _version(root: Path, told: Any, versions: Sequence[str]) -> str:
    path, version = root / layout.INFO, f'v{str(told).removeprefix("v")}'
    if version in versions:
        return version
    if version in READ:
        raise UserError(f'{path}: version {told!r}, {" or ".join(versions)} is needed here; run '
                        f'dtvla data convert {root} --out FOLDER first')
    looks = 'v2.1' if (root / layout.V21_EPISODES).exists() else layout.VERSION
    said = f"no version of LeRobot's format is {told!r}" if told else 'no codebase_version'
    remedy = f'write the true one: its files look like "{looks}"'
    if version.startswith('v1.'):
        said = f'version {told!r} is older'
        remedy = ("make v2.0 of it with LeRobot's own convert_dataset_v1_to_v2.py "
                  '(lerobot/common/datasets/v2 in lerobot 0.1.0)')
    elif version.startswith(('v3.', 'v4.')):
        said = f'version {told!r} is newer'
        remedy = 'write it as v3.0 with the lerobot that made it (0.4), or update this package'
    raise UserError(f'{path}: {said}, {", ".join(READ)} are read; {remedy}')


def _feature(path: Path, name: str, told: Any) -> dict[str, Any]:
    """Return one of ``features`` with its shape as a list."""
    what = f'{path}: feature {name}'
    if '/' in name or not 0 < len(name.encode()) < LONGEST_NAME:
        raise UserError(f'{path}: a feature is called {name!r:.80}, which cannot be the name of a '
                        f'file; call it otherwise, without /, there and in the data')
    if not isinstance(told, Mapping):
        raise UserError(f'{what} is {told!r:.40}, not dtype, shape and names; {AGAIN}')
    dtype, shape = told.get('dtype'), told.get('shape')
    if dtype not in (*NUMBERS, TEXT, *IMAGES):
        raise UserError(f'{what} has dtype {dtype!r:.40}; there is {", ".join(NUMBERS)}, {TEXT}, '
                        f'{", ".join(IMAGES)}: take it out of the features, and its column, if '
                        'there is one, out of the data')
    if not isinstance(shape, list) or not all(
            isinstance(size, int) and 0 < size < MOST for size in shape):
        raise UserError(f'{what} has shape {shape!r:.40}, no list of sizes; {AGAIN}')
    if dtype in IMAGES:
        if len(shape) == 2:
            shape = [*shape, 1]
        if len(shape) != 3:
            raise UserError(f'{what} has shape {shape!r:.40}, no height, width and channels; '
                            f'{AGAIN}')
        if shape[0] <= 4 < shape[2]:
            shape = [*shape[1:], shape[0]]
    return {**told, 'dtype': dtype, 'shape': shape}


def read_tasks(root: Path, is_v2: bool) -> list[str]:
    """Return the instructions in the order of ``task_index``."""
    path = root / (layout.V21_TASKS if is_v2 else layout.TASKS)
    tasks: dict[int, str] = {}
    for place, row in _read_lines(path) if is_v2 else _read_rows(path):
        text = row.get('task', row.get('__index_level_0__'))
        if not isinstance(text, str):
            raise UserError(f'{place}: task is {text!r:.40}, not what to do; {AGAIN}')
        if tasks.setdefault(number := _whole(row, 'task_index', place), text) != text:
            raise UserError(f'{place}: task_index {number} is that of another task, too; {AGAIN}')
    if missing := set(range(len(tasks))) - tasks.keys():
        raise UserError(f'{path}: no task of task_index {min(missing)}, though there is '
                        f'{max(tasks)}; {AGAIN}')
    return [tasks[number] for number in range(len(tasks))]


def read_episodes(root: Path, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per episode, in order, with the names of v3.0.

    ``tasks`` is a list (one text is one task), ``layout.METADATA`` a dict: for v2.x what
    ``episodes.jsonl`` says besides tasks and length.
    """
    is_v2 = info['codebase_version'] in layout.V21_VERSIONS
    folder = root / 'meta/episodes'
    if not is_v2 and not folder.is_dir():
        raise unreadable(folder, 'no folder', 'copy all of meta')
    places = list(_read_lines(root / layout.V21_EPISODES)) if is_v2 else [
        pair for path in layout.own_files(folder, '*/*.parquet') for pair in _read_rows(path)]
    rows = sorted((_episode(place, row, is_v2) for place, row in places),
                  key=lambda row: row['episode_index'])
    begin = 0
    for due, row in enumerate(rows):
        number, span = row['episode_index'], (begin, begin + row['length'])
        if number != due:
            raise UserError(f'{row["place"]}: episode_index {number} where {due} is due; '
                            f'{AGAIN}')
        said = (row.get('dataset_from_index', span[0]), row.get('dataset_to_index', span[1]))
        if said != span:
            raise UserError(
                f'{row["place"]}: episode {number} is said to be the rows {said[0]} to {said[1]}, '
                f'{span[0]} to {span[1]} are due by the lengths; {AGAIN}')
        row['dataset_from_index'], row['dataset_to_index'] = span
        begin = span[1]
    if not is_v2:
        for key, feature in info['features'].items():
            if feature['dtype'] == 'video':
                _check_places_in_videos(rows, key, info['fps'])
    return rows


def _episode(place: str, row: Mapping[str, Any], is_v2: bool) -> dict[str, Any]:
    """Return a row of metadata with its types as they should be; ``place``: where it stands."""
    number, length = (_whole(row, name, place) for name in ('episode_index', 'length'))
    if not length:
        raise UserError(f'{place}: episode {number} has 0 frames; leave it out')
    tasks = row.get('tasks')
    if isinstance(tasks, str):
        tasks = [tasks]
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise UserError(f'{place}: tasks of episode {number} is {tasks!r:.60}, no list of texts; '
                        f'write "tasks": ["..."], or copy the meta folder again')
    own = {'episode_index': number, 'length': length, 'tasks': tasks, 'place': place}
    if is_v2:
        return {**own, layout.METADATA: {k: v for k, v in row.items() if k not in own}}
    for name in row:
        if name.endswith(('chunk_index', 'file_index')) or name.startswith('dataset_'):
            own[name] = _whole(row, name, place)
        elif name.endswith('/from_timestamp'):
            if not isinstance(start := row[name], int | float) or not 0 <= start < LONGEST:
                raise UserError(f'{place}: {name} of episode {number} is {start!r:.40}, no '
                                f'seconds; {AGAIN}')
            own[name] = start
    try:
        kept = json.loads(row.get(layout.METADATA) or '{}')
        if not isinstance(kept, dict):
            raise ValueError('not an object')
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f'{place}: {layout.METADATA} of episode {number} is no JSON ({error}); '
                        f'{AGAIN}') from None
    return {**own, layout.METADATA: kept}


def _check_places_in_videos(rows: Iterable[Mapping[str, Any]], key: str, fps: float) -> None:
    """Refuse v3.0 episodes of which it is not said where they are in a camera's videos."""
    ends: dict[tuple[int, int], float] = defaultdict(float)
    for row in rows:
        names = [f'videos/{key}/{n}' for n in ('chunk_index', 'file_index', 'from_timestamp')]
        if missing := [name for name in names if name not in row]:
            raise UserError(f'{row["place"]}: lacks {missing[0]}, where the images of an episode '
                            f'are; {AGAIN}')
        chunk, file, start = (row[name] for name in names)
        if start < ends[chunk, file] - 0.5 / fps:
            raise UserError(
                f'{row["place"]}: the images of episode {row["episode_index"]} are said to begin '
                f'at {start:g} s of {key}, where those before it end at '
                f'{ends[chunk, file]:g} s; {AGAIN}')
        ends[chunk, file] = start + row['length'] / fps


def _whole(row: Mapping[str, Any], name: str, place: str, default: int | None = None) -> int:
    """Return a number that counts something."""
    value = row.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (
            0 <= value < MOST and value == int(value)):
        raise UserError(f'{place}: {name} is {value!r:.40}, not a whole number from 0 on; '
                        f'{AGAIN}')
    return int(value)


def _read_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Return the rows of a parquet file without statistics, each with the file's name."""
    try:
        names = [name for name in pq.read_schema(path).names if not name.startswith('stats/')]
        rows = pq.read_table(path, columns=names).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error, 'copy the meta folder again') from None
    return [(str(path), row) for row in rows]


def _read_lines(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Return the objects of a JSON-lines file, each with the file's name and its line."""
    rows = []
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.strip():
                rows.append((f'{path}: line {number}', parse_json(line)))
                if not isinstance(rows[-1][1], dict):
                    raise ValueError(f'line {number}: no JSON object')
        if not rows:
            raise ValueError('no line')
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error, 'correct it, or copy the meta folder again') from None
    return rows
