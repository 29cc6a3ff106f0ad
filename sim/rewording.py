"""Rewords instructions: synonyms, a polite frame, another sentence."""

from __future__ import annotations

import re

from numpy.random import Generator

SYNONYMS = {
    'pick up': ('grasp', 'take', 'lift'), 'put': ('place', 'set', 'drop'),
    'place': ('put', 'set', 'leave'), 'stack': ('pile', 'place', 'put'),
    'push': ('slide', 'shove', 'move'), 'open': ('pull open',), 'close': ('shut',),
    'turn on': ('switch on',), 'turn off': ('switch off',), 'onto': ('to', 'on'),
    'into': ('in', 'inside'), 'in': ('into', 'inside'), 'on': ('onto', 'on top of'),
}
_SYNONYM = re.compile(r'\b(' + '|'.join(SYNONYMS) + r')\b')
POLITE = (
    'please {}', 'could you {}, please', 'robot, {} for me', 'I would like you to {}',
)
WISHES = (
    '{where} is where I want {what}', '{where}, that is where {what} has to go',
    'I will be happy once {what} is {where}',
)
STORIES = (
    'there is a small job for you on this table. do this and nothing else: {}',
    'look around first, then take your time and {}; leave everything else alone',
)
_MOVE = re.compile(
    r'(?:put|place|stack|push|move) (?P<what>.+) (?P<where>(?:in|into|on|onto|to) the .+)')
_STEPS = re.compile(r'\band (?:put|place|pick|push|open|close|turn|stack|move)\b')


def reword(instruction: str, strength: int, rng: Generator) -> str:
    """Return the instruction with its meaning kept.

    Strength 1 exchanges verbs and prepositions, 2 also asks politely, 3 says it in a sentence of
    another form (or, where it has several steps, wrapped in a story).
    """
    sentence = _SYNONYM.sub(lambda m: str(rng.choice(SYNONYMS[m[1]])), instruction)
    if strength == 1:
        return sentence
    if strength == 2:
        return str(rng.choice(POLITE)).format(sentence)
    move = None if _STEPS.search(instruction) else _MOVE.fullmatch(instruction)
    if move:
        return str(rng.choice(WISHES)).format(**move.groupdict())
    return str(rng.choice(STORIES)).format(sentence)
