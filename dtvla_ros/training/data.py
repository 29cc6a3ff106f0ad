"""Training data: datasets tokenised once into arrays, and their images in memory-mapped files.

N frames, P prompt ids, W thought ids, S action slots (T * D), E objects.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from tokenizers import Tokenizer
from tqdm import tqdm

from dtvla_ros.actions import grid, osc
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.data.video import read_video
from dtvla_ros.errors import UserError
from dtvla_ros.files import write_text
from dtvla_ros.policy.transform import Observation, PolicyTransform
from dtvla_ros.policy.vocabulary import ordinal_groups, word_id
from dtvla_ros.thought import Thought

STATE_TOKENS = 7  # position, tilt and opening, as in ``word_groups``
AFTER_STATE = 2  # tokens between the state tokens and the prompt's end: ';' and newline
AXES = ('x', 'y')
ABSENT = -1000  # position of an object that is not there: far from every token's index
NOWHERE = -1  # patch of an object outside the image
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenizedDataset:
    """One row per frame; ids are padded on the right.

    ``prompt`` [N, P] and ``prompt_length`` [N]; ``state`` [N, 7]: what its state tokens, if any,
    quantise (cm, tilt steps, opening in cm); ``thought`` [N, W] with tags and ``thought_length``
    [N]; ``actions`` [N, S] ids and ``action_mask`` [N, S]; ``scene`` [N]: frames of one scene stay
    together when some are held out; ``near_toggle`` and ``near_start`` [N] bool; ``intervention``
    [N] bool: a person drove; ``failed`` [N] bool: in the end the episode failed; ``positions``,
    ``unambiguous`` and ``target_patches`` of E objects as of ``locate``.
    """

    prompt: NDArray[np.int64]
    prompt_length: NDArray[np.int64]
    state: NDArray[np.float32]
    thought: NDArray[np.int64]
    thought_length: NDArray[np.int64]
    actions: NDArray[np.int64]
    action_mask: NDArray[np.bool_]
    scene: NDArray[np.int64]
    near_toggle: NDArray[np.bool_]
    near_start: NDArray[np.bool_]
    intervention: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    positions: NDArray[np.int64]
    unambiguous: NDArray[np.bool_]
    target_patches: NDArray[np.int64]


def open_demonstrations(root: Path) -> DatasetReader:
    """Return the reader of a dataset that can be learnt from. Raises ``UserError``."""
    reader = DatasetReader(root)
    features = (layout.STATE, layout.ACTION, layout.ACTION_CHUNK, layout.ACTION_IS_PAD)
    if missing := [name for name in (*features, layout.REASONING)
                   if name not in reader.info['features']]:
        how = (f'dtvla annotate writes them into {root}' if missing == [layout.REASONING] else
               f'run dtvla data convert {root} --out FOLDER')
        raise UserError(f'{root}: no feature {", ".join(missing)}; {how}')
    reader.require_offsets()
    reader.require_finite(*features[:3])
    return reader


def tokenize(readers: Sequence[DatasetReader], transform: PolicyTransform,
             objects: Sequence[str]) -> TokenizedDataset:
    """Tokenise datasets; ``objects``: E names. Raises ``UserError`` where one does not fit."""
    config = transform.config
    steps, dim = config.chunk_steps, config.action_dim
    chunk = np.concatenate([_chunks(reader, steps, dim) for reader in readers])  # [N, T, D]
    padding = np.concatenate([np.asarray(reader.column(layout.ACTION_IS_PAD))[:, :steps]
                              for reader in readers])  # [N, T]
    prompt_ids = cache(lambda task: prompt_of(transform, task))
    prompt, prompt_length = _pad([prompt_ids(reader.tasks[int(task)]) for reader in readers
                                  for task in reader.column('task_index')], config.ids.pad)
    state = np.zeros((len(prompt), STATE_TOKENS), np.float32)
    if transform.state_in_prompt:
        for reader in readers:
            reader.require_pose('position', 'rotation', 'fingers')
        pose = np.concatenate([np.asarray(r.column(layout.STATE))[:, np.concatenate(
            r.end_effector)] for r in readers])  # [N, 8] m, rad, m
        tilt = osc.tilt(Rotation.from_rotvec(pose[:, 3:6]))
        state = np.concatenate([
            pose[:, :3] * 100.0, np.degrees(tilt) / grid.TILT_STEP_DEG,
            (pose[:, 6:7] - pose[:, 7:8]) * 100.0], axis=1).astype(np.float32)
        StateIds(transform).write(prompt, prompt_length, state)
    encode = cache(transform.encode_thought)
    thought, thought_length = _pad([encode(text) for reader in readers
                                    for text in reader.column(layout.REASONING)], config.ids.pad)

    # Frames whose chunk changes the gripper, and the two after a change.
    frame = np.concatenate([reader.column('frame_index') for reader in readers])
    closing = transform.contract.closes(chunk)  # [N, T]
    same = frame[1:] > 0  # the episode of the frame before
    before = np.zeros(len(chunk), bool)
    before[1:] = same & (closing[1:, 0] != closing[:-1, 0])
    near = (closing != closing[:, :1]).any(1) | before
    near[1:] |= same & before[:-1]

    actions = transform.encode_actions(chunk)  # [N, T * D]
    rate = np.repeat([reader.fps for reader in readers], [len(r.table) for r in readers])
    places = [locate(reader, objects, config.vision.tokens[0]) for reader in readers]
    return TokenizedDataset(
        prompt, prompt_length, state, thought, thought_length, actions,
        np.repeat(~padding, dim, axis=1), _scenes(readers), near, frame / rate < 0.6,
        np.concatenate([_interventions(reader) for reader in readers]),
        np.concatenate([_failed(reader) for reader in readers]),
        *map(np.concatenate, zip(*places, strict=True)))


def _interventions(reader: DatasetReader) -> NDArray[np.bool_]:
    """Return of each frame [N] whether a person drove; none where the dataset does not say."""
    if layout.INTERVENTION not in reader.info['features']:
        return np.zeros(len(reader.table), bool)
    return np.asarray(reader.column(layout.INTERVENTION), bool).reshape(-1)


def _failed(reader: DatasetReader) -> NDArray[np.bool_]:
    """Return of each frame [N] whether its episode failed; not where nobody told."""
    return np.repeat([reader.success(k) is False for k in range(len(reader.episodes))],
                     reader.lengths).astype(bool)


def _chunks(reader: DatasetReader, steps: int, dim: int) -> NDArray[np.float32]:
    """Return the first ``steps`` actions of a dataset's chunks [N, steps, dim]."""
    chunk = np.asarray(reader.column(layout.ACTION_CHUNK)).reshape(len(reader.table), -1, dim)
    if chunk.shape[1] < steps:
        raise UserError(f'{reader.root}: chunks of {chunk.shape[1]} actions, the policy makes '
                        f'{steps}; collect again with --chunk {steps}')
    return chunk[:, :steps]


