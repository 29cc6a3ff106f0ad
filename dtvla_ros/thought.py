"""The thought's closed grammar: the compact words a policy writes, the sentences a person reads.

Compact, as it is learnt, decoded and stored in data sets::

    holding nothing done nothing now lower can at x50 y-17 next grasp move still still down

As a sentence, as topics, films and pages show it::

    Nothing in hand. Lowering onto the can, 50 cm ahead and 17 cm to the right; then grasp.
    Moving down.

Places are centimetres in the robot's base frame, +x ahead and +y left (REP 103).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.actions.grid import CM_RANGE, location_word, word_groups
from dtvla_ros.errors import UserError

AXIS_WORDS = (('forward', 'back'), ('left', 'right'), ('up', 'down'))  # +x, +y, +z of the base
STILL = 'still'
MOVE_THRESHOLD = 0.015  # [m]
NOTHING = 'nothing'
FINISHED = 'wait'
"""The phase of a task that is complete."""
PHASES = {
    'reach': 'Reaching for', 'lower': 'Lowering onto', 'grasp': 'Grasping', 'lift': 'Lifting',
    'carry': 'Carrying it to', 'place': 'Placing it at', 'release': 'Letting go of',
    'retreat': 'Backing away from', 'retry': 'Trying again for', 'push': 'Pushing towards',
    'open': 'Opening', 'close': 'Closing', 'turn': 'Turning the knob of',
    FINISHED: 'Task complete, waiting by'}
"""What the arm does now, and how a sentence begins to say it."""
DESTINATION_PHASES = ('carry', 'place', 'push')
"""Phases about where something goes; the others are about the thing itself."""
TROUBLES = ('missed', 'dropped')
EXAMPLE = ('Nothing in hand. Lowering onto the can, 50 cm ahead and 17 cm to the right; then '
           'grasp. Moving down.')
Fields = dict[str, Any]
"""Fields of a `Thought`, as far as they are known."""


def move_words(move: NDArray[np.float64]) -> tuple[str, ...]:
    """Return the three words for a displacement [3] m in base axes."""
    return tuple(
        plus if amount > MOVE_THRESHOLD else minus if amount < -MOVE_THRESHOLD else STILL
        for amount, (plus, minus) in zip(move, AXIS_WORDS))


@dataclass(frozen=True, slots=True)
class Thought:
    """One thought.

    ``held``: what is in the hand, ``done``: what was finished last, if anything. ``trouble``, one
    of `TROUBLES` or None, ``phase`` and ``following``, of `PHASES`, are words of the grammar.
    ``object``: what the phase is about; of `DESTINATION_PHASES` the destination. It is ``x`` cm
    ahead of the arm's base and ``y`` cm to its left. ``move``: three words of direction. Names
    consist of lower-case words, with blanks between them as policies write them, or underscores
    as data sets do.
    """

    held: str | None
    done: str | None
    trouble: str | None
    phase: str
    object: str
    x: int
    y: int
    following: str
    move: tuple[str, ...]

    @classmethod
    def measured(cls, *, held: str | None, done: str | None, trouble: str | None, phase: str,
                 object: str, place: NDArray[np.float64], following: str,
                 move: NDArray[np.float64]) -> Thought:
        """Return a thought from a place [3] m and a displacement [3] m, both in base axes."""
        x, y = (int(location_word(axis, metres)[1:]) for axis, metres in zip('xy', place))
        return cls(held, done, trouble, phase, object, x, y, following, move_words(move))

    @classmethod
    def parse(cls, compact: str) -> Thought | None:
        """Return the thought in compact words; None for a text that is not of the grammar."""
        steps = list(_steps(compact))
        whole = len(steps) == len(_STEPS) and steps[-1][1] == len(compact)
        return cls(**steps[-1][0]) if whole else None

    @property
    def finished(self) -> bool:
        """Whether it says that the task is complete."""
        return self.phase == FINISHED

    def compact(self) -> str:
        """Return the compact words."""
        return ' '.join([
            'holding', self.held or NOTHING, 'done', self.done or NOTHING,
            *([self.trouble] if self.trouble else []), 'now', self.phase, self.object,
            'at', location_word('x', self.x / 100), location_word('y', self.y / 100),
            'next', self.following, 'move', *self.move])

    def sentence(self) -> str:
        """Return the thought as a person reads it; names have blanks for underscores."""
        fields = asdict(self)
        return ''.join(say(fields) for _, say in _STEPS)


def parse_sentence(text: str) -> Thought:
    """Return the thought of a sentence, which a person may have changed.

    Case, blanks, articles, the last full stop and a mark of `as_told` do not matter. Raises
    ``UserError`` naming the part that cannot be read, with an example.
    """
    rest = normalised(_TOLD.sub('', text)).removesuffix('.') + '. '
    fields: Fields = {}
    for pattern, what, example in _PARTS:
        if (match := pattern.match(rest)) is None:
            told = rest.strip(' .')
            raise UserError('thought: ' + (f'"{told[:60]}" does not say' if told else
                                           'it ends before it says') + f' {what}; write {example}')
        fields |= match.groupdict()
        rest = rest[match.end():]
    if rest:
        raise UserError(f'thought: "{rest.strip()[:60]}" follows the motion; end as in: {EXAMPLE}')
    doing, side = fields.pop('doing'), fields.pop('side')
    phase = next(phase for phase, said in PHASES.items() if said.lower() == doing)
    following = fields['following'] or phase
    if fields['following'] is None and phase != FINISHED:
        raise UserError(f'thought: it does not say what follows; write as in: {EXAMPLE}')
    sideways = int(fields['y'] or 0) * (-1 if side == 'right' else 1)
    return Thought(**fields | {
        'phase': phase, 'following': following, 'x': within('x', int(fields['x'])),
        'y': within('y', sideways), 'move': directions_said(fields['move'])})


def as_told(sentence: str, said: str) -> str:
    """Return a thought's sentence, marked as one that has words of a person."""
    return f'{sentence} (told: {said})'


