"""Tokenizers: the small preset's vocabulary, special ids, location and direction words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from dtvla_ros.actions.grid import word_groups
from dtvla_ros.errors import UserError
from dtvla_ros.files import unreadable
from dtvla_ros.policy.config import SpecialIds
from dtvla_ros.thought import AXIS_WORDS

UNKNOWN = '<unk>'
SPECIAL_WORDS = {
    'pad': '<pad>', 'eos': '<eos>', 'bos': '<bos>', 'image': '<image>', 'think': '<think>',
    'think_end': '</think>', 'action': '<action>', 'action_end': '</action>', 'newline': '\n',
    'semicolon': ';'}
"""Words with a meaning, by their names in `SpecialIds`; the released tokenizer has the same."""
# In the order of their ids in the small preset's tokenizer, with what has no name in SpecialIds.
_FIRST_WORDS = ('<pad>', '<eos>', '<bos>', UNKNOWN, '<image>', '<think>', '</think>', '<action>',
                '</action>', '\n', ';', ':')
# Exactly what the suite's instructions and the experts' thoughts are made of: a word no
# demonstration holds would be accepted and not understood.
TABLETOP_WORDS = tuple((  # noqa: SIM905
    'Task state put stack push the and in on onto can lemon bread red green cube wooden blue '
    'bin yellow mark holding done nothing now at next move missed dropped reach lower grasp lift '
    'carry place release retreat retry wait forward back left right up down still').split())
# Where a thought says the gripper should go, after MARK: word, axis of the base frame, sign.
DIRECTIONS = {word: (axis, sign) for axis, words in enumerate(AXIS_WORDS)
              for word, sign in zip(words, (1, -1))}
OPPOSITE = {a: b for words in AXIS_WORDS for a, b in (words, words[::-1])}
MARK = 'move'


def build_tokenizer(more: Iterable[str] = (), bins: int = 256) -> Tokenizer:
    """Return a word-level tokenizer; ids of a group of location words follow their order in space.

    ``more``: the vocabulary of other suites than the tabletop.
    """
    places = [word for group in word_groups().values() for word in group]
    actions = [f'<a{k}>' for k in range(bins)]
    table = dict.fromkeys([*_FIRST_WORDS, *actions, *places, *TABLETOP_WORDS, *more])
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(table)}, unk_token=UNKNOWN))
    # A newline is a token of its own (it closes the prompt), the other blanks only separate.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), *(pre_tokenizers.Split(x, 'isolated') for x in ';:')])
    tokenizer.add_tokens([AddedToken(w, normalized=False) for w in _FIRST_WORDS[4:10]])
    return tokenizer


def word_id(tokenizer: Tokenizer, word: str) -> int:
    """Return a word's id; a tokenizer without it is refused."""
    found = tokenizer.token_to_id(word)
    if found is None:
        raise UserError(f'tokenizer has no token {word!r}; it does not belong to this policy')
    return found


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Return the special ids of a tokenizer made by ``build_tokenizer``."""
    bins = 0
    while tokenizer.token_to_id(f'<a{bins}>') is not None:
        bins += 1
    first = word_id(tokenizer, '<a0>')
    return SpecialIds(**{key: word_id(tokenizer, word) for key, word in SPECIAL_WORDS.items()},
                      bins_first=first, bins_last=first + bins - 1)


def ordinal_groups(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Return (first_id, last_id) of the x, y and z words: contiguous ids, ordered in space.

    A neighbour of the right word is nearly right; a loss can say so with smoothed targets.
    """
    spans = []
    for axis in 'xyz':
        ids = [word_id(tokenizer, word) for word in word_groups()[axis]]
        if ids != list(range(ids[0], ids[0] + len(ids))):
            raise UserError(f'tokenizer: the {axis} words are not contiguous; build it again')
        spans.append((ids[0], ids[-1]))
    return spans


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a ``tokenizer.json``."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise unreadable(Path(path), error, what='not a tokenizer file') from None


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
