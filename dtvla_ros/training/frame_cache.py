"""Decoded images of a dataset in one memory-mapped file, for random access in training."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.video import read_video
from dtvla_ros.policy.transform import PolicyTransform

FOLDER = '.frames'


@dataclass(frozen=True, slots=True)
class FrameCache:
    """uint8 images ``frames`` [N, C, S, S, 3] as the policy's transform sees them."""

    frames: NDArray[np.uint8]


def _as_bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Undo the transform's scaling: [C, 3, H, W] in -1..1 -> uint8 [C, H, W, 3]."""
    return np.rint((pixels + 1.0) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


def open_frames(reader: DatasetReader, transform: PolicyTransform, threads: int = 2) -> FrameCache:
    """Return the cache of a dataset, decoding the videos if that has not been done.

    Images pass through ``transform.pixels``, so training and the node resize alike. The cache
    is made anew when the dataset, the image size or the cameras change.
    """
    vision = transform.config.vision
    count = reader.info['total_frames']
    shape = (count, len(vision.cameras), vision.image_size, vision.image_size, 3)
    stamp = {'shape': list(shape), 'cameras': list(vision.cameras),
             'dataset': (reader.root / layout.INFO).stat().st_mtime_ns}
    if transform.mirrored:
        stamp['mirrored'] = True
    folder = reader.root / FOLDER
    path, facts = folder / 'frames.u8', folder / 'frames.json'
    if not (facts.exists() and json.loads(facts.read_text()) == stamp):
        folder.mkdir(exist_ok=True)
        part = folder / f'frames.{os.getpid()}.part'  # another run may be reading the old file
        frames = np.memmap(part, np.uint8, 'w+', shape=shape)
        try:
            _decode(reader, transform, frames, threads)
            frames.flush()
            facts.unlink(missing_ok=True)
            part.replace(path)
            facts.write_text(json.dumps(stamp))
        finally:
            part.unlink(missing_ok=True)
    return FrameCache(np.memmap(path, np.uint8, 'r', shape=shape))


def _decode(reader: DatasetReader, transform: PolicyTransform, frames: NDArray[np.uint8],
            threads: int) -> None:
    keys = {layout.CAMERAS.get(key, key): key for key in reader.video_keys}
    cameras = transform.config.vision.cameras
    files: dict[tuple[Path, ...], list[tuple[int, int]]] = {}
    for number, row in enumerate(reader.episodes):
        paths = tuple(reader.video_path(number, keys[name])[0] for name in cameras
                      if name in keys)
        files.setdefault(paths, []).append((row['dataset_from_index'], row['length']))

    def fill(paths: tuple[Path, ...], parts: list[tuple[int, int]]) -> int:
        indices = (k for start, length in parts for k in range(start, start + length))
        done = 0
        for index, *images in zip(indices, *map(read_video, paths), strict=False):
            frames[index] = _as_bytes(transform.pixels(dict(zip(cameras, images, strict=True))))
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool, tqdm(
            total=len(frames), desc='decode', unit='frame') as bar:
        for done in pool.map(lambda item: fill(*item), files.items()):
            bar.update(done)
        if bar.n != len(frames):
            raise ValueError(f'{reader.root}: {bar.n} images for {len(frames)} frames')
