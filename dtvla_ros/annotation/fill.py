"""Stage two: a local labeller learns accepted labels and writes a thought for every frame."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from dtvla_ros.annotation.agreement import agreement
from dtvla_ros.annotation.classes import Classes
from dtvla_ros.annotation.labeller import Labeller, Targets
from dtvla_ros.annotation.schema import Semantics
from dtvla_ros.annotation.source import Source
from dtvla_ros.annotation.thought import moves_of, place_of, write_thought
from dtvla_ros.data import layout
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.statistics import Rate
from dtvla_ros.files import write_json

Accepted = Mapping[int, Sequence[tuple[int, Semantics]]]
PROVENANCE = 'meta/annotation.json'


@dataclass(frozen=True, slots=True)
class FillOptions:
    """``held_out``: share of the accepted episodes the labeller never learns from.

    ``reason``: write each key frame's reason before its thought, and before those it holds for.
    """

    held_out: float = 0.2
    seed: int = 0
    reason: bool = False


def split(accepted: Accepted, options: FillOptions) -> tuple[list[int], list[int]]:
    """Return episodes to learn from, and held-out ones.

    Raises ``UserError`` when either would be empty.
    """
    order = np.random.default_rng(options.seed).permutation(sorted(accepted)).tolist()
    held = round(options.held_out * len(order))
    if not 0 < held < len(order):
        raise UserError(f'{len(order)} accepted episodes and --held-out {options.held_out}: at '
                        'least one must be left on either side; accept more')
    return sorted(order[held:]), sorted(order[:held])


def learn(source: Source, accepted: Accepted, labeller: Labeller,
          options: FillOptions) -> tuple[Classes, dict[str, Rate]]:
    """Teach ``labeller`` and return its agreement on key frames of held-out episodes.

    It is told nothing about those episodes, not even their other key frames.
    """
    goals = {k: source.goal(k) for k in accepted}
    classes = Classes.of(accepted, goals)
    taught, held = split(accepted, options)
    targets: Targets = {
        k: {frame: classes.number(label, goals[k]) for frame, label in accepted[k]}
        for k in taught}
    labeller.fit(source, classes, targets)
    pairs = []
    for episode in tqdm(held, desc='held out', unit='episode', disable=None):
        path = classes.best_path(labeller.scores(source, episode), goals[episode],
                                 source.motion(episode).closing, {})
        pairs += [(classes.label(int(path[frame]), goals[episode]), label)
                  for frame, label in accepted[episode]]
    return classes, agreement(pairs)


def thoughts(source: Source, episode: int, classes: Classes, labeller: Labeller,
             known: Sequence[tuple[int, Semantics]], reason: bool) -> tuple[list[str], list[str]]:
    """Return thought and phase of every frame; accepted labels stand as they are."""
    motion, goal = source.motion(episode), source.goal(episode)
    certain = {frame: classes.number(label, goal) for frame, label in known}
    path = classes.best_path(labeller.scores(source, episode), goal, motion.closing, certain)
    reasons = dict(known)
    labels: list[Semantics] = []
    told = ''
    for frame, number in enumerate(path):
        if frame in reasons:
            told = reasons[frame].reason
        elif number != path[frame - 1]:
            told = ''  # nobody gave one for this
        labels.append(classes.label(int(number), goal, told))
    phases = [label.phase for label in labels]
    moves = moves_of(motion, phases)
    texts = [write_thought(label, place_of(motion, frame, label), moves[frame], reason)
             for frame, label in enumerate(labels)]
    return texts, phases


def fill(source: Source, accepted: Accepted, labeller: Labeller, out: Path,
         options: FillOptions) -> dict[str, Any]:
    """Write a copy of the dataset whose ``reasoning`` is filled; return what was done.

    Raises ``UserError`` when ``out`` exists, or the dataset is not of version 3.0.
    """
    if out.exists():
        raise UserError(f'{out} exists; choose another folder, nothing is written in place')
    if source.reader.info['codebase_version'] != layout.VERSION:
        raise UserError(f'{source.root}: LeRobot {source.reader.info["codebase_version"]}; '
                        'convert it to v3.0 first with dtvla data convert')
    classes, rates = learn(source, accepted, labeller, options)
    texts: list[str] = []
    phases: list[str] = []
    for episode in tqdm(range(len(source)), desc='fill', unit='episode', disable=None):
        more = thoughts(source, episode, classes, labeller, accepted.get(episode, ()),
                        options.reason)
        texts += more[0]
        phases += more[1]
    certain = sum(map(len, accepted.values()))
    facts = {
        'source': source.fingerprint, 'labeller': labeller.name, 'classes': len(classes),
        'accepted_frames': certain, 'filled_frames': len(texts) - certain,
        'held_out': {name: rate.to_dict() for name, rate in rates.items()}}
    _write(source, out, {layout.REASONING: texts, layout.PHASE: phases}, facts)
    return facts | {'rates': rates}


def _link(origin: str, target: str) -> None:
    try:
        os.link(origin, target)
    except OSError:
        shutil.copyfile(origin, target)


def _write(source: Source, out: Path, columns: Mapping[str, list[str]],
           facts: Mapping[str, Any]) -> None:
    """Copy the dataset with new text columns; the folder appears when it is complete."""
    work = out.with_name(f'.{out.name}.{os.getpid()}')
    try:
        shutil.copytree(source.root / 'meta', work / 'meta')
        if (source.root / 'videos').is_dir():
            shutil.copytree(source.root / 'videos', work / 'videos', copy_function=_link)
        for path in sorted((source.root / 'data').glob('*/*.parquet')):
            table = pq.read_table(path)
            index = np.asarray(table.column('index'))
            for name, texts in columns.items():
                column = pa.array([texts[k] for k in index], pa.string())
                if name in table.column_names:
                    table = table.set_column(table.column_names.index(name), name, column)
                else:
                    table = table.append_column(name, column)
            target = work / path.relative_to(source.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, target, compression='snappy')
        info = json.loads((work / layout.INFO).read_text())
        for name in columns:
            info['features'][name] = {'dtype': 'string', 'shape': [1], 'names': None}
        write_json(work / layout.INFO, info)
        write_json(work / PROVENANCE, facts)
        os.replace(work, out)
    except OSError as error:
        raise UserError(f'cannot write {out}: {error}; choose another folder') from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
