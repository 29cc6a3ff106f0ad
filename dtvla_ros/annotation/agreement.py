"""How often two labellings of the same frames say the same, field by field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from dtvla_ros.annotation.rules import label_frames
from dtvla_ros.annotation.schema import FIELDS, Semantics
from dtvla_ros.annotation.source import Source
from dtvla_ros.annotation.thought import moves_of, parse_thought, place_of, write_thought
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.statistics import Rate

ALL = 'all fields'


def agreement(pairs: Iterable[tuple[Semantics, Semantics]]) -> dict[str, Rate]:
    """Return how often each field agrees, and how often all of them do."""
    rows = [(a.key(), b.key()) for a, b in pairs]
    rates = {name: Rate.of(a[k] == b[k] for a, b in rows) for k, name in enumerate(FIELDS)}
    return rates | {ALL: Rate.of(a == b for a, b in rows)}


def print_agreement(title: str, rates: dict[str, Rate]) -> None:
    """Print rates with n and Wilson's 95 % interval."""
    print(title)
    for name, rate in rates.items():
        print(f'  {name:<12} {rate}')


def compare_rules(source: Source, frames_of: Mapping[int, Sequence[int]] | None,
                  episodes: Iterable[int]) -> dict[str, Rate]:
    """Compare rule-based labels with the thoughts a dataset holds already.

    ``frames_of``: which frames of which episode; None: all. Raises ``UserError`` when no thought
    is of the grammar.
    """
    pairs: list[tuple[Semantics, Semantics]] = []
    words: dict[str, list[bool]] = {'place': [], 'move': []}
    for episode in tqdm(episodes, desc='compare', unit='episode', disable=None):
        motion = source.motion(episode)
        labels = label_frames(motion, source.goal(episode))
        moves = moves_of(motion, [label.phase for label in labels])
        thoughts = source.thoughts(episode)
        for frame in range(len(motion)) if frames_of is None else frames_of.get(episode, ()):
            expert = parse_thought(thoughts[frame])
            if expert is None:
                continue
            pairs.append((labels[frame], expert[0]))
            ours = parse_thought(write_thought(
                labels[frame], place_of(motion, frame, labels[frame]), moves[frame]))
            assert ours is not None
            words['place'].append(ours[1] == expert[1])
            words['move'] += [a == b for a, b in zip(ours[2].split(), expert[2].split())]
    if not pairs:
        raise UserError(f'{source.root}: no thought in its reasoning column is of the grammar')
    return agreement(pairs) | {name: Rate.of(same) for name, same in words.items()}


def compare_datasets(source: Source, other: Source, episodes: Iterable[int]) -> dict[str, Rate]:
    """Compare the thoughts of two datasets with the same episodes, frame by frame.

    Raises ``UserError`` when they differ in their episodes or hold no thought of the grammar.
    """
    if source.fingerprint != other.fingerprint:
        raise UserError(f'{other.root} and {source.root} hold different episodes')
    read = [[parse_thought(text) for text in texts] for k in episodes
            for texts in (source.thoughts(k), other.thoughts(k))]
    both = [(a, b) for ours, theirs in zip(read[::2], read[1::2]) for a, b in zip(ours, theirs)
            if a is not None and b is not None]
    if not both:
        raise UserError(f'{source.root}, {other.root}: no thoughts of the grammar to compare')
    return agreement((a[0], b[0]) for a, b in both) | {
        'place': Rate.of(a[1] == b[1] for a, b in both),
        'move': Rate.of(x == y for a, b in both for x, y in zip(a[2].split(), b[2].split()))}


def as_json(rates: dict[str, Rate]) -> dict[str, Any]:
    """Return rates as JSON values."""
    return {name: rate.to_dict() for name, rate in rates.items()}
