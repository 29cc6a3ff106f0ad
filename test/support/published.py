"""LeRobot v2.1 datasets as they are published: one parquet and one video an episode."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dtvla_ros.data import layout
from dtvla_ros.policy.vocabulary import build_tokenizer, word_id
from support.tiny import TASKS, tiny_episode

FPS = 10
WIDTH = 48  # ids in a row of thoughts
MISSING_THOUGHT = 3  # the frame of episode 1 that nobody described


def encode(path: Path, frames: Sequence[np.ndarray], fps: int = FPS, encoder: str = 'libx264',
           options: Mapping[str, str] | None = None) -> None:
    """Write an mp4 with the pixel format and key frames LeRobot records with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(
            encoder, rate=fps, options=dict(options or {'g': '2', 'crf': '18'}))
        stream.pix_fmt = 'yuv420p'
        stream.height, stream.width = frames[0].shape[:2]
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format='rgb24')
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _png(image: np.ndarray) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'png')
    return {'bytes': buffer.getvalue(), 'path': None}


def _vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def published_dataset(root: Path, episodes: int = 6, png: bool = False) -> Path:
    """Write a v2.1 dataset of ``tiny_episode``s; ``png``: PNG columns instead of videos.

    Beside it lies the ``tokenizer.json`` that its thoughts are ids of.
    """
    tokenizer = build_tokenizer()
    pad = word_id(tokenizer, '<pad>')
    tasks, begin = TASKS[:episodes], 0
    lines: list[dict] = []
    for number in range(episodes):
        made = tiny_episode(number, frames=8 + number)
        length = len(made)
        ids = np.full((length, WIDTH), pad, np.int64)
        for k, text in enumerate(made.columns[layout.REASONING]):
            if (number, k) != (1, MISSING_THOUGHT):
                row = tokenizer.encode(f'<think> {text} </think>', add_special_tokens=False).ids
                ids[k, :len(row)] = row
        index = np.arange(length)
        columns = {
            **{key: _vectors(made.columns[key]) for key in (layout.STATE, layout.ACTION)},
            layout.REASONING: _vectors(ids), 'timestamp': pa.array(np.float32(index / FPS)),
            'frame_index': pa.array(index), 'episode_index': pa.array(np.full(length, number)),
            'index': pa.array(begin + index),
            'task_index': pa.array(np.full(length, tasks.index(made.task)))}
        for key, images in made.images.items():
            if png:
                columns[key] = pa.array([_png(image) for image in images])
            else:
                encode(root / f'videos/chunk-000/{key}/episode_{number:06d}.mp4', images)
        path = root / f'data/chunk-000/episode_{number:06d}.parquet'
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        lines.append({'episode_index': number, 'tasks': [made.task], 'length': length,
                      'success': number % 2 == 0, 'operator': f'person {number}'})
        begin += length
    kind, axes = 'image' if png else 'video', ['height', 'width', 'channel']
    features = {key: {'dtype': of, 'shape': shape, 'names': named} for key, of, shape, named in (
        (layout.STATE, 'float32', [8], {'motors': list('xyzrpqab')}),
        (layout.ACTION, 'float32', [7], None), (layout.REASONING, 'int64', [WIDTH], None),
        *((key, kind, [32, 32, 3], axes) for key in layout.CAMERAS),
        ('timestamp', 'float32', [1], None),
        *((name, 'int64', [1], None) for name in layout.INDEX_COLUMNS[1:]))}
    (meta := root / 'meta').mkdir()
    (meta / 'info.json').write_text(json.dumps({
        'codebase_version': 'v2.1', 'robot_type': 'panda', 'total_episodes': episodes,
        'total_frames': begin, 'total_tasks': len(tasks), 'chunks_size': 1000, 'fps': FPS,
        'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
        'video_path': None if png else (
            'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'),
        'features': features}))
    for name, rows in (('episodes', lines), ('tasks', [
            {'task_index': k, 'task': task} for k, task in enumerate(tasks)])):
        (meta / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    (meta / 'norm_stats.json').write_text(json.dumps({
        'action': {'q01': [-1.0] * 7, 'q99': [1.0] * 7}, 'state': {}}))
    tokenizer.save(str(root / 'tokenizer.json'))
    return root
