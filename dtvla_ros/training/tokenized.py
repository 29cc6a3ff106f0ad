"""Everything of a dataset but the images, tokenised once and kept in arrays.

N frames, P prompt ids, W thought ids, S action slots (T * D).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from tokenizers import Tokenizer

from dtvla_ros.actions.grid import word_groups
from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import HOME, Observation, PolicyTransform
from dtvla_ros.policy.vocabulary import ordinal_groups, word_id
from dtvla_ros.training.auxiliary.attention import thing_patches
from dtvla_ros.training.auxiliary.localisation import place_targets, told_apart

AFTER_STATE = 2  # tokens between the state words and the prompt's end: ';' and newline
IDS = ('prompt', 'thought')  # padded to their longest row
STATE_GROUPS = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'g')


@dataclass(frozen=True, slots=True)
class Samples:
    """One row per frame; ids are padded on the right.

    ``prompt`` [N, P] and ``prompt_length`` [N]; ``state_at`` [N]: column of the first of the
    seven state words (0 when the prompt has none); ``state`` [N, 7]: what they quantise (cm,
    tilt steps, opening in cm); ``thought`` [N, W] with tags and ``thought_length`` [N];
    ``actions`` [N, S] ids and ``action_mask`` [N, S]; ``scene`` [N]: frames of
    one scene stay together when some are held out; ``near_toggle`` and
    ``near_start`` [N] bool; ``places`` [N, E, 2]: index of each thing's x and y word in its group
    (``ABSENT`` for one that is not there, E = 0 when no dataset says); ``told_apart`` [N, E] bool:
    whether its name means it alone; ``patches`` [N, E]: the first camera's patch it appears in
    (see ``thing_patches``).
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
    places: NDArray[np.int64]
    told_apart: NDArray[np.bool_]
    patches: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompt)


