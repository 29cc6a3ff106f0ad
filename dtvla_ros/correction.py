"""Corrections of a thought: how a person says them, and which of its words they are.

A whole sentence, or parts of one in any order: 'reach the lemon', 'the lemon to the blue bin',
'move left', 'then grasp'. What is not said stays the policy's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dtvla_ros.errors import UserError
from dtvla_ros.thought import (
    AXIS_WORDS,
    DESTINATION_PHASES,
    EXAMPLE,
    NOTHING,
    PHASES,
    STILL,
    TROUBLES,
    Fields,
    Thought,
    directions_said,
    normalised,
    parse_sentence,
    settled,
    within,
)

WHOLE = 'this thought'
OPENING = ('reach', 'lower', 'retry', 'retreat', 'release', 'push', 'wait')
"""Phases with an open hand."""
HOW = ('a phase with or without a thing (' + ', '.join(PHASES) + '); a thing ("the THING", "the '
       'other KIND"); where it goes ("to the THING"); "move" or "keep" with '
       + ', '.join(word for axis in AXIS_WORDS for word in axis) + f', {STILL}; "then PHASE"; '
       '"holding the THING", "nothing in hand", "done with the THING"; "50 cm ahead and 17 cm to '
       f'the left"; several with commas; or a whole sentence: {EXAMPLE}')
"""What may be said."""


@dataclass(frozen=True, slots=True)
class Correction:
    """Fields of a thought that are given to a policy.

    ``said``: in whose words. ``fields``: as of `Thought`, only those that are given, but two for
    its ``object``: 'object' is what phases about a thing itself name, 'destination' what
    `DESTINATION_PHASES` name. Where the phase is the policy's choice an object is given only
    while nothing else is in the hand. ``asks``: a task of the policy that handles the object,
    '' for none.
    """

    said: str
    fields: Mapping[str, Any]
    asks: str = ''

    def asked(self, task: str, before: str) -> str:
        """Return the task that a prompt names while the correction stands on ``task``.

        What is in the hand and the phase are written before the thing, and could not know of it
        otherwise. ``before``: the last thought in compact words; while something else is in the
        hand that is the task's.
        """
        free = settled(before).get('held') in (None, self.fields.get('object'))
        return self.asks if self.asks and free else task

    def follows(self, written: str) -> str:
        """Return what must come next in a compact thought begun so, '' where anything may.

        It begins with a blank unless a word is going on.
        """
        mark, begun = _open_slot(written)
        given = self._given(mark, begun, written)
        return given[len(begun):] if given.startswith(begun) else ''

    def ends(self, written: str) -> bool:
        """Return whether a compact thought is complete because its motion was given."""
        return 'move' in self.fields and Thought.parse(written) is not None

    def applied(self, written: str) -> Fields:
        """Return the fields of a finished thought in compact words that were given to it."""
        if (thought := Thought.parse(written)) is None:
            return {}
        name = self._name(thought.phase, thought.held)
        return {key: value for key, value in self.fields.items()
                if key not in ('object', 'destination')} | ({'object': name} if name else {})

    def _name(self, phase: str, held: str | None) -> str | None:
        if phase in DESTINATION_PHASES:
            return self.fields.get('destination')
        name = self.fields.get('object')
        return name if 'phase' in self.fields or held in (None, name) else None

    def _given(self, mark: str, begun: str, written: str) -> str:
        """Return all words that follow ``mark`` as far as they are given, a blank first."""
        fields = self.fields
        if mark == 'holding':
            return f' {fields["held"] or NOTHING} done' if 'held' in fields else ''
        if mark == 'done':
            trouble = f' {fields["trouble"]}' if fields.get('trouble') else ''
            return f' {fields["done"] or NOTHING}{trouble} now' if 'done' in fields else ''
        if mark == 'now':
            phase = fields.get('phase') or next(iter(begun.split()), '')
            name = self._name(phase, settled(written).get('held')) if phase in PHASES else None
            return f' {phase} {name} at' if name else f' {phase}' if 'phase' in fields else ''
        if mark == 'at':
            return f' x{fields["x"]} y{fields["y"]:+d} next' if 'x' in fields else ''
        if mark == 'next':
            return f' {fields["following"]} move' if 'following' in fields else ''
        if mark == 'move':
            return f' {" ".join(fields["move"])}' if 'move' in fields else ''
        return ' holding' if not written and self.fields else ''


def _open_slot(written: str) -> tuple[str, str]:
    """Return the last mark of a compact thought begun, '' before the first, and what follows."""
    mark, at = '', 0
    for wanted, pattern in _MARKS.items():
        if (match := pattern.search(written, at)) is None:
            break
        mark, at = wanted, match.end()
    return mark, written[at:]


def parse_correction(text: str) -> Correction:
    """Return what is said in a sentence or in parts of one; names are as they were said.

    Raises ``UserError`` where it can not be read, with what can be said.
    """
    try:
        fields = asdict(parse_sentence(text))
    except UserError:
        return _parse_parts(normalised(text).rstrip(' .,;'))
    where = 'destination' if fields['phase'] in DESTINATION_PHASES else 'object'
    return Correction(WHOLE, {
        where if key == 'object' else key: value for key, value in fields.items()})


def _parse_parts(said: str) -> Correction:
    rest, fields = said, Fields()
    while rest:
        match = next(filter(None, (part.match(rest) for part in _PARTS)), None)
        more = _fields(match.groupdict()) if match else {}
        if 'destination' in more and fields.get('phase') in DESTINATION_PHASES and (
                'object' not in fields and 'destination' in fields):
            fields['object'] = fields.pop('destination')  # 'carry the lemon to the bin'
        if match is None or more.keys() & fields.keys():
            raise UserError(f'thought: "{rest[:60]}" is no part of a thought, or one too many; '
                            f'say {HOW}')
        fields |= more
        rest = _BETWEEN.sub('', rest[match.end():])
    if not fields:
        raise UserError(f'thought: nothing is said; say {HOW}')
    return Correction(said, fields)


def _fields(groups: Mapping[str, str | None]) -> Fields:
    """Return the fields that the groups of a part stand for."""
    given = {key: word for key, word in groups.items() if word is not None}
    fields: Fields = {}
    if 'held' in given or 'empty' in given:
        fields['held'] = None if given.get('held', NOTHING) == NOTHING else given['held']
    if 'done' in given or 'trouble' in given:
        done = given.get('done', NOTHING)
        fields |= {'done': None if done == NOTHING else done, 'trouble': given.get('trouble')}
    if 'x' in given:
        sideways = int(given.get('y', 0)) * (-1 if given.get('side') == 'right' else 1)
        fields |= {'x': within('x', int(given['x'])), 'y': within('y', sideways)}
    if 'move' in given:
        fields['move'] = directions_said(given['move'])
    if 'following' in given:
        fields['following'] = given['following']
    if 'doing' in given:
        fields['phase'] = _DOING[given['doing']]
    if 'name' in given:
        goes = fields.get('phase') in DESTINATION_PHASES
        fields['destination' if goes else 'object'] = given['name']
    if 'to' in given:
        fields['destination'] = given['to']
    return fields


_DOING = {said.lower(): phase for phase, said in PHASES.items()} | {p: p for p in PHASES}
_MARKS = {mark: re.compile(rf'(?:^|(?<=\s)){mark}(?!\S)') for mark in (
    'holding', 'done', 'now', 'at', 'next', 'move')}
_WORD = r"(?!(?:move|moving|keep|keeping|then|holding|done)\b)[a-z0-9_'-]+"
_ENDS = r'(?=\s*[.,;]|\s*$| (?:and|then|to|into|onto|in|on|at|move|moving|keep|keeping|done)\b)'
_NAME = rf'{_WORD}(?: {_WORD})*?{_ENDS}'
_WAYS = '|'.join(word for axis in AXIS_WORDS for word in (*axis, STILL))
_LONGEST = sorted(_DOING, key=len, reverse=True)
_BETWEEN = re.compile(r'^\s*(?:[.,;]\s*)*(?:and\s+)?')
_PARTS = tuple(re.compile(pattern + _ENDS) for pattern in (
    '(?P<empty>nothing in hand)',
    rf'holding (?:the )?(?P<held>{_NAME})',
    rf'done with (?:the )?(?P<done>{_NAME})(?:[.,;]? (?P<trouble>{"|".join(TROUBLES)}) it)?',
    rf'(?P<trouble>{"|".join(TROUBLES)}) it',
    r'(?:at )?(?P<x>[0-9]{1,9}) ?cm (?:straight )?ahead'
    r'(?: and (?P<y>[0-9]{1,9}) ?cm (?:to the )?(?P<side>left|right))?',
    rf'then (?P<following>{"|".join(PHASES)})',
    rf'(?:move |moving |keep |keeping )?(?P<move>(?:{_WAYS})(?:(?:, and | and |, | )'
    rf'(?:{_WAYS}))*)',
    rf'(?P<doing>{"|".join(_LONGEST)})(?: it)?'
    rf'(?: (?:for|onto|on|to|into|in|at|of|from|towards|by))?(?: the)? (?P<name>{_NAME})',
    rf'(?P<doing>{"|".join(_LONGEST)})(?: it)?',
    rf'(?:to|into|in|onto|on) (?:the )?(?P<to>{_NAME})',
    rf'(?:the )?(?P<name>{_NAME})'))
