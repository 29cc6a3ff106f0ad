"""What may be told to a policy node: well-formed sentences, among those that it knows."""

from __future__ import annotations

import difflib
import heapq
import unicodedata
from collections.abc import Sequence

MAX_BYTES = 10_000
SHOWN = 200  # longest part of a refused sentence that is repeated [characters]
CANDIDATES = 16  # sentences with most words in common, compared letter by letter
MARKS = ' .,;:!?'  # at the end of a sentence, without meaning


def refuse_instruction(text: str) -> str | None:
    """Return why an instruction cannot be given to any policy, or None."""
    if not text.strip():
        return 'it is empty'
    if len(text.encode('utf-8', 'replace')) >= MAX_BYTES:
        return f'it is not shorter than {MAX_BYTES} bytes'
    if any(unicodedata.category(c) in ('Cc', 'Cs') for c in text):
        return 'it has control characters'
    return None


def spelling(text: str) -> str:
    """Return a sentence as it is compared: without case, underscores, extra space, end marks."""
    return ' '.join(text.replace('_', ' ').casefold().split()).rstrip(MARKS)


def known_as(text: str, known: Sequence[str]) -> str | None:
    """Return the known sentence that a text is, whatever its `spelling`, or None."""
    if text in known:
        return text
    wanted = spelling(text)
    return next((sentence for sentence in known if spelling(sentence) == wanted), None)


def nearest(text: str, known: Sequence[str]) -> str:
    """Return the known sentence, of at least one, that a text resembles most."""
    wanted = spelling(text)[:SHOWN]
    words = set(wanted.split())
    candidates = {spelling(sentence): sentence for sentence in heapq.nlargest(
        CANDIDATES, known, key=lambda sentence: len(words & set(spelling(sentence).split())))}
    return candidates[difflib.get_close_matches(wanted, candidates, 1, 0.0)[0]]


def shown(text: str) -> str:
    """Return a sentence fit for a line, control characters escaped, cut where it is very long."""
    cut = text if len(text) <= SHOWN else f'{text[:SHOWN]}…'
    return cut if cut.isprintable() else ascii(cut)[1:-1]
