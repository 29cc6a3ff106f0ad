"""Judges whether a sentence in free wording asks for a task: a small network over word vectors.

It reads the sentence and one task and returns how likely the first asks for the second and for
nothing else. Known words have vectors of a pretrained sentence encoder, so that one it was never
trained on counts for what it resembles; a misspelt word counts for the known one it is closest to.
Any other word has one of a few random vectors, chosen by its letters: it is the same as itself.
"""

from __future__ import annotations

import difflib
import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from dtvla_ros.errors import UserError
from dtvla_ros.files import read_json
from dtvla_ros.policy.manifest import verified

FOLDER = 'models/language'
MANIFEST, GRAPH = 'manifest.json', 'matcher.onnx'
VECTORS, VOCABULARY = 'vectors.safetensors', 'vocabulary.json'
FORMAT = 1
MOST_WORDS = 48  # of a sentence; it is refused when it has more
TASK_POSITION = 48  # position code of a task's first word
POSITIONS = 96
STRANGERS = 512  # random vectors, of words without a pretrained one
SENTENCE, TASK = 1, 2  # segments; 0 is padding
_WORD = re.compile(r"[a-z]+(?:n't|'[a-z]+)?|[0-9]+|->|\.\.\.|[^\w\s]|\w+")
_CLOSE = 0.8  # similarity of spelling from which a long word counts as misspelt
_LONG = 6  # letters of a long word


def split_words(text: str) -> list[str]:
    """Return the words and marks of a sentence in small letters."""
    return _WORD.findall(text.lower())


def shortened(word: str) -> list[str]:
    """Return a word, and all that is left of it without one letter."""
    return [word, *(word[:k] + word[k + 1:] for k in range(len(word)))]


def one_slip_apart(a: str, b: str) -> bool:
    """Return whether a letter more, less, exchanged or swapped turns ``a`` into ``b``."""
    if abs(len(a) - len(b)) > 1:
        return False
    if len(a) == len(b):
        off = [k for k in range(len(a)) if a[k] != b[k]]
        return len(off) <= 1 or (len(off) == 2 and off[1] == off[0] + 1
                                 and a[off[0]] == b[off[1]] and a[off[1]] == b[off[0]])
    short, long = sorted((a, b), key=len)
    return short in shortened(long)


@dataclass(frozen=True)
class Vocabulary:
    """Words by what the network knows of them.

    ``pretrained``: words with a vector, in the order of their rows, frequent ones first.
    ``learnt``: words of the frames of sentences ('please', "don't", 'into'), which have a vector
    of their own beside it. ``domain``: names of things; they and the learnt ones are what a
    misspelt word is taken for first. ``strangers``: random vectors behind the pretrained ones.
    """

    pretrained: tuple[str, ...]
    learnt: tuple[str, ...]
    domain: tuple[str, ...]
    strangers: int = 0

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """Row of each word with a pretrained vector, from 1; 0 is for the others."""
        return {word: k for k, word in enumerate(self.pretrained, 1)}

    def row(self, word: str) -> int:
        """Return the row of a word's vector, 0 for a mark."""
        if (row := self.rows.get(word, 0)) or not self.strangers or not word[:1].isalnum():
            return row
        return 1 + len(self.pretrained) + zlib.crc32(word.encode()) % self.strangers

    @functools.cached_property
    def frame_rows(self) -> dict[str, int]:
        """Row of each learnt word, from 1; 0 is for the others."""
        return {word: k for k, word in enumerate(self.learnt, 1)}

    @functools.cached_property
    def _first_choice(self) -> dict[str, None]:
        return dict.fromkeys(sorted(
            w for w in {*self.learnt, *self.domain} if w.isalpha() and len(w) > 2))

    @functools.cached_property
    def spellings(self) -> dict[str, list[str]]:
        """Known words by what is left of them without one letter; takes a moment to make."""
        found: dict[str, list[str]] = {}
        for word in {**self._first_choice, **dict.fromkeys(self.pretrained)}:
            for short in shortened(word) if len(word) > 2 else ():
                found.setdefault(short, []).append(word)
        return found

    def spell(self, word: str) -> str:
        """Return the known word that a misspelt one is meant to be, or the word itself."""
        if not word.isalpha() or len(word) < 3 or word in self.rows or word in self._first_choice:
            return word
        near = [known for short in shortened(word) for known in self.spellings.get(short, ())
                if one_slip_apart(word, known)]
        if found := next((known for known in near if known in self._first_choice), None):
            return found
        close = difflib.get_close_matches(word, self._first_choice, 1, _CLOSE) if (
            len(word) >= _LONG) else []
        return (close or near or [word])[0]

    def features(self, pairs: Sequence[tuple[Sequence[str], Sequence[str]]]
                 ) -> tuple[NDArray[np.int64], ...]:
        """Return what the network reads of pairs of (sentence, task), as correctly spelt words.

        That is four arrays [pairs, 1 + words]: rows of the pretrained and of the learnt vectors,
        segments and positions. The first column is for the answer.
        """
        width = 1 + max(len(a) + len(b) for a, b in pairs)
        table = np.zeros((4, len(pairs), width), np.int64)
        for k, (sentence, task) in enumerate(pairs):
            words, end = [*sentence, *task], 1 + len(sentence)
            stop = 1 + len(words)
            table[0, k, 1:stop] = [self.row(word) for word in words]
            table[1, k, 1:stop] = [self.frame_rows.get(word, 0) for word in words]
            table[2, k, 1:end], table[2, k, end:stop] = SENTENCE, TASK
            table[3, k, 1:end] = range(1, end)
            table[3, k, end:stop] = range(TASK_POSITION, TASK_POSITION + len(task))
        return tuple(table)


