"""What an instruction is about: the verb, the things to move in order, and where to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FORMS = (
    re.compile(r'^(?P<verb>pick) up (?P<objects>.+?) and (?:place|put) (?:it|them) '
               r'(?:in|on|into|onto|inside|to)(?: top of)? (?P<to>.+)$'),
    re.compile(r'^(?P<verb>put|place|stack|push|move|slide) (?P<objects>.+?) '
               r'(?:in|on|into|onto|inside|to)(?: top of)? (?P<to>.+)$'),
    re.compile(r'^(?P<verb>pick) up (?P<objects>.+)$'),
    re.compile(r'^(?P<verb>open|close|push|turn on|turn off) (?P<objects>.+)$'),
)
_ARTICLES = re.compile(r'\b(?:the|a|an|both|all)\b')
# What follows such a word tells one thing from another of its name and is no thing to move.
_WHERE = re.compile(r' (?:between|next to|in front of|on top of|on|in|from|at|of) .*$')


@dataclass(frozen=True, slots=True)
class Goal:
    """A parsed instruction; names have underscores for blanks, ``destination`` may be unknown."""

    verb: str
    objects: tuple[str, ...]
    destination: str | None

    @property
    def things(self) -> tuple[str, ...]:
        """Everything named, objects first."""
        return (*self.objects, *([self.destination] if self.destination else ()))


def _name(phrase: str, known: Sequence[str]) -> str:
    words = _ARTICLES.sub(' ', phrase).split()
    plain = ' '.join(words)
    # The longest known name that is part of the phrase ("yellow mark" is the mark).
    for name in sorted(known, key=len, reverse=True):
        if re.search(rf'\b{re.escape(name.replace("_", " "))}\b', plain):
            return name
    return '_'.join(_WHERE.sub('', plain).split())


def parse_instruction(instruction: str, known: Sequence[str] = ()) -> Goal:
    """Return what an instruction asks for; ``known`` names win over the instruction's words.

    A sentence of another form names no verb, and as objects the known things it mentions.
    """
    text = ' '.join(instruction.replace('_', ' ').lower().rstrip('.').split())
    for form in _FORMS:
        match = form.match(text)
        if not match:
            continue
        parts = match.groupdict()
        listed = _WHERE.sub('', parts['objects'])
        objects = [_name(part, known) for part in re.split(r',| and ', listed)]
        to = parts.get('to')
        return Goal(parts['verb'], tuple(o for o in objects if o),
                    _name(to, known) if to else None)
    found = [(m.start(), name) for name in known
             if (m := re.search(rf'\b{re.escape(name.replace("_", " "))}\b', text))]
    return Goal('', tuple(name for _, name in sorted(found)), None)
