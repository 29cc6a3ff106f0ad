"""Checks the labels of an episode, and compares two labellings of the same frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm

from dtvla_ros.annotation.question import (
    FIELDS,
    NOTHING,
    Labels,
    Semantics,
    parse_thought,
    write_thoughts,
)
from dtvla_ros.annotation.rules import label_frames
from dtvla_ros.annotation.source import Goal, Motion, Source
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.results import Rate
from dtvla_ros.issues import Issue

# Names of the checks; they are also in files of labels.
GAP, ORDER, DONE, PHASE, GRIPPER, OBJECT = 'gap', 'order', 'done', 'phase', 'gripper', 'object'
# A cycle of handling one object runs through these from left to right.
CYCLE = ('reach', 'lower', 'grasp', 'push', 'lift', 'carry', 'place', 'release', 'retreat')
HOLDS = frozenset(('lift', 'carry', 'place'))
COMMANDED_CLOSED = HOLDS | {'grasp'}
COMMANDED_OPEN = frozenset(('reach', 'lower', 'release', 'retreat', 'retry'))
ALL = 'all fields'

Parsed = tuple[Semantics, str, str]  # label, place words and move words of a thought


def check_labels(motion: Motion, goal: Goal, keyframes: Sequence[int], labels: Labels,
                 first: bool = True) -> list[Issue]:
    """Return what is wrong with labels that should cover ``keyframes``.

    A label holds from its frame until the next one, so the labels cover an episode without a gap
    when the first frame and every key frame have one. ``first``: the episode begins here.
    """
    known = [(frame, label) for frame, label in labels if 0 <= frame < len(motion)]
    found = [*_coverage(len(motion), keyframes, [frame for frame, _ in labels], first),
             *_progress(known), *_gripper(motion, known), *_objects(goal, known)]
    return [Issue(text, check=check, frame=frame)
            for frame, check, text in sorted(found, key=lambda row: row[0])]


def _coverage(length: int, keyframes: Sequence[int], frames: Sequence[int],
              first: bool) -> Iterator[tuple[int, str, str]]:
    if first and (not frames or frames[0] != 0):
        yield 0, GAP, 'nothing is said about the first frame'
    for frame in sorted(set(keyframes) - set(frames)):
        yield frame, GAP, 'the key frame has no label'
    for frame in frames:
        if not 0 <= frame < length:
            yield frame, GAP, f'the episode ends at frame {length - 1}'
    for before, after in zip(frames, frames[1:]):
        if after <= before:
            yield after, ORDER, f'comes after frame {before}'


def _progress(labels: Labels) -> Iterator[tuple[int, str, str]]:
    finished: list[str] = []
    for frame, label in labels:
        if label.done == NOTHING and finished:
            yield frame, DONE, f'nothing is done, but {finished[-1]} was done before'
        elif label.done in finished[:-1]:
            yield frame, DONE, f'{label.done} was done before {finished[-1]}'
        if label.done != NOTHING and label.done not in finished:
            finished.append(label.done)
    for (_, a), (frame, b) in zip(labels, labels[1:]):
        if a.phase not in CYCLE or b.phase not in CYCLE:
            continue
        again = b.trouble != 'none' or a.done != b.done or a.phase in ('release', 'retreat')
        if CYCLE.index(b.phase) < CYCLE.index(a.phase) and not again:
            yield frame, PHASE, (f'goes back from {a.phase} to {b.phase} though nothing was '
                                 'finished or went wrong')


def _gripper(motion: Motion, labels: Labels) -> Iterator[tuple[int, str, str]]:
    wide = motion.is_wide()
    for frame, label in labels:
        closed = bool(motion.closing[frame])
        if label.holding != NOTHING and wide[frame] and not closed:
            yield frame, GRIPPER, f'holding {label.holding} with open fingers'
        if label.phase in HOLDS and label.holding == NOTHING:
            yield frame, GRIPPER, f'{label.phase} with nothing in the hand'
        if label.phase in COMMANDED_CLOSED and not closed:
            yield frame, GRIPPER, f'{label.phase}, but the gripper is told to open'
        if label.phase in COMMANDED_OPEN and closed:
            yield frame, GRIPPER, f'{label.phase}, but the gripper is told to close'


def _objects(goal: Goal, labels: Labels) -> Iterator[tuple[int, str, str]]:
    for frame, label in labels:
        for what, name in (('holding', label.holding), ('done', label.done)):
            if goal.objects and name not in (NOTHING, *goal.objects):
                yield frame, OBJECT, f'{what} {name}, which the instruction does not move'
        if goal.names and label.object not in goal.names:
            yield frame, OBJECT, (f'{label.phase} {label.object}, which the instruction does not '
                                  'name')


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
    pairs: list[tuple[Parsed | None, Parsed | None]] = []
    for episode in tqdm(episodes, desc='compare', unit='episode', disable=None):
        motion = source.motion(episode)
        ours = write_thoughts(motion, label_frames(motion, source.goal(episode)))
        theirs = source.thoughts(episode)
        frames = range(len(motion)) if frames_of is None else frames_of.get(episode, ())
        pairs += [(parse_thought(ours[k]), parse_thought(theirs[k])) for k in frames]
    return _compare(pairs, f'{source.root}: no thought in its reasoning column is of the grammar')


def compare_datasets(source: Source, other: Source, episodes: Iterable[int]) -> dict[str, Rate]:
    """Compare the thoughts of two datasets with the same episodes, frame by frame.

    Raises ``UserError`` when they differ in their episodes or hold no thought of the grammar.
    """
    if source.fingerprint != other.fingerprint:
        raise UserError(f'{other.root} and {source.root} hold different episodes')
    pairs = [(parse_thought(a), parse_thought(b)) for k in episodes
             for a, b in zip(source.thoughts(k), other.thoughts(k))]
    return _compare(pairs, f'{source.root}, {other.root}: no thoughts of the grammar to compare')


def _compare(pairs: Iterable[tuple[Parsed | None, Parsed | None]], none: str) -> dict[str, Rate]:
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        raise UserError(none)
    return agreement((a[0], b[0]) for a, b in both) | {
        'place': Rate.of(a[1] == b[1] for a, b in both),
        'move': Rate.of(x == y for a, b in both for x, y in zip(a[2].split(), b[2].split()))}
