"""Training data: datasets tokenised once into arrays, and their images in memory-mapped files.

N frames, P prompt ids, W thought ids, S action slots (T * D), E objects.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation
from tokenizers import Tokenizer
from tqdm import tqdm

from dtvla_ros.actions.grid import CM_RANGE, OPENING_STEP_MM, TILT_STEP_DEG, word_groups
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.video import read_video
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import HOME, Observation, PolicyTransform
from dtvla_ros.policy.vocabulary import ordinal_groups, word_id

STATE_TOKENS = 7  # position, tilt and opening, as in ``word_groups``
AFTER_STATE = 2  # tokens between the state tokens and the prompt's end: ';' and newline
PADDED = ('prompt', 'thought')  # to their longest row
AXES = ('x', 'y')
ABSENT = -1000  # position of an object that is not there: far from every token's index
NOWHERE = -1  # patch of an object outside the image
FRAMES = '.frames'


@dataclass(frozen=True, slots=True)
class TokenizedDataset:
    """One row per frame; ids are padded on the right.

    ``prompt`` [N, P] and ``prompt_length`` [N]; ``state_at`` [N]: column of the first of the
    seven state tokens (0 when the prompt has none); ``state`` [N, 7]: what they quantise (cm,
    tilt steps, opening in cm); ``thought`` [N, W] with tags and ``thought_length`` [N];
    ``actions`` [N, S] ids and ``action_mask`` [N, S]; ``scene`` [N]: frames of
    one scene stay together when some are held out; ``near_toggle`` and
    ``near_start`` [N] bool; ``positions`` [N, E, 2]: index of each object's x and y token in its
    group (``ABSENT`` for one that is not there, E = 0 when no dataset says); ``unambiguous``
    [N, E] bool: whether its name means it alone; ``target_patches`` [N, E]: the first camera's
    patch it appears in (``NOWHERE`` outside).
    """

    prompt: NDArray[np.int64]
    prompt_length: NDArray[np.int64]
    state_at: NDArray[np.int64]
    state: NDArray[np.float32]
    thought: NDArray[np.int64]
    thought_length: NDArray[np.int64]
    actions: NDArray[np.int64]
    action_mask: NDArray[np.bool_]
    scene: NDArray[np.int64]
    near_toggle: NDArray[np.bool_]
    near_start: NDArray[np.bool_]
    positions: NDArray[np.int64]
    unambiguous: NDArray[np.bool_]
    target_patches: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompt)


def tokenize(
    reader: DatasetReader, transform: PolicyTransform, objects: Sequence[str],
) -> TokenizedDataset:
    """Tokenise a dataset; ``objects``: E names (see ``object_names``), none: no positions.

    Raises ``UserError`` when it does not fit the policy.
    """
    config = transform.config
    steps, dim = config.chunk_steps, config.action_dim
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK))
    stored = chunk.shape[1] // dim
    if stored < steps:
        raise UserError(f'{reader.root}: chunks of {stored} actions, the policy makes {steps}; '
                        f'collect again with --chunk {steps}')
    chunk = chunk.reshape(len(chunk), stored, dim)[:, :steps]  # [N, T, D]
    padding = np.asarray(reader.column(layout.ACTION_IS_PAD))[:, :steps]  # [N, T]
    episode = np.asarray(reader.column('episode_index'))

    prompts = [prompt_of(transform, task) for task in reader.tasks]
    prompt, prompt_length = _pad(
        [prompts[int(task)] for task in reader.column('task_index')], config.ids.pad)
    state_at = np.zeros(len(prompt), np.int64)
    state = np.zeros((len(prompt), STATE_TOKENS), np.float32)
    if transform.state_in_prompt:
        state = _state_steps(np.asarray(reader.column(layout.STATE)))
        state_at = prompt_length - AFTER_STATE - STATE_TOKENS
        columns = state_at[:, None] + np.arange(STATE_TOKENS)
        np.put_along_axis(prompt, columns, StateTokens.of(transform).ids(state), axis=1)
    thought, thought_length = _pad(
        list(map(cache(transform.encode_thought), reader.column(layout.REASONING))),
        config.ids.pad)

    # Frames whose chunk changes the gripper, and the two after a change.
    closing = chunk[..., -1] > 0  # [N, T]
    before = np.zeros(len(chunk), bool)
    same = episode[1:] == episode[:-1]
    before[1:] = same & (closing[1:, 0] != closing[:-1, 0])
    near = (closing != closing[:, :1]).any(1) | before
    near[1:] |= same & before[:-1]

    positions = object_positions(reader, objects)
    return TokenizedDataset(
        prompt=prompt, prompt_length=prompt_length, state_at=state_at, state=state,
        thought=thought, thought_length=thought_length,
        actions=transform.codec.encode(transform.statistics.normalize(chunk)).reshape(
            len(chunk), -1),
        action_mask=np.repeat(~padding, dim, axis=1), scene=_scenes(reader)[episode],
        near_toggle=near,
        near_start=np.asarray(reader.column('frame_index')) / reader.fps < 0.6,
        positions=positions, unambiguous=unambiguous(positions, objects),
        target_patches=target_patches(reader, objects, config.vision.tokens[0]))


def _pad(rows: Sequence[Sequence[int]], value: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.array([len(row) for row in rows])
    out = np.full((len(rows), lengths.max()), value, np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return out, lengths


def _scenes(reader: DatasetReader) -> NDArray[np.int64]:
    """Return the scene [episodes] that each episode shows: several may show one."""
    metadata = [json.loads(row.get('facts') or '{}') for row in reader.episodes]
    keys = [entry.get('index', f'episode {k}') for k, entry in enumerate(metadata)]
    number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys])


def concatenate(parts: Sequence[TokenizedDataset], pad: int) -> TokenizedDataset:
    """Concatenate datasets made for the same objects; scenes are numbered through."""
    offset, numbered = 0, []
    for part in parts:
        numbered.append(replace(part, scene=part.scene + offset))
        offset += int(part.scene.max()) + 1

    def column(name: str) -> NDArray:
        arrays = [getattr(part, name) for part in numbered]
        if name in PADDED:
            width = max(a.shape[1] for a in arrays)
            arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=pad)
                      for a in arrays]
        return np.concatenate(arrays)

    return TokenizedDataset(**{f.name: column(f.name) for f in fields(TokenizedDataset)})


# --- tokens


def location_spans(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Return (first, last) ids of the x, y and z tokens; none for a released vocabulary."""
    known = any(tokenizer.token_to_id(word) is not None for word in word_groups()['x'])
    return ordinal_groups(tokenizer) if known else []