def without_told(text: str) -> tuple[str, str]:
    """Return a sentence without its mark, and what a person said, '' where it has no mark."""
    match = _TOLD.search(text)
    return (text[:match.start()], match[1]) if match else (text, '')


def normalised(text: str) -> str:
    """Return a text in lower case, one blank between words and after every mark."""
    return re.sub(r'\s*([.,;])\s*', r'\1 ', ' '.join(text.lower().split())).strip()


def phrases(text: str) -> list[str]:
    """Return what can be said of a thought's text as far as it is written.

    Of the grammar's words these are the pieces that are complete: what is held; what is done or
    went wrong; the action with object and place; what follows; the motion. Joined they begin the
    sentence of the whole. Of any other text they are its own complete sentences.
    """
    said = [say(fields) for (fields, _), (_, say) in zip(_steps(text), _STEPS)]
    if any(said):
        return [phrase for phrase in said if phrase]
    complete = re.match(r'.*[.!?](?=\s)', text, re.DOTALL)
    return re.findall(r'.+?[.!?](?=\s|$)', complete[0], re.DOTALL) if complete else []


def as_sentence(text: str) -> str:
    """Return the sentence of a compact thought, any other text as it is."""
    thought = Thought.parse(text)
    return text if thought is None else thought.sentence()


def as_compact(text: str) -> str:
    """Return the compact words of a sentence that `as_sentence` wrote, any other text as it is.

    A mark of `as_told` is lost.
    """
    try:
        thought = parse_sentence(text)
    except UserError:
        return text
    return thought.compact() if thought.sentence() == _TOLD.sub('', text) else text


def settled(text: str) -> Fields:
    """Return the fields that compact words have settled so far; more words may follow."""
    fields: Fields = {}
    for fields, _ in _steps(text):  # noqa: B007
        pass
    return fields


def _steps(text: str) -> Iterator[tuple[Fields, int]]:
    """Yield the fields known after each step of the grammar that a text has taken, and its end."""
    fields: Fields = {}
    at = 0
    for pattern, _ in _STEPS:
        if (match := pattern.match(text, at)) is None:
            return
        for name, word in match.groupdict().items():
            fields[name] = (
                None if word == NOTHING and name in ('held', 'done') else
                int(word) if name in ('x', 'y') else
                tuple(word.split()) if name == 'move' else word)
        at = match.end()
        yield {**fields}, at


def _name(text: str) -> str:
    return 'the ' + text.replace('_', ' ')


def _say_held(fields: Fields) -> str:
    return f'Holding {_name(fields["held"])}.' if fields['held'] else 'Nothing in hand.'


def _say_past(fields: Fields) -> str:
    return (f' Done with {_name(fields["done"])}.' if fields['done'] else '') + (
        f' {fields["trouble"].capitalize()} it.' if fields['trouble'] else '')


def _say_action(fields: Fields) -> str:
    where = said_place(fields['x'], fields['y'])
    return f' {PHASES[fields["phase"]]} {_name(fields["object"])}, {where}'


def said_place(x: int, y: int) -> str:
    """Return a place [cm] as a sentence has it."""
    return f'{x} cm ahead and {abs(y)} cm to the {AXIS_WORDS[1][y < 0]}' if y else (
        f'{x} cm straight ahead')


