"""Trains a labeller on accepted labels and writes a thought for every frame.

Labels become classes: objects are named by their part in the task, so that "carry #1 while holding
#0" is one class whatever the instruction's first and second object are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from dtvla_ros.annotation.checks import COMMANDED_CLOSED, COMMANDED_OPEN, agreement, show_agreement
from dtvla_ros.annotation.question import FIELDS, Labels, Semantics, write_thoughts
from dtvla_ros.annotation.source import Goal, Motion, Source
from dtvla_ros.data import layout
from dtvla_ros.data.writer import link_or_copy
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.results import Rate
from dtvla_ros.files import write_json
from dtvla_ros.interrupt import resumable

PROVENANCE = 'meta/annotation.json'
Key = tuple[str, ...]
NAMED = tuple(FIELDS.index(name) for name in ('holding', 'done', 'object'))
SWITCH = -1.0  # log-probability of another class at the next frame, if that was ever seen ...
NEVER = -8.0  # ... and if it never was
IMPOSSIBLE = -1e9
VERBS = ('put', 'place', 'pick', 'stack', 'push')
OBJECTS = 3  # of an instruction, whose places are features
HORIZON = 4.0  # [s]
Targets = Mapping[int, Mapping[int, int]]  # episode -> frame -> class


def _generic(label: Semantics, goal: Goal) -> Key:
    return tuple(f'#{goal.names.index(word)}' if k in NAMED and word in goal.names else word
                 for k, word in enumerate(label.key()))


@dataclass(frozen=True)
class Classes:
    """The classes of accepted labels, and which followed which ([C, C] bool)."""

    keys: tuple[Key, ...]
    follows: NDArray[np.bool_]

    @classmethod
    def of(cls, accepted: Mapping[int, Labels], goals: Mapping[int, Goal]) -> Classes:
        """Collect the classes of accepted labels by episode."""
        rows = [[_generic(label, goals[k]) for _, label in labels]
                for k, labels in accepted.items()]
        keys = tuple(sorted({key for row in rows for key in row}))
        follows = np.eye(len(keys), dtype=bool)
        for a, b in chain.from_iterable(map(pairwise, rows)):
            follows[keys.index(a), keys.index(b)] = True
        return cls(keys, follows)

    def number(self, label: Semantics, goal: Goal) -> int:
        """Return the class of a label that was among the accepted ones."""
        return self.keys.index(_generic(label, goal))

    def label(self, number: int, goal: Goal, reason: str = '') -> Semantics:
        """Return a class in an episode's own names."""
        words = [goal.names[int(word[1:])] if word.startswith('#') else word
                 for word in self.keys[number]]
        return Semantics.model_validate(dict(zip(FIELDS, words)) | {'reason': reason})

    def fits(self, goal: Goal) -> NDArray[np.bool_]:
        """Return which classes [C] name only objects that the episode has."""
        count = len(goal.names)
        return np.array([all(int(key[k][1:]) < count for k in NAMED if key[k].startswith('#'))
                         for key in self.keys])

    def best_path(self, scores: NDArray[np.floating], goal: Goal, closing: NDArray[np.bool_],
                  known: Mapping[int, int]) -> NDArray[np.int64]:
        """Return the likeliest class of each frame [N], by Viterbi's algorithm.

        ``scores`` [N, C]: log-probabilities; ``closing`` [N]: the gripper command, which no phase
        may contradict; ``known``: certain classes. Changes cost, more so those never seen.
        """
        closed, opened = (
            np.array([key[FIELDS.index('phase')] in commanded for key in self.keys])
            for commanded in (COMMANDED_CLOSED, COMMANDED_OPEN))
        contradicts = np.where(closing[:, None], opened, closed)
        emission = np.where(self.fits(goal) & ~contradicts, scores, IMPOSSIBLE)
        for frame, number in known.items():
            emission[frame] = IMPOSSIBLE
            emission[frame, number] = 0.0
        step = np.where(self.follows, SWITCH, NEVER)
        np.fill_diagonal(step, 0.0)
        value = emission[0]
        back = np.zeros(emission.shape, np.int64)
        for frame in range(1, len(emission)):
            arrivals = value[:, None] + step
            back[frame] = arrivals.argmax(0)
            value = arrivals.max(0) + emission[frame]
        path = [value.argmax()]
        for step_back in back[:0:-1]:
            path.append(step_back[path[-1]])
        return np.array(path[::-1])


class Labeller(Protocol):
    """Learns the ``targets``, then returns log-probabilities [N, C] of an episode's frames."""

    name: str

    def fit(self, source: Source, classes: Classes, targets: Targets) -> None: ...

    def scores(self, source: Source, episode: int) -> NDArray[np.float64]: ...