def prompt_of(transform: PolicyTransform, task: str) -> list[int]:
    """Return a task's prompt ids, the state tokens standing for some pose."""
    return transform.prompt_ids(task, Observation(
        images={}, joint_positions={}, ee_position=np.zeros(3), ee_quaternion=HOME.as_quat(),
        gripper_opening=0.0, instruction=task, stamp=0.0))


def _state_steps(state: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``TokenizedDataset.state`` [N, 7] of ``observation.state`` [N, 8] (m, rad, m)."""
    tilt = (Rotation.from_rotvec(state[:, 3:6]) * HOME.inv()).as_rotvec()
    return np.concatenate([
        state[:, :3] * 100.0, np.degrees(tilt) / TILT_STEP_DEG,
        (state[:, 6:7] - state[:, 7:8]) * 100.0], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class StateTokens:
    """Ids of the seven state tokens for whole batches, by arithmetic instead of text.

    ``first`` [7] id of each group and the values ``low`` .. ``high`` [7] it holds in steps.
    """

    first: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    @classmethod
    def of(cls, transform: PolicyTransform) -> StateTokens:
        """Read the ids off the policy's tokenizer; each group must be contiguous."""
        rows = []
        for name, words in word_groups().items():
            ids = [word_id(transform.tokenizer, word) for word in words]
            if ids != list(range(ids[0], ids[0] + len(ids))):
                raise UserError(f'tokenizer: the {name} words are not contiguous; build it again')
            low = CM_RANGE[name][0] if name in CM_RANGE else 0 if name == 'g' else -(len(ids) // 2)
            rows.append((ids[0], low, low + len(ids) - 1))
        return cls(*np.array(rows).T)

    def ids(self, state: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return ids [B, 7] of ``TokenizedDataset.state`` [B, 7]."""
        scale = np.array([1.0] * 6 + [10.0 / OPENING_STEP_MM])  # the opening's tokens count mm
        steps = np.rint(state * scale).astype(np.int64)
        return self.first - self.low + np.clip(steps, self.low, self.high)


# --- objects: the columns ``observation.places`` and ``observation.image_points``


def object_names(readers: Sequence[DatasetReader]) -> tuple[str, ...]:
    """Return all objects whose positions any of the datasets holds."""
    return tuple(dict.fromkeys(name for reader in readers for name in _own_objects(reader)))


def _own_objects(reader: DatasetReader) -> list[str]:
    names = reader.info['features'].get(layout.PLACES, {}).get('names') or ()
    return [name[:-2] for name in names if name.endswith('.x')]


def class_name(name: str) -> str:
    """Return what a thought calls an object: its name in words, without a number."""
    return re.sub(r'_\d+$', '', name).replace('_', ' ')


def _object_column(
    reader: DatasetReader, feature: str, objects: Sequence[str], width: int,
) -> NDArray[np.float32]:
    """Return a feature [N, E, width] of the dataset's own objects among ``objects``, else NaN."""
    own = _own_objects(reader)
    out = np.full((len(reader.table), len(objects), width), np.nan, np.float32)
    if feature in reader.info['features'] and own and objects:
        out[:, [list(objects).index(name) for name in own]] = np.asarray(
            reader.column(feature)).reshape(len(out), len(own), width)
    return out


def object_positions(reader: DatasetReader, objects: Sequence[str]) -> NDArray[np.int64]:
    """Return [N, E, 2]: for each frame the index of every object's x and y token in its group.

    Read from the feature ``observation.places`` [E * 3], metres in the base frame; ``ABSENT``
    for objects that are not in the scene, or in a dataset without it (a real robot's).
    """
    metres = _object_column(reader, layout.PLACES, objects, 3)[..., :2]  # [N, E, 2]
    low, high = np.array([CM_RANGE[axis] for axis in AXES]).T
    here = ~np.isnan(metres).any(-1, keepdims=True)
    tokens = np.rint(np.where(here, metres, 0.0) * 100.0).astype(np.int64)
    return np.where(here, np.clip(tokens, low, high) - low, ABSENT)


def unambiguous(positions: NDArray[np.int64], objects: Sequence[str]) -> NDArray[np.bool_]:
    """Return [N, E]: whether an object of ``positions`` [N, E, 2] is there, alone of its class."""
    here = positions[..., 0] != ABSENT
    names = np.array([class_name(name) for name in objects])
    same = (names[:, None] == names).astype(np.int64)  # [E, E]
    return here & (here.astype(np.int64) @ same == 1)


def has_points(reader: DatasetReader) -> bool:
    """Return whether a dataset says where its objects appear in the first camera's image."""
    return {layout.PLACES, layout.POINTS} <= set(reader.info['features'])


def patch_of(points: ArrayLike, tokens: int) -> NDArray[np.int64]:
    """Return the patch [...] that points [..., 2] fall in, ``NOWHERE`` outside the image.

    Points are fractions of the image from its upper left corner: across, down. The ``tokens``
    patches are a square grid, row by row.
    """
    side = math.isqrt(tokens)
    cell = np.floor(np.asarray(points) * side).astype(np.int64)  # [..., 2]
    inside = ((cell >= 0) & (cell < side)).all(-1)
    return np.where(inside, cell[..., 1] * side + cell[..., 0], NOWHERE)


def target_patches(
    reader: DatasetReader, objects: Sequence[str], tokens: int,
) -> NDArray[np.int64]:
    """Return [N, E]: each object's patch; all ``NOWHERE`` for a dataset without points."""
    points = _object_column(reader, layout.POINTS, objects, 2)  # [N, E, 2]
    return patch_of(np.where(np.isnan(points), -1.0, points), tokens)


# --- images


def open_frames(
    reader: DatasetReader, transform: PolicyTransform, threads: int = 2,
) -> NDArray[np.uint8]:
    """Return a dataset's images [N, C, S, S, 3] as the policy sees them, memory-mapped.

    Images pass through ``transform.pixels``, so training and the node resize alike. They are
    decoded once, and again when the dataset, the image size or the cameras change.
    """
    vision = transform.config.vision
    count = reader.info['total_frames']
    shape = (count, len(vision.cameras), vision.image_size, vision.image_size, 3)
    stamp = {'shape': list(shape), 'cameras': list(vision.cameras),
             'dataset': (reader.root / layout.INFO).stat().st_mtime_ns}
    if transform.mirrored:
        stamp['mirrored'] = True
    folder = reader.root / FRAMES
    path, made = folder / 'frames.u8', folder / 'frames.json'
    if not (made.exists() and json.loads(made.read_text()) == stamp):
        folder.mkdir(exist_ok=True)
        part = folder / f'frames.{os.getpid()}.part'  # another run may be reading the old file
        frames = np.memmap(part, np.uint8, 'w+', shape=shape)
        try:
            _decode(reader, transform, frames, threads)
            frames.flush()
            made.unlink(missing_ok=True)
            part.replace(path)
            made.write_text(json.dumps(stamp))
        finally:
            part.unlink(missing_ok=True)
    return np.memmap(path, np.uint8, 'r', shape=shape)


def _decode(reader: DatasetReader, transform: PolicyTransform, frames: NDArray[np.uint8],
            threads: int) -> None:
    """Fill ``frames``; the videos of one file hold several episodes."""
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
            pixels = transform.pixels(dict(zip(cameras, images, strict=True)))  # [C, 3, S, S]
            frames[index] = np.rint((pixels + 1.0) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool, tqdm(
            total=len(frames), desc='decode', unit='frame') as bar:
        for done in pool.map(lambda item: fill(*item), files.items()):
            bar.update(done)
        if bar.n != len(frames):
            raise ValueError(f'{reader.root}: {bar.n} images for {len(frames)} frames')
