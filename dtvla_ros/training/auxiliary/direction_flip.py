"""Direction-flip augmentation: a thought's directions and its actions reversed together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import DIRECTIONS, MARK, OPPOSITE, word_id

AXES = 3  # of translation, the first of an action
NO_AXIS = -1


@dataclass(frozen=True, slots=True)
class DirectionFlip:
    """Ids of a policy's direction tokens, and every action bin's opposite.

    ``mark``: the id before the directions; ``opposite`` [V] and ``axis`` [V] of every id
    (itself and ``NO_AXIS`` for other tokens); ``mirror`` [AXES, bins]: the bin, counted from the
    first, of the negative value.
    """

    mark: int
    opposite: NDArray[np.int64]
    axis: NDArray[np.int64]
    mirror: NDArray[np.int64]
    action_dim: int
    bins_first: int

    @classmethod
    def of(cls, transform: PolicyTransform) -> DirectionFlip:
        """Build the tables. Raises ``UserError`` for a vocabulary without directions."""
        tokenizer, config = transform.tokenizer, transform.config
        if tokenizer.token_to_id(MARK) is None:
            raise UserError('train config: auxiliary.direction_flip needs a vocabulary with words '
                            'for directions')
        opposite = np.arange(config.text.vocabulary)
        axis = np.full(config.text.vocabulary, NO_AXIS)
        for word, (number, _) in DIRECTIONS.items():
            here = word_id(tokenizer, word)
            opposite[here], axis[here] = word_id(tokenizer, OPPOSITE[word]), number
        first, bins = config.ids.bins_first, config.ids.bins
        mirror = np.empty((AXES, bins), np.int64)
        for k in range(bins):
            chunk = transform.decode_actions(np.full(config.slots, first + k))  # [T, D]
            mirror[:, k] = transform.encode_actions(-chunk)[:AXES] - first
        return cls(word_id(tokenizer, MARK), opposite, axis, mirror, config.action_dim, first)

    def __call__(self, thought: NDArray[np.int64],
                 actions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return thoughts [B, W] with their directions reversed, and their actions [B, S].

        Along every axis that has a direction token the actions are mirrored; thoughts without
        one stay as they are.
        """
        width = thought.shape[1]
        marked = thought == self.mark  # [B, W]
        last = width - 1 - marked[:, ::-1].argmax(1)
        after = (np.arange(width) > last[:, None]) & marked.any(1)[:, None]
        axes = np.where(after, self.axis[thought], NO_AXIS)
        steps = actions.shape[1] // self.action_dim
        out = actions.reshape(len(actions), steps, self.action_dim).copy()  # [B, T, D]
        for axis in range(AXES):
            rows = (axes == axis).any(1)
            out[rows, :, axis] = self.bins_first + self.mirror[axis][
                out[rows, :, axis] - self.bins_first]
        return (np.where(axes != NO_AXIS, self.opposite[thought], thought),
                out.reshape(actions.shape))
