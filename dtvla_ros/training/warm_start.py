"""A run that goes on from an earlier policy, with words that one did not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from dtvla_ros.data import layout
from dtvla_ros.data.reader import DatasetReader
from dtvla_ros.policy.checkpoint import EMBEDDING
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import build_tokenizer, special_ids
from dtvla_ros.training.auxiliary.localisation import kind, thing_names
from dtvla_ros.training.finish import read_source


def dataset_words(readers: Sequence[DatasetReader]) -> set[str]:
    """Return every word of the datasets' instructions, thoughts and things."""
    texts = {text for reader in readers
             for text in (*reader.tasks, *set(reader.column(layout.REASONING)))}
    texts |= {kind(name) for name in thing_names(readers)}
    return {word for text in texts for word in text.replace('_', ' ').split()}


def vocabulary_for(words: set[str], before: Tokenizer | None = None) -> Tokenizer:
    """Return a tokenizer of small policies that knows ``words`` and all that ``before`` knew."""
    known = set(build_tokenizer().get_vocab())
    old = before.get_vocab() if before is not None else {}
    more = [word for word in sorted(old, key=lambda word: old[word]) if word not in known]
    return build_tokenizer([*more, *sorted(words - known - set(old))])


def grown(transform: PolicyTransform, words: set[str]) -> PolicyTransform:
    """Return the transform with a vocabulary that holds ``words`` and today's words for places.

    Itself if its own does already.
    """
    if words | set(build_tokenizer().get_vocab()) <= set(transform.tokenizer.get_vocab()):
        return transform
    tokenizer = vocabulary_for(words, transform.tokenizer)
    text = replace(transform.config.text, vocabulary=tokenizer.get_vocab_size())
    return replace(transform, tokenizer=tokenizer, config=replace(
        transform.config, text=text, ids=special_ids(tokenizer)))


@torch.no_grad()
def begin_with(model: HybridDecoder, tokenizer: Tokenizer, source: Path) -> None:
    """Copy the weights of a run or policy folder into ``model``, word by word.

    A word that the source lacks begins at random.
    Raises ``UserError`` when the two differ in more than their words.
    """
    earlier, transform, _ = read_source(source)
    state = earlier.state_dict()
    rows = model.embed_tokens.weight.clone()  # [V, w]
    old = transform.tokenizer.get_vocab()
    new = tokenizer.get_vocab()
    for word, row in new.items():
        if word in old:
            rows[row] = state[EMBEDDING][old[word]]
    model.load_state_dict(state | {EMBEDDING: rows})
