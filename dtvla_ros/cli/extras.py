"""Which extras of this package a command needs."""

from __future__ import annotations

from collections.abc import Sequence

EXTRAS = {
    'sim': 'demo play eval robustness steer recover experts', 'sim,data': 'collect calibrate',
    'data': 'data annotate', 'torch': 'inspect', 'train': 'export convert bench',
    'sim,train': 'train', 'viz': 'view'}
"""Commands by the extras they need; what else an option of theirs needs comes on top."""


def extras_of(words: Sequence[str]) -> str:
    """Return the extras, with commas, of the command that arguments name; '' for the others."""
    if list(words[:2]) == ['train', 'sft']:
        return 'train'
    return next((extras for extras, listed in EXTRAS.items()
                 if words and words[0] in listed.split()), '')
