"""``dtvla data inspect``: what a dataset is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.thoughts import are_ids, guess_pad, thoughts_of, unpadded
from dtvla_ros.data.v21 import open_dataset

NOT_DATA = ('.frames', '.shards')  # what can be made again, and hard links to what is there


def inspect_dataset(root: Path, tokenizer: Path | None = None) -> dict[str, Any]:
    """Return what a dataset says about itself, JSON-ready. Raises ``UserError``.

    Thoughts kept as ids are decoded where a ``tokenizer`` is given; else their lengths are told.
    """
    reader = open_dataset(root)
    info, episodes = reader.info, reader.episodes
    lengths = np.array([row['length'] for row in episodes] or [0])
    return {
        'path': str(root), 'version': info['codebase_version'],
        'robot': info.get('robot_type'), 'fps': info['fps'],
        'episodes': len(episodes), 'frames': int(lengths.sum()),
        'seconds': round(float(lengths.sum()) / info['fps'], 1),
        'episode_length': {'shortest': int(lengths.min()), 'median': float(np.median(lengths)),
                           'longest': int(lengths.max())},
        'tasks': _tasks(reader), 'features': _features(reader), 'cameras': _cameras(reader),
        'facts': _facts(episodes), 'thoughts': _thoughts(reader, tokenizer),
        'phases': _phases(reader), 'bytes': _bytes(root)}


def _tasks(reader: DatasetReader) -> dict[str, int]:
    """Return the number of episodes by task, tasks without any included."""
    said = Counter(task for row in reader.episodes for task in row['tasks'])
    return {task: said[task] for task in dict.fromkeys([*reader.tasks, *said])}


def _features(reader: DatasetReader) -> dict[str, Any]:
    return {name: {'dtype': feature['dtype'], 'shape': list(feature['shape']),
                   'names': feature.get('names')}
            for name, feature in reader.info['features'].items()
            if name not in reader.camera_keys}


def _cameras(reader: DatasetReader) -> dict[str, Any]:
    cameras = {}
    for key in reader.camera_keys:
        feature = reader.info['features'][key]
        video = feature.get('info') or feature.get('video_info') or {}
        cameras[key] = {
            'policy_camera': layout.CAMERAS.get(key), 'stored_as': feature['dtype'],
            'shape': list(feature['shape']), 'codec': video.get('video.codec'),
            'pix_fmt': video.get('video.pix_fmt'), 'fps': video.get('video.fps')}
    return cameras


def _facts(episodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return, for each fact kept with episodes, its values counted, or its range."""
    seen: dict[str, list[Any]] = {}
    for row in episodes:
        for name, value in json.loads(row.get('facts') or '{}').items():
            seen.setdefault(name, []).append(value)
    told: dict[str, Any] = {}
    for name, values in seen.items():
        counts = Counter(json.dumps(value) for value in values)
        if len(counts) <= 8:
            told[name] = {key.strip('"'): count for key, count in counts.most_common()}
        elif all(isinstance(value, (int, float)) for value in values):
            told[name] = {'lowest': min(values), 'highest': max(values)}
        else:
            told[name] = {'different': len(counts)}
    return told


def _thoughts(reader: DatasetReader, tokenizer: Path | None) -> dict[str, Any] | None:
    if layout.REASONING not in reader.info['features']:
        return None
    unit, example = 'words', ''
    if are_ids(reader) and tokenizer is None:
        ids = np.asarray(reader.column(layout.REASONING))
        pad, unit = guess_pad(ids), 'token ids'
        kept = [unpadded(row, pad) for row in ids]
        lengths = np.array([len(row) for row in kept])
        different = len({row.tobytes() for row in kept})
        longest = int(lengths.argmax()) if len(lengths) else 0
        example = ' '.join(map(str, kept[longest].tolist()))
    else:
        texts = thoughts_of(reader, tokenizer) or []
        lengths = np.array([len(text.split()) for text in texts])
        different = len(set(texts))
        longest = int(lengths.argmax()) if len(lengths) else 0
        example = texts[longest] if texts else ''
    there = lengths[lengths > 0]
    return {
        'stored_as': 'token ids' if are_ids(reader) else 'text', 'unit': unit,
        'share': len(there) / max(len(lengths), 1), 'different': different,
        'length': {name: float(np.quantile(there, share)) if len(there) else 0.0
                   for name, share in (('shortest', 0.0), ('median', 0.5), ('p99', 0.99),
                                       ('longest', 1.0))},
        'longest': example}


def _phases(reader: DatasetReader) -> dict[str, int]:
    if layout.PHASE not in reader.info['features']:
        return {}
    return dict(Counter(reader.column(layout.PHASE)).most_common())


def _bytes(root: Path) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for path in root.rglob('*'):
        part = path.relative_to(root).parts[0]
        if path.is_file() and part not in NOT_DATA:
            sizes[part if len(path.relative_to(root).parts) > 1 else 'other'] += (
                path.stat().st_size)
    return dict(sizes.most_common())