def _pad(rows: Sequence[Sequence[int]], value: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.array([len(row) for row in rows])
    out = np.full((len(rows), lengths.max()), value, np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return out, lengths


def _scenes(readers: Sequence[DatasetReader]) -> NDArray[np.int64]:
    """Return the scene that each frame [N] shows; several episodes of a dataset may show one."""
    number: dict[tuple[int, object], int] = {}
    scenes: list[int] = []
    for k, reader in enumerate(readers):
        for episode, length in enumerate(reader.lengths):
            scene = reader.metadata(episode).get('index', f'episode {episode}')
            scenes += [number.setdefault((k, scene), len(number))] * length
    return np.array(scenes)


def thing_names(reader: DatasetReader) -> set[str]:
    """Return what a dataset's thoughts call things, with blanks as the policy writes them."""
    found = {thought for text in set(reader.column(layout.REASONING))
             if (thought := Thought.parse(text)) is not None}
    return {name.replace('_', ' ') for thought in found
            for name in (thought.held, thought.done, thought.object) if name}


def says_done(reader: DatasetReader) -> bool:
    """Return whether any of a dataset's thoughts says that the task is complete."""
    return any(' wait ' in text and (thought := Thought.parse(text)) is not None
               and thought.finished for text in reader.column(layout.REASONING))


def location_spans(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Return (first, last) ids of the x, y and z tokens; none for a released vocabulary."""
    known = any(tokenizer.token_to_id(word) is not None for word in grid.word_groups()['x'])
    return ordinal_groups(tokenizer) if known else []


def prompt_of(transform: PolicyTransform, task: str) -> list[int]:
    """Return a task's prompt ids, the state tokens standing for some pose."""
    return transform.prompt_ids(
        task, Observation({}, {}, np.zeros(3), osc.HOME.as_quat(), 0.0, task, 0.0))


class StateIds:
    """Ids of the seven state tokens for whole batches, by arithmetic instead of text."""

    def __init__(self, transform: PolicyTransform):
        groups = [[word_id(transform.tokenizer, word) for word in words]
                  for words in grid.word_groups().values()]
        if any(np.diff(ids).tolist() != [1] * (len(ids) - 1) for ids in groups):
            raise UserError('tokenizer: the state words are not contiguous; build it again')
        self._first, last = np.array([(ids[0], ids[-1]) for ids in groups]).T
        self._low = np.array([  # the lowest value of each group, in steps
            *(low for low, _ in grid.CM_RANGE.values()),
            *(-(limit // grid.TILT_STEP_DEG) for limit in grid.TILT_LIMIT_DEG.values()), 0])
        self._high = self._low + last - self._first

    def write(self, prompt: NDArray[np.int64], length: NDArray[np.int64],
              state: NDArray[np.floating]) -> None:
        """Write the tokens of ``TokenizedDataset.state`` [B, 7] into prompts of lengths [B]."""
        scale = np.array([1.0] * 6 + [10.0 / grid.OPENING_STEP_MM])  # tokens count mm
        steps = np.clip(np.rint(state * scale).astype(np.int64), self._low, self._high)
        columns = length[:, None] - AFTER_STATE - STATE_TOKENS + np.arange(STATE_TOKENS)
        np.put_along_axis(prompt, columns, self._first - self._low + steps, axis=1)


def object_names(readers: Sequence[DatasetReader]) -> tuple[str, ...]:
    """Return all objects whose positions any of the datasets holds."""
    return tuple(dict.fromkeys(name for reader in readers for name in _own_objects(reader)))


def _own_objects(reader: DatasetReader) -> list[str]:
    return [name[:-2] for name in reader.channels(layout.PLACES) if name.endswith('.x')]


def class_name(name: str) -> str:
    """Return what a thought calls an object: its name in words, without a number."""
    return re.sub(r'_\d+$', '', name).replace('_', ' ')


def locate(reader: DatasetReader, objects: Sequence[str],
           tokens: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return where the E ``objects`` are in each of a dataset's N frames.

    Positions [N, E, 2]: index of an object's x and y token in its group, by the feature
    ``observation.places`` [m, base frame]; ``ABSENT`` for one that is not in the scene, or of
    which the dataset says nothing (a real robot's). Bool [N, E]: whether it is there, alone of its
    class. Patches [N, E]: which of the first camera's ``tokens`` patches, a square grid counted
    row by row, it appears in by ``observation.image_points``, fractions of the image from its
    upper left corner across and down; ``NOWHERE`` outside, or without that feature.
    """
    own = _own_objects(reader)

    def column(feature: str, width: int) -> NDArray[np.float32]:
        out = np.full((len(reader.table), len(objects), width), np.nan, np.float32)
        if feature in reader.info['features'] and own and objects:
            out[:, [list(objects).index(name) for name in own]] = np.asarray(
                reader.column(feature)).reshape(len(out), len(own), width)
        return out

    metres, points = column(layout.PLACES, 3)[..., :2], column(layout.POINTS, 2)  # [N, E, 2]
    here = np.asarray(~np.isnan(metres).any(-1))
    low, high = np.array([grid.CM_RANGE[axis] for axis in AXES]).T
    index = np.clip(np.rint(np.nan_to_num(metres) * 100.0).astype(np.int64), low, high) - low
    names = np.array([class_name(name) for name in objects])
    same = (names[:, None] == names).astype(np.int64)  # [E, E]
    side = math.isqrt(tokens)
    cell = np.floor(np.nan_to_num(points, nan=-1.0) * side).astype(np.int64)
    inside = ((cell >= 0) & (cell < side)).all(-1)
    return (np.where(here[..., None], index, ABSENT), here & (here.astype(np.int64) @ same == 1),
            np.where(inside, cell[..., 1] * side + cell[..., 0], NOWHERE))


def have_points(readers: Sequence[DatasetReader]) -> bool:
    """Return whether any dataset says where objects appear in the image; warn of those without."""
    lacking = [str(reader.root) for reader in readers
               if not {layout.PLACES, layout.POINTS} <= set(reader.info['features'])]
    if lacking:
        LOG.warning('%s: without %s attention is not supervised; collect again to have it',
                    ', '.join(lacking), layout.POINTS)
    return len(lacking) < len(readers)


def open_frames(reader: DatasetReader, transform: PolicyTransform) -> NDArray[np.uint8]:
    """Return a dataset's images [N, C, S, S, 3] as the policy sees them, memory-mapped.

    Training and the node resize alike. Decoded once into ``.frames`` of the dataset, and again
    when dataset, size or cameras change; into memory where the dataset cannot be written.
    """
    vision = transform.config.vision
    shape = (len(reader.table), len(vision.cameras), *[vision.image_size] * 2, 3)
    stamp = {'shape': list(shape), 'cameras': list(vision.cameras),
             'dataset': (reader.root / layout.INFO).stat().st_mtime_ns,
             **({'mirrored': True} if transform.mirrored else {})}
    folder = reader.root / '.frames'
    path, made = folder / 'frames.u8', folder / 'frames.json'
    if not (made.exists() and json.loads(made.read_text()) == stamp):
        part = folder / f'frames.{os.getpid()}.part'  # another run may be reading the old file
        try:
            folder.mkdir(exist_ok=True)
            with part.open('wb') as file:  # or the first page that does not fit would kill us
                os.posix_fallocate(file.fileno(), 0, max(math.prod(shape), 1))
        except OSError:
            with suppress(OSError):
                part.unlink()
            kept = np.empty(shape, np.uint8)
            _decode(reader, transform, kept)
            return kept
        try:
            frames = np.memmap(part, np.uint8, 'r+', shape=shape)
            _decode(reader, transform, frames)
            frames.flush()
            made.unlink(missing_ok=True)
            part.replace(path)
            write_text(made, json.dumps(stamp))
        finally:
            part.unlink(missing_ok=True)
    return np.memmap(path, np.uint8, 'r', shape=shape)


def _decode(reader: DatasetReader, transform: PolicyTransform, frames: NDArray[np.uint8]) -> None:
    """Fill ``frames``; the videos of one file hold several episodes."""
    keys = {layout.camera_of(key): key for key in reader.video_keys}
    cameras = transform.config.vision.cameras
    if missing := [name for name in cameras if name not in keys]:
        raise UserError(f'{reader.root}: no video of the camera {missing[0]} among '
                        f'{", ".join(keys) or "none"}; run dtvla data convert {reader.root} --out '
                        'FOLDER, with --rename where it is called otherwise')
    files: dict[tuple[Path, ...], list[int]] = {}
    for number in range(len(reader.episodes)):
        places = [reader.video_path(number, keys[name]) for name in cameras]
        rows, span = files.setdefault(tuple(path for path, _ in places), []), reader.span(number)
        for path, begin in places:
            if abs(begin - len(rows) / reader.fps) > 0.5 / reader.fps:
                raise UserError(f'{path}: episode {number} begins at {begin:g} s, after '
                                f'{len(rows)} images; run dtvla data convert {reader.root} --out '
                                'FOLDER')
        rows += range(span.start, span.stop)

    def fill(paths: tuple[Path, ...]) -> int:
        done = 0
        for index, *images in zip(files[paths], *map(read_video, paths), strict=False):
            for name, path, image in zip(cameras, paths, images, strict=True):
                reader.require_size(image, keys[name], path)
            pixels = transform.pixels(dict(zip(cameras, images, strict=True)))  # [C, 3, S, S]
            frames[index] = np.rint((pixels + 1.0) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
            done += 1
        if done != len(files[paths]):
            raise UserError(f'{" or ".join(map(str, paths))}: {done} images for '
                            f'{len(files[paths])} rows; copy or record these episodes again')
        return done

    with ThreadPoolExecutor(2) as pool, tqdm(
            total=len(frames), desc='decode', unit='frame') as bar:
        for done in pool.map(fill, files):
            bar.update(done)
