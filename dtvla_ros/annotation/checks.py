"""Checks the labels of an episode, and compares two labellings of the same frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

from tqdm import tqdm

from dtvla_ros.annotation.keyframes import read_keyframes
from dtvla_ros.annotation.question import FIELDS, NOTHING, Semantics, parse_thought, write_thoughts
from dtvla_ros.annotation.rules import label_frames
from dtvla_ros.annotation.source import Goal, Motion, Source
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.results import Rate
from dtvla_ros.files import write_json
from dtvla_ros.issues import Issue

# Names of the checks; they are also in files of labels.
GAP, ORDER, DONE, PHASE, GRIPPER, OBJECT = 'gap', 'order', 'done', 'phase', 'gripper', 'object'
# A cycle of handling one object runs through these from left to right.
CYCLE = ('reach', 'lower', 'grasp', 'push', 'lift', 'carry', 'place', 'release', 'retreat')
HOLDS = frozenset(('lift', 'carry', 'place'))
COMMANDED_CLOSED = HOLDS | {'grasp'}
COMMANDED_OPEN = frozenset(('reach', 'lower', 'release', 'retreat', 'retry'))


def check_labels(motion: Motion, goal: Goal, keyframes: Sequence[int],
                 labels: Sequence[tuple[int, Semantics]], first: bool = True) -> list[Issue]:
    """Return what is wrong with labels, which hold from their frame until the next one.

    The first frame, if the episode begins here (``first``), and every key frame need one.
    """
    frames, last = [frame for frame, _ in labels], len(motion) - 1
    found = [] if frames[:1] == [0] or not first else [
        (0, GAP, 'nothing is said about the first frame')]
    found += [(frame, GAP, 'the key frame has no label') for frame in {*keyframes} - {*frames}]
    found += [(frame, GAP, f'the episode ends at frame {last}')
              for frame in frames if not 0 <= frame <= last]
    found += [(after, ORDER, f'comes after frame {before}')
              for before, after in pairwise(frames) if after <= before]
    found += _content(motion, goal, labels)
    return [Issue(text, check=check, frame=frame)
            for frame, check, text in sorted(found, key=itemgetter(0))]


def _content(motion: Motion, goal: Goal, labels: Sequence[tuple[int, Semantics]],
             ) -> Iterator[tuple[int, str, str]]:
    """Yield frame, check and problem of labels that cannot be right."""
    wide = motion.is_wide()
    finished: list[str] = []
    before: Semantics | None = None
    for frame, label in labels:
        if not 0 <= frame < len(motion):
            continue
        phase, done, closed = label.phase, label.done, bool(motion.closing[frame])
        if done == NOTHING and finished:
            yield frame, DONE, f'nothing is done, but {finished[-1]} was done before'
        elif done in finished[:-1]:
            yield frame, DONE, f'{done} was done before {finished[-1]}'
        if done not in (NOTHING, *finished):
            finished.append(done)
        if (before is not None and {before.phase, phase} <= {*CYCLE} and label.trouble == 'none'
                and before.done == done and before.phase not in ('release', 'retreat')
                and CYCLE.index(phase) < CYCLE.index(before.phase)):
            yield frame, PHASE, (f'goes back from {before.phase} to {phase} though nothing was '
                                 'finished or went wrong')
        before = label
        if label.holding != NOTHING and wide[frame] and not closed:
            yield frame, GRIPPER, f'holding {label.holding} with open fingers'
        if phase in HOLDS and label.holding == NOTHING:
            yield frame, GRIPPER, f'{phase} with nothing in the hand'
        if phase in (COMMANDED_OPEN if closed else COMMANDED_CLOSED):
            command = 'close' if closed else 'open'
            yield frame, GRIPPER, f'{phase}, but the gripper is told to {command}'
        for what, name in (('holding', label.holding), ('done', done)):
            if goal.objects and name not in (NOTHING, *goal.objects):
                yield frame, OBJECT, f'{what} {name}, which the instruction does not move'
        if goal.names and label.object not in goal.names:
            yield frame, OBJECT, f'{phase} {label.object}, which the instruction does not name'


def agreement(pairs: Iterable[tuple[Semantics, Semantics]]) -> dict[str, Rate]:
    """Return how often each field agrees, and how often all of them do."""
    rows = [(a.key(), b.key()) for a, b in pairs]
    rates = {name: Rate.of(a[k] == b[k] for a, b in rows) for k, name in enumerate(FIELDS)}
    return rates | {'all fields': Rate.of(a == b for a, b in rows)}


def show_agreement(title: str, rates: Mapping[str, Rate]) -> None:
    """Print rates with n and Wilson's 95 % interval."""
    print('\n'.join([title, *(f'  {name:<12} {rate}' for name, rate in rates.items())]))


def compare(source: Source, other: Source | None, episodes: Iterable[int],
            frames_of: Mapping[int, Sequence[int]] | None = None) -> dict[str, Rate]:
    """Compare the thoughts a dataset holds with another's, or if None with labels by rules.

    ``frames_of``: which frames of which episode; None: all. Raises ``UserError`` when the
    datasets differ in their episodes, or no thought is of the grammar.
    """
    if other is not None and source.fingerprint != other.fingerprint:
        raise UserError(f'{other.root} and {source.root} hold different episodes')
    both = []
    for episode in tqdm(episodes, desc='compare', unit='episode', disable=None):
        motion, own = source.motion(episode), source.thoughts(episode)
        theirs = other.thoughts(episode) if other is not None else write_thoughts(
            motion, label_frames(motion, source.goal(episode)))
        for k in range(len(motion)) if frames_of is None else frames_of.get(episode, ()):
            a, b = parse_thought(own[k]), parse_thought(theirs[k])
            if a is not None and b is not None:
                both.append((a, b))
    if not both:
        raise UserError(f'{source.root}: no thought in its reasoning column is of the grammar')
    return agreement((a[0], b[0]) for a, b in both) | {
        'place': Rate.of((a.x, a.y) == (b.x, b.y) for (_, a), (_, b) in both),
        'move': Rate.of(x == y for (_, a), (_, b) in both for x, y in zip(a.move, b.move))}


def agree(source: Source, out: Path, other: Source | None = None, episodes: str = '',
          all_frames: bool = False, json_file: Path | None = None) -> None:
    """Print and write how far a dataset agrees with labels by rules, or all of it with another.

    On key frames found in ``out``, or on all. ``episodes``: a number, or FIRST:END. Raises
    ``UserError`` as `compare`, and when none of the episodes is there.
    """
    first, _, end = episodes.rpartition(':')
    try:
        span = range(len(source))[int(first or 0):int(end or len(source))]
    except ValueError as error:
        raise UserError(f'--episodes {episodes!r}: give a number, or FIRST:END') from error
    if not span:
        raise UserError(f'--episodes {episodes}: none of them is there; {source.root} has '
                        f'episodes 0 to {len(source) - 1}')
    every = all_frames or other is not None
    rates = compare(source, other, span, None if every else read_keyframes(out, source))
    show_agreement(f'{other.root if other else "rules"} and {source.root} on '
                    f'{"all" if every else "key"} frames of episodes {span.start} to '
                    f'{span.stop - 1}', rates)
    write_json(json_file, {name: rate.to_dict() for name, rate in rates.items()})