def features(motion: Motion, goal: Goal) -> NDArray[np.float32]:
    """Return the features of each frame [N, F]: past, present and future motion, and the task."""
    count, position, toggles = len(motion), motion.position, motion.toggles
    frames = np.arange(count)
    ahead = np.searchsorted(toggles, frames, side='right')
    next_at = np.append(toggles, count - 1)[ahead]
    last_at = np.concatenate([[0], toggles])[ahead]
    second = max(1, round(motion.fps))
    columns = [position, position - position[next_at], position - position[last_at]]
    for shift in (-second, -1, 1, second):
        columns.append(position[np.clip(frames + shift, 0, count - 1)] - position)
    opening = np.ones(count) if motion.opening is None else (
        motion.opening / max(motion.widest, 1e-6))
    seconds = np.minimum(np.stack([next_at - frames, frames - last_at, count - frames, frames]) /
                         motion.fps, HORIZON)
    flags = [opening, motion.closing, motion.is_wide(), np.minimum(ahead, 5), *seconds,
             *(np.full(count, goal.verb == verb) for verb in VERBS),
             np.full(count, len(goal.objects))]
    for k in range(OBJECTS):
        place = motion.places.get(goal.names[k] if k < len(goal.names) else '')
        columns.append(np.zeros((count, 3)) if place is None else place - position)
        flags.append(np.full(count, place is not None))
    return np.concatenate(
        [*columns, np.stack(flags, axis=1).astype(np.float64)], axis=1).astype(np.float32)


