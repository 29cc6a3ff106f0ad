"""The thoughts of a dataset: plain text, or padded ids of some tokenizer."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.errors import UserError
from dtvla_ros.policy.vocabulary import load_tokenizer

BEGIN, END = '<think>', '</think>'
_LEFT_OUT = ('<pad>', '<bos>', '<eos>', '[PAD]', '<s>', '</s>')


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``, given itself or the folder it lies in."""
    return load_tokenizer(path / 'tokenizer.json' if path.is_dir() else path)


def are_ids(reader: DatasetReader) -> bool:
    """Return whether a dataset keeps its thoughts as ids, not as text."""
    feature = reader.info['features'].get(layout.REASONING)
    return feature is not None and feature['dtype'] != 'string'


def unpadded(row: NDArray[np.integer], pad: int) -> NDArray[np.integer]:
    """Return ids [W] without the padding at either end."""
    kept = np.flatnonzero(row != pad)
    return row[kept[0]:kept[-1] + 1] if len(kept) else row[:0]


def guess_pad(ids: NDArray[np.integer]) -> int:
    """Return the id that most rows of [N, W] begin or end with."""
    return Counter([*ids[:, 0].tolist(), *ids[:, -1].tolist()]).most_common(1)[0][0]


class ThoughtDecoder:
    """From rows of padded ids to the text between the think tags."""

    def __init__(self, tokenizer: Tokenizer, name: Path | str):
        self._tokenizer, self._name = tokenizer, name
        self._size = tokenizer.get_vocab_size()
        self._skip = {tokenizer.token_to_id(word) for word in _LEFT_OUT}
        self._text = lru_cache(4096)(self._decode)

    def __call__(self, row: NDArray[np.integer]) -> str:
        """Return the thought of ids [W]: '' where there is none, or a tag is missing.

        Raises ``UserError`` for an id the tokenizer does not have.
        """
        return self._text(tuple(int(k) for k in row))

    def _decode(self, row: tuple[int, ...]) -> str:
        strange = next((k for k in row if not 0 <= k < self._size), None)
        if strange is not None:
            raise UserError(f'reasoning id {strange} is outside the {self._size} ids of '
                            f'{self._name}; give the tokenizer the dataset was made with')
        text = self._tokenizer.decode(
            [k for k in row if k not in self._skip], skip_special_tokens=False)
        _, begun, rest = text.partition(BEGIN)
        inside, ended, _ = rest.partition(END)
        return inside.strip() if begun and ended else ''


def thoughts_of(reader: DatasetReader, tokenizer: Path | None = None) -> list[str] | None:
    """Return the thought of every frame as text; None for a dataset without thoughts.

    Raises ``UserError`` when thoughts are ids and no ``tokenizer`` is given.
    """
    if layout.REASONING not in reader.info['features']:
        return None
    column = reader.column(layout.REASONING)
    if not are_ids(reader):
        return list(column)
    if tokenizer is None:
        raise UserError(f'{reader.root}: reasoning is token ids; give the folder or file of the '
                        'tokenizer they belong to with --tokenizer')
    decode = ThoughtDecoder(open_tokenizer(tokenizer), tokenizer)
    return [decode(row) for row in np.asarray(column)]