def place_spans(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Return ``ordinal_groups``, none for a vocabulary without location words (a released one)."""
    words = word_groups()['x']
    known = any(tokenizer.token_to_id(word) is not None for word in words)
    return ordinal_groups(tokenizer) if known else []


def state_steps(state: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [N, 7] in word steps of ``observation.state`` [N, 8] (m, rad, m)."""
    from dtvla_ros.actions.grid import TILT_STEP_DEG

    tilt = (Rotation.from_rotvec(state[:, 3:6]) * HOME.inv()).as_rotvec()
    return np.concatenate([
        state[:, :3] * 100.0, np.degrees(tilt) / TILT_STEP_DEG,
        (state[:, 6:7] - state[:, 7:8]) * 100.0], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class StateWords:
    """Ids of the seven state words for whole batches, by arithmetic instead of text."""

    first: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    scale: NDArray[np.float64]  # words per step of ``Samples.state``

    @classmethod
    def of(cls, transform: PolicyTransform) -> StateWords:
        """Look the words up in the policy's tokenizer."""
        from dtvla_ros.actions import grid

        groups = word_groups()
        steps = {f'r{axis}': limit // grid.TILT_STEP_DEG
                 for axis, limit in grid.TILT_LIMIT_DEG.items()}
        ranges = {**grid.CM_RANGE, **{name: (-k, k) for name, k in steps.items()},
                  'g': (0, len(groups['g']) - 1)}
        scale = np.ones(len(STATE_GROUPS))
        scale[-1] = 10.0 / grid.OPENING_STEP_MM
        ids = [[word_id(transform.tokenizer, word) for word in groups[name]]
               for name in STATE_GROUPS]
        for name, group in zip(STATE_GROUPS, ids, strict=True):
            if group != list(range(group[0], group[0] + len(group))):
                raise UserError(f'tokenizer: the {name} words are not contiguous; build it again')
        low, high = zip(*(ranges[name] for name in STATE_GROUPS), strict=True)
        return cls(np.array([group[0] for group in ids]), np.array(low), np.array(high), scale)

    def ids(self, steps: NDArray[np.floating]) -> NDArray[np.int64]:
        """[B, 7] as in ``Samples.state`` -> ids [B, 7]."""
        words = np.rint(steps * self.scale).astype(np.int64)
        return self.first - self.low + np.clip(words, self.low, self.high)


def _pad(rows: Sequence[Sequence[int]], value: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.array([len(row) for row in rows])
    out = np.full((len(rows), lengths.max()), value, np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return out, lengths


def build_samples(
    reader: DatasetReader, transform: PolicyTransform, things: Sequence[str],
) -> Samples:
    """Tokenise a dataset; ``things``: E names (see ``thing_names``), none: no place is read.

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
    frame = np.asarray(reader.column('frame_index'))

    heads = [prompt_of(transform, task) for task in reader.tasks]
    prompt, prompt_length = _pad(
        [heads[int(task)] for task in reader.column('task_index')], config.ids.pad)
    state_at = np.zeros(len(prompt), np.int64)
    values = np.zeros((len(prompt), len(STATE_GROUPS)), np.float32)
    if transform.state_in_prompt:
        values = state_steps(np.asarray(reader.column(layout.STATE)))
        words = StateWords.of(transform)
        state_at = prompt_length - AFTER_STATE - len(STATE_GROUPS)
        columns = state_at[:, None] + np.arange(len(STATE_GROUPS))
        np.put_along_axis(prompt, columns, words.ids(values), axis=1)
    thought, thought_length = _pad(
        list(map(cache(transform.encode_thought), reader.column(layout.REASONING))),
        config.ids.pad)

    closing = chunk[..., -1] > 0  # [N, T]
    changes = (closing != closing[:, :1]).any(1)
    before = np.zeros(len(chunk), bool)
    same = episode[1:] == episode[:-1]
    before[1:] = same & (closing[1:, 0] != closing[:-1, 0])
    near = changes | before
    near[1:] |= same & before[:-1]
    actions = transform.codec.encode(transform.statistics.normalize(chunk))
    places = np.zeros((len(prompt), 0, 2), np.int64)
    patches = np.zeros((len(prompt), 0), np.int64)
    if things:
        places = place_targets(reader, things)
        patches = thing_patches(reader, things, config.vision.tokens[0])
    return Samples(
        prompt=prompt, prompt_length=prompt_length, state_at=state_at, state=values,
        thought=thought, thought_length=thought_length,
        actions=actions.reshape(len(actions), -1),
        action_mask=np.repeat(~padding, dim, axis=1), scene=_scenes(reader)[episode],
        near_toggle=near, near_start=frame / reader.fps < 0.6, places=places,
        told_apart=told_apart(places, things), patches=patches)


def _scenes(reader: DatasetReader) -> NDArray[np.int64]:
    """Return the scene [episodes] that each episode shows: several may show one."""
    facts = [json.loads(row.get('facts') or '{}') for row in reader.episodes]
    keys = [fact.get('index', f'episode {k}') for k, fact in enumerate(facts)]
    number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys])


def prompt_of(transform: PolicyTransform, task: str) -> list[int]:
    """Return a task's prompt ids, the state words standing for some pose."""
    somewhere = Observation(
        images={}, joint_positions={}, ee_position=np.zeros(3), ee_quaternion=HOME.as_quat(),
        gripper_opening=0.0, instruction=task, stamp=0.0)
    return transform.prompt_ids(task, somewhere)


def join(parts: Sequence[Samples], pad: int) -> Samples:
    """Concatenate datasets made for the same things; scenes are numbered through."""
    offset, shifted = 0, []
    for part in parts:
        shifted.append(part.scene + offset)
        offset += int(part.scene.max()) + 1

    def column(name: str) -> NDArray:
        if name == 'scene':
            return np.concatenate(shifted)
        arrays = [getattr(part, name) for part in parts]
        if name not in IDS:
            return np.concatenate(arrays)
        width = max(a.shape[1] for a in arrays)
        return np.concatenate([
            np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=pad) for a in arrays])

    return Samples(**{f.name: column(f.name) for f in fields(Samples)})