class _Network(nn.Module):
    """Dilated convolutions over time, as matrix products: much faster on a CPU."""

    gaps = (1, 2, 4)  # frames to the neighbours a layer sees

    def __init__(self, inputs: int, classes: int, width: int = 64):
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(nn.Linear(3 * width, width) for _ in self.gaps)
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)  # [B, N, F] -> [B, N, width]
        for gap, layer in zip(self.gaps, self.layers):
            padded = nn.functional.pad(x, (0, 0, gap, gap))
            around = torch.cat([padded[:, :-2 * gap], x, padded[:, 2 * gap:]], dim=-1)
            x = x + self.drop(nn.functional.gelu(layer(around)))
        return self.last(x)  # [B, N, C]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: of products so small, others only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class MotionLabeller:
    """A temporal convolutional network on `features`; trains in seconds on a CPU."""

    name = 'motion'

    def __init__(self, steps: int = 600, batch: int = 16, seed: int = 0):
        self._steps, self._batch, self._seed = steps, batch, seed

    def fit(self, source: Source, classes: Classes, targets: Targets) -> None:
        rng = np.random.default_rng(self._seed)
        rows = {k: features(source.motion(k), source.goal(k)) for k in targets}
        together = np.concatenate(list(rows.values()))
        self._mean, self._scale = together.mean(0), together.std(0) + 1e-3
        with torch.random.fork_rng(), _one_thread():
            torch.manual_seed(self._seed)
            self._network = _Network(together.shape[1], len(classes.keys)).train()
            optimizer = torch.optim.AdamW(self._network.parameters(), 3e-3, weight_decay=0.01)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._steps)
            names = np.array(sorted(targets))
            for _ in tqdm(range(self._steps), desc='labeller', unit='step', disable=None):
                chosen = rng.choice(names, min(self._batch, len(names)), replace=False)
                x = pad_sequence([self._normalised(rows[k]) for k in chosen], batch_first=True)
                y = torch.full(x.shape[:2], -1)  # unknown
                for row, k in zip(y, chosen):
                    row[list(targets[k])] = torch.tensor(list(targets[k].values()))
                loss = cross_entropy(self._network(x).flatten(0, 1), y.flatten(), ignore_index=-1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self._network.eval()

    def _normalised(self, row: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy((row - self._mean) / self._scale)

    def scores(self, source: Source, episode: int) -> NDArray[np.float64]:
        x = self._normalised(features(source.motion(episode), source.goal(episode)))
        with torch.inference_mode():
            return self._network(x[None])[0].log_softmax(-1).double().numpy()


def learn(source: Source, accepted: Mapping[int, Labels], labeller: Labeller,
          held_out: float = 0.2, seed: int = 0) -> tuple[Classes, dict[str, Rate]]:
    """Train ``labeller``; return its agreement on key frames of a share ``held_out`` of episodes.

    Raises ``UserError`` when none would be held out, or none left.
    """
    order = np.random.default_rng(seed).permutation(sorted(accepted)).tolist()
    if not 0 < (held := round(held_out * len(order))) < len(order):
        raise UserError(f'{len(order)} accepted episodes and --held-out {held_out}: at least one '
                        'must be left on either side; accept more')
    goals = {k: source.goal(k) for k in accepted}
    classes = Classes.of(accepted, goals)
    labeller.fit(source, classes, {
        k: {frame: classes.number(label, goals[k]) for frame, label in accepted[k]}
        for k in sorted(order[held:])})
    pairs = []
    for episode in tqdm(sorted(order[:held]), desc='held out', unit='episode', disable=None):
        path = classes.best_path(labeller.scores(source, episode), goals[episode],
                                 source.motion(episode).closing, {})
        pairs += [(classes.label(int(path[frame]), goals[episode]), label)
                  for frame, label in accepted[episode]]
    return classes, agreement(pairs)


def thoughts(source: Source, episode: int, classes: Classes, labeller: Labeller,
             known: Labels, reason: bool) -> tuple[list[str], list[str]]:
    """Return thought and phase of every frame; accepted labels stand as they are."""
    motion, goal = source.motion(episode), source.goal(episode)
    certain = {frame: classes.number(label, goal) for frame, label in known}
    path = classes.best_path(labeller.scores(source, episode), goal, motion.closing, certain)
    given, labels = {frame: label.reason for frame, label in known}, []
    for frame, number in enumerate(path):
        if number == path[frame - 1]:  # else nobody gave a reason for this
            given.setdefault(frame, given.get(frame - 1, ''))
        labels.append(classes.label(int(number), goal, given.get(frame, '')))
    return write_thoughts(motion, labels, reason), [label.phase for label in labels]


def fill(source: Source, accepted: Mapping[int, Labels], labeller: Labeller, to: Path,
         held_out: float = 0.2, seed: int = 0, reason: bool = False,
         json_file: Path | None = None) -> dict[str, Any]:
    """Write a copy of the dataset whose ``reasoning`` is filled; print and return the outcome.

    ``held_out``: share of the accepted episodes the labeller never learns from, drawn with
    ``seed``. ``reason``: write each key frame's reason before its thought, and before those it
    holds for. Raises ``UserError`` when ``to`` exists.
    """
    if to.exists():
        raise UserError(f'{to} exists; choose another folder, nothing is written in place')
    with resumable(lambda: f'interrupted; {to} is not there'):
        return _fill(source, accepted, labeller, to, held_out, seed, reason, json_file)


def _fill(source: Source, accepted: Mapping[int, Labels], labeller: Labeller, to: Path,
          held_out: float, seed: int, reason: bool, json_file: Path | None) -> dict[str, Any]:
    classes, rates = learn(source, accepted, labeller, held_out, seed)
    columns: dict[str, list[str]] = {layout.REASONING: [], layout.PHASE: []}
    for episode in tqdm(range(len(source)), desc='fill', unit='episode', disable=None):
        filled = thoughts(source, episode, classes, labeller, accepted.get(episode, ()), reason)
        for column, texts in zip(columns.values(), filled):
            column += texts
    certain = sum(map(len, accepted.values()))
    provenance = {
        'source': source.fingerprint, 'labeller': labeller.name, 'classes': len(classes.keys),
        'accepted_frames': certain, 'filled_frames': len(columns[layout.PHASE]) - certain,
        'held_out': {name: rate.to_dict() for name, rate in rates.items()}}
    _write(source, to, columns, provenance)
    show_agreement(
        f'{labeller.name} and accepted labels on key frames of held-out episodes', rates)
    print(f'{to}: {certain} frames as accepted, {provenance["filled_frames"]} filled')
    write_json(json_file, provenance)
    return provenance


def _write(source: Source, out: Path, columns: Mapping[str, list[str]],
           provenance: Mapping[str, Any]) -> None:
    """Copy the dataset with new text columns; the folder appears when it is complete."""
    work = out.with_name(f'.{out.name}.{os.getpid()}')
    try:
        shutil.copytree(source.root / 'meta', work / 'meta')
        for path in (source.root / 'videos').rglob('*.mp4'):
            link_or_copy(path, work / path.relative_to(source.root))
        reader = source.reader
        starts = np.array([reader.span(k).start for k in range(len(source))])
        for path in dict.fromkeys(map(reader.data_path, range(len(source)))):
            table = pq.read_table(path)
            index = starts[np.asarray(table.column('episode_index')).astype(int)] + (
                np.asarray(table.column('frame_index')).astype(int))
            for name, texts in columns.items():
                at = table.schema.get_field_index(name)
                place = table.append_column if at < 0 else partial(table.set_column, at)
                table = place(name, pa.array([texts[k] for k in index], pa.string()))
            target = work / path.relative_to(source.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, target, compression='snappy')
        info = json.loads((work / layout.INFO).read_text())
        for name in columns:
            info['features'][name] = {'dtype': 'string', 'shape': [1], 'names': None}
        write_json(work / layout.INFO, info)
        write_json(work / PROVENANCE, provenance)
        os.replace(work, out)
    except OSError as error:
        raise UserError(f'cannot write {out}: {error}; choose another folder') from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