def _say_following(fields: Fields) -> str:
    waits = fields['phase'] == fields['following'] == FINISHED
    return '.' if waits else f'; then {fields["following"]}.'


def _say_motion(fields: Fields) -> str:
    *more, last = [word for word in fields['move'] if word != STILL] or [STILL]
    return ' Keeping still.' if last == STILL else (
        f' Moving {", ".join(more)}{" and " if more else ""}{last}.')


def within(axis: str, cm: int) -> int:
    """Return a coordinate [cm] that the grammar has a word for, or say which ones it has."""
    low, high = CM_RANGE[axis]
    if not low <= cm <= high:
        raise UserError(f'thought: {abs(cm)} cm is out of the range of places; write ' + (
            f'{low} to {high} cm ahead' if axis == 'x' else
            f'{high} cm to the left or right at most'))
    return cm


def directions_said(text: str) -> tuple[str, ...]:
    """Return the three words of a motion told as in 'forward, left and up', or 'still'."""
    said = text.replace(',', ' ').replace(' and ', ' ').split()
    move = tuple(next((word for word in axis if word in said), STILL) for axis in AXIS_WORDS)
    if sorted(said) != sorted(word for word in move if word != STILL) and said != [STILL]:
        raise UserError(f'thought: "moving {text}" is no motion; write at most one of each pair: '
                        + ', '.join(' or '.join(axis) for axis in AXIS_WORDS))
    return move


def _one_of(words: Iterable[str]) -> str:
    return '|'.join(map(re.escape, words))


_TOLD = re.compile(r'\s*\(told: ([^()]*)\)\s*$')
_X, _Y = (_one_of(word[1:] for word in word_groups()[axis]) for axis in 'xy')
_MARKS = _one_of(('holding', 'done', 'now', 'at', 'next', 'move', *TROUBLES))
_WORD = rf"(?!(?:{_MARKS})(?![a-z0-9_'-]))[a-z0-9_'-]+"
_NAME, _PHASE, _TROUBLE = rf'{_WORD}(?: {_WORD})*', _one_of(PHASES), _one_of(TROUBLES)
_MOVE = ' '.join(f'(?:{_one_of((*axis, STILL))})' for axis in AXIS_WORDS)
# The steps of the compact grammar, and how each is said. A step whose last word may still grow
# ends with the word after it.
_STEPS: tuple[tuple[re.Pattern[str], Callable[[Fields], str]], ...] = tuple(
    (re.compile(pattern + r'(?!\S)'), say) for pattern, say in (
        (f'holding (?P<held>{_NAME}) done', _say_held),
        (f' (?P<done>{_NAME})(?: (?P<trouble>{_TROUBLE}))? now', _say_past),
        (f' (?P<phase>{_PHASE}) (?P<object>{_NAME}) at x(?P<x>{_X}) y(?P<y>{_Y}) next',
         _say_action),
        (f' (?P<following>{_PHASE})', _say_following),
        (f' move (?P<move>{_MOVE})', _say_motion)))
# The parts of a sentence in lower case, one blank after every mark: what each says, an example.
_PARTS = tuple((re.compile(pattern), what, example) for pattern, what, example in (
    (rf'(?:nothing in hand|holding (?:{NOTHING}|(?:the )?(?P<held>{_NAME})))\. ',
     'what is in the hand', '"Nothing in hand." or "Holding the can."'),
    (rf'(?:done with (?:{NOTHING}|(?:the )?(?P<done>{_NAME}))\. )?'
     rf'(?:(?P<trouble>{_TROUBLE}) it\. )?', 'what is done', '"Done with the can."'),
    (rf'(?P<doing>{_one_of(said.lower() for said in PHASES.values())}) '
     rf'(?:the )?(?P<object>{_NAME})', 'what the arm does',
     f'"Lowering onto the can" or another of: {", ".join(PHASES.values())}'),
    (r', (?P<x>[0-9]{1,9}) ?cm (?:straight )?ahead'
     r'(?: and (?P<y>[0-9]{1,9}) ?cm (?:to the )?(?P<side>left|right))?', 'where that is',
     '", 50 cm ahead and 17 cm to the right"'),
    (rf'(?:; then (?P<following>{_PHASE}))?\. ', 'what follows',
     f'"; then grasp." or another of: {", ".join(PHASES)}'),
    (r'(?:moving |keeping (?=still))(?P<move>[a-z, ]+)\. ', 'the motion',
     '"Moving forward and left." or "Keeping still."')))
