"""Where a thought says the hand should go: words of the base frame (REP 103) after ``MARK``."""

from __future__ import annotations

# Word, axis of the base frame, sign.
DIRECTIONS = {'forward': (0, 1), 'back': (0, -1), 'left': (1, 1), 'right': (1, -1),
              'up': (2, 1), 'down': (2, -1)}
OPPOSITE = {a: b for a, (axis, sign) in DIRECTIONS.items()
            for b, other in DIRECTIONS.items() if other == (axis, -sign)}
MARK = 'move'


def directions(thought: str) -> list[tuple[int, int]]:
    """Return (axis, sign) of the direction words of a thought."""
    words = thought.split()
    after = words[len(words) - words[::-1].index(MARK):] if MARK in words else []
    return [DIRECTIONS[word] for word in after if word in DIRECTIONS]


def turned_round(thought: str) -> str:
    """Return the thought with its direction words exchanged for their opposites."""
    head, mark, tail = thought.rpartition(f' {MARK} ')
    if not mark:
        return thought
    return head + mark + ' '.join(OPPOSITE.get(word, word) for word in tail.split())
