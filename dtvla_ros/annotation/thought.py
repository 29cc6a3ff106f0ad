"""A label, its place and its motion as a sentence of the grammar, and back."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from dtvla_ros.annotation.motion import Array, Motion
from dtvla_ros.annotation.schema import NOTHING, PHASES, TROUBLES, Semantics
from dtvla_sim.experts.grammar import Thought

_SENTENCE = re.compile(
    rf'^holding (?P<holding>\S+) done (?P<done>\S+)(?: (?P<trouble>{"|".join(TROUBLES[1:])}))? '
    rf'now (?P<phase>{"|".join(PHASES)}) (?P<object>\S+) at (?P<place>\S+ \S+) '
    rf'next (?P<next>{"|".join(PHASES)}) move (?P<move>\S+ \S+ \S+)$')
DESTINATION_PHASES = ('carry', 'place', 'push')


def parse_thought(text: str) -> tuple[Semantics, str, str] | None:
    """Return label, place words and move words of a thought; None if it is of no such form."""
    match = _SENTENCE.match(text)
    if not match:
        return None
    parts: dict[str, Any] = match.groupdict()
    place, move = parts.pop('place'), parts.pop('move')
    return Semantics(**{**parts, 'trouble': parts['trouble'] or 'none'}), place, move


def write_thought(label: Semantics, place: Array, move: Array, reason: bool = False) -> str:
    """Return the sentence of a label, a place [3] m and an offset [3] m, both in base axes."""
    text = Thought(
        held=None if label.holding == NOTHING else label.holding,
        done=None if label.done == NOTHING else label.done,
        trouble=None if label.trouble == 'none' else label.trouble,
        phase=label.phase, object=label.object, place=place, following=label.next,
        move=move).text()
    return f'{label.reason.rstrip(".")}. {text}' if reason and label.reason else text


def place_of(motion: Motion, frame: int, label: Semantics) -> Array:
    """Return where the thing a label speaks of is [3] m.

    Recorded places say it where there are any. Otherwise hindsight does: an object is where the
    hand next closes or, once held, where the hand is; a destination is where it next opens.
    """
    if label.object in motion.places:
        return motion.places[label.object][frame]
    if label.phase in ('grasp', 'lift', 'release') or label.holding == label.object:
        return motion.hand[frame]
    later = motion.toggles[motion.toggles > frame]
    opens = label.phase in DESTINATION_PHASES
    ends = [int(k) for k in later if bool(motion.closing[k]) != opens]
    return motion.hand[ends[0] if ends else len(motion) - 1]


def moves_of(motion: Motion, phases: list[str]) -> Array:
    """Return how far the hand still goes in the phase each frame belongs to [N, 3] m."""
    changes = np.flatnonzero([a != b for a, b in zip(phases, phases[1:])]) + 1
    ends = np.full(len(phases), len(phases) - 1)
    for change in reversed(changes):
        ends[:change] = change
    return motion.hand[ends] - motion.hand
