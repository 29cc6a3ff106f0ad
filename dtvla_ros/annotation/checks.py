"""What cannot be right about the labels of an episode, each finding with a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dtvla_ros.annotation.motion import Motion
from dtvla_ros.annotation.schema import NOTHING, Semantics
from dtvla_ros.annotation.task import Goal

GAP, ORDER, DONE, PHASE, GRIPPER, OBJECT = 'gap', 'order', 'done', 'phase', 'gripper', 'object'
# A cycle of handling one object runs through these from left to right.
CYCLE = ('reach', 'lower', 'grasp', 'push', 'lift', 'carry', 'place', 'release', 'retreat')
HOLDS = frozenset(('lift', 'carry', 'place'))
TOLD_SHUT = HOLDS | {'grasp'}
TOLD_OPEN = frozenset(('reach', 'lower', 'release', 'retreat', 'retry'))


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong at a key frame: ``kind`` is one of this module's names."""

    frame: int
    kind: str
    text: str


def check_labels(motion: Motion, goal: Goal, keyframes: Sequence[int],
                 labels: Sequence[tuple[int, Semantics]], first: bool = True) -> list[Finding]:
    """Return what is wrong with (frame, label) pairs that should cover ``keyframes``.

    A label holds from its frame until the next one, so the labels cover an episode without a gap
    when the first frame and every key frame have one. ``first``: the episode begins here.
    """
    findings = [*_coverage(len(motion), keyframes, [frame for frame, _ in labels], first)]
    known = [(frame, label) for frame, label in labels if 0 <= frame < len(motion)]
    findings += [*_progress(known), *_grip(motion, known), *_objects(goal, known)]
    return sorted(findings, key=lambda finding: finding.frame)


def _coverage(length: int, keyframes: Sequence[int], frames: Sequence[int],
              first: bool) -> Iterator[Finding]:
    if first and (not frames or frames[0] != 0):
        yield Finding(0, GAP, 'nothing is said about the first frame')
    for frame in sorted(set(keyframes) - set(frames)):
        yield Finding(frame, GAP, 'the key frame has no label')
    for frame in frames:
        if not 0 <= frame < length:
            yield Finding(frame, GAP, f'the episode ends at frame {length - 1}')
    for before, after in zip(frames, frames[1:]):
        if after <= before:
            yield Finding(after, ORDER, f'comes after frame {before}')


def _progress(labels: Sequence[tuple[int, Semantics]]) -> Iterator[Finding]:
    finished: list[str] = []
    for frame, label in labels:
        if label.done == NOTHING and finished:
            yield Finding(frame, DONE, f'nothing is done, but {finished[-1]} was done before')
        elif label.done in finished[:-1]:
            yield Finding(frame, DONE, f'{label.done} was done before {finished[-1]}')
        if label.done != NOTHING and label.done not in finished:
            finished.append(label.done)
    for (_, a), (frame, b) in zip(labels, labels[1:]):
        if a.phase not in CYCLE or b.phase not in CYCLE:
            continue
        again = b.trouble != 'none' or a.done != b.done
        if CYCLE.index(b.phase) < CYCLE.index(a.phase) and not again and a.phase != 'release' \
                and a.phase != 'retreat':
            yield Finding(frame, PHASE, f'goes back from {a.phase} to {b.phase} though nothing '
                                        'was finished or went wrong')


def _grip(motion: Motion, labels: Sequence[tuple[int, Semantics]]) -> Iterator[Finding]:
    wide = motion.is_wide()
    for frame, label in labels:
        shut = bool(motion.closing[frame])
        if label.holding != NOTHING and wide[frame] and not shut:
            yield Finding(frame, GRIPPER, f'holding {label.holding} with open fingers')
        if label.phase in HOLDS and label.holding == NOTHING:
            yield Finding(frame, GRIPPER, f'{label.phase} with nothing in the hand')
        if label.phase in TOLD_SHUT and not shut:
            yield Finding(frame, GRIPPER, f'{label.phase}, but the gripper is told to open')
        if label.phase in TOLD_OPEN and shut:
            yield Finding(frame, GRIPPER, f'{label.phase}, but the gripper is told to close')


def _objects(goal: Goal, labels: Sequence[tuple[int, Semantics]]) -> Iterator[Finding]:
    for frame, label in labels:
        for what, name in (('holding', label.holding), ('done', label.done)):
            if goal.objects and name not in (NOTHING, *goal.objects):
                yield Finding(frame, OBJECT, f'{what} {name}, which the instruction does not move')
        if goal.things and label.object not in goal.things:
            yield Finding(frame, OBJECT, f'{label.phase} {label.object}, which the instruction '
                                         'does not name')