def unpacked(stored: Mapping[str, NDArray], strangers: int = 0) -> NDArray[np.float32]:
    """Return word vectors [1 + words + strangers, size] of a file's.

    It has ``vectors`` (int8) and ``scale`` [size]. Row 0, of words without a vector, is zero; the
    last ones are random and always the same.
    """
    vectors = stored['vectors'].astype(np.float32) * stored['scale'].astype(np.float32)
    others = np.random.default_rng(0).normal(0.0, vectors.std(), (strangers, vectors.shape[1]))
    return np.concatenate([np.zeros_like(vectors[:1]), vectors, others.astype(np.float32)])


def choose(likely: NDArray[np.float64], threshold: float) -> int | None:
    """Return which of the tasks [tasks] is asked for; None: none, or more than one could be."""
    asked, = np.nonzero(likely >= threshold)
    return int(asked[0]) if len(asked) == 1 else None


class Matcher:
    """The network, run by ONNX Runtime.

    ``threshold``: probability from which on a sentence counts as asking for a task.
    """

    def __init__(self, folder: Path):
        """Read ``folder``; hashes are checked before anything is parsed. Raises UserError."""
        import onnxruntime as ort

        manifest = read_json(folder / MANIFEST)
        if manifest.get('format') != FORMAT:
            raise UserError(f'{folder / MANIFEST}: format is not {FORMAT}; copy the folder again')
        graph, vectors, words = (verified(folder, manifest.get('files', {}), name)
                                 for name in (GRAPH, VECTORS, VOCABULARY))
        try:
            self.threshold = float(manifest['threshold'])
            known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                     for key, value in read_json(words).items()}
            self.vocabulary = Vocabulary(**known)
            self._vectors = unpacked(load_file(vectors), self.vocabulary.strangers)
            settings = ort.SessionOptions()
            settings.intra_op_num_threads, settings.log_severity_level = 1, 4
            self._session = ort.InferenceSession(
                str(graph), settings, providers=['CPUExecutionProvider'])
        except Exception as error:  # the runtime's exceptions share no narrower base
            raise UserError(f'{folder}: {str(error).splitlines()[0]}; copy it again') from None
        self._names = [put.name for put in self._session.get_inputs()]
        self.vocabulary.spellings  # noqa: B018 - now, not with the first misspelt word

    def words(self, text: str) -> list[str]:
        """Return a text's words as they are understood."""
        return [self.vocabulary.spell(word) for word in split_words(text)]

    def probabilities(self, text: str, tasks: Sequence[str]) -> NDArray[np.float64]:
        """Return how likely the text asks for each of the tasks and nothing else [tasks].

        Raises UserError for one of more than ``MOST_WORDS`` words.
        """
        words = self.words(text)
        if len(words) > MOST_WORDS - 1:
            raise UserError(f'it has {len(words)} words; say it in fewer than {MOST_WORDS}')
        pairs = [(words, self.words(task)[:POSITIONS - TASK_POSITION]) for task in tasks]
        rows, *others = self.vocabulary.features(pairs)
        scores, = self._session.run(
            None, dict(zip(self._names, (self._vectors[rows], *others))))
        return 1.0 / (1.0 + np.exp(-np.asarray(scores, np.float64)))
