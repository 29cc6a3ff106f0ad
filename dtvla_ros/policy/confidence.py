"""How sure a decision is: features of the probabilities of its tokens, and what they promise.

Uncalibrated they only order decisions. A `Calibration` makes of them the probability that the
episode succeeds.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError
from dtvla_ros.field_types import require_types

OF_ACTIONS = ('action_mean', 'action_least')
FEATURES = ('thought_mean', 'thought_least', 'place_mean', *OF_ACTIONS)
"""Means and least values of log probabilities: of a thought, its place, the actions executed."""
WINDOW = 5
"""Decisions over which a confidence is averaged before a person is asked."""
PLACE = 'place'
_AFTER = {'holding': 'held', 'done': 'done', 'now': 'phase', 'at': PLACE, 'next': 'following',
          'move': 'move'}


def fields_of(words: Sequence[str]) -> list[str]:
    """Return the field of a thought that each of its compact words is of, '' where of none.

    As of `Thought`, with ``'place'`` for x and y; what follows a phase is the object.
    """
    field, found = '', []
    for word in words:
        if word in _AFTER:
            field = _AFTER[word]
        found.append('' if word in _AFTER else word and field)
        if field == 'phase' and word not in _AFTER:
            field = 'object'
    return found


def field_reader(decode: Callable[[Sequence[int]], str]) -> Callable[[Sequence[int]], list[str]]:
    """Return `fields_of` for tokens; ``decode`` makes words of them, of each once."""
    word = functools.cache(lambda token: decode([token]))
    return lambda thought: fields_of([word(token) for token in thought])


def certainty(fields: Sequence[str], thought: Sequence[float],
              actions: NDArray[np.float32]) -> dict[str, float]:
    """Return the `FEATURES` of a decision, those of the thought only where it is known.

    ``thought``: log probabilities of its tokens, of which ``fields`` are; not a number where the
    policy did not choose, () unknown. ``actions`` [T, D]: those of the actions executed.
    """
    found = {}
    if thought:
        own = [(value, field) for value, field in zip(thought, fields, strict=True)
               if not math.isnan(value)]
        values = [value for value, _ in own] or [0.0]  # all of it was said by a person
        places = [value for value, field in own if field == PLACE] or values
        found = {'thought_mean': sum(values) / len(values), 'thought_least': min(values),
                 'place_mean': sum(places) / len(places)}
    return found | {'action_mean': float(actions.mean()), 'action_least': float(actions.min())}


def least_sure(fields: Sequence[str], thought: Sequence[float]) -> tuple[str, float]:
    """Return the field with the least probable word, and its probability; ('', 1) without one."""
    known = [(value, field) for value, field in zip(thought, fields)
             if field and not math.isnan(value)]
    value, field = min(known, default=(0.0, ''))
    return field, math.exp(value)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Makes a probability of success of the features of a decision, by logistic regression.

    ``weights`` by feature; ``bias``. Measured on ``episodes`` with ``decisions``, from ``seeds``
    (first, last) on, in ``suite``: ``error`` is the expected calibration error on those that
    were left out of the fit.
    """

    bias: float
    weights: Mapping[str, float]
    error: float
    episodes: int
    decisions: int
    seeds: tuple[int, int]
    suite: str

    def __post_init__(self) -> None:
        require_types(self)
        if unknown := set(self.weights) - set(FEATURES):
            raise UserError(f'manifest: calibration: unknown feature {min(unknown)!r}; calibrate '
                            'the policy again with dtvla calibrate')

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Return what a manifest holds."""
        return cls(**{**data, 'seeds': tuple(data['seeds'])})

    def confidence(self, certainty: Mapping[str, float]) -> float | None:
        """Return the probability that the episode succeeds, None where a feature is missing."""
        if not self.weights.keys() <= certainty.keys():
            return None
        odds = self.bias + sum(w * certainty[name] for name, w in self.weights.items())
        return 1.0 / (1.0 + math.exp(-min(max(odds, -50.0), 50.0)))


class Doubt:
    """The mean confidence of the last `WINDOW` decisions.

    A node asks, and an evaluation counts an episode as announced, where it is below a threshold.
    """

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=WINDOW)

    def add(self, confidence: float) -> float:
        """Take a decision's confidence; return the mean, 1 before there are enough decisions."""
        self._last.append(confidence)
        return sum(self._last) / WINDOW if len(self._last) == WINDOW else 1.0


def least_mean(confidences: Iterable[float]) -> float:
    """Return the lowest mean that `Doubt` had over an episode, 1 for one that is too short."""
    doubt = Doubt()
    return min(chain([1.0], map(doubt.add, confidences)))
