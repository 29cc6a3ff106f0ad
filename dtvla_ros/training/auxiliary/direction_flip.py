"""Direction-flip augmentation: a thought's directions and its actions reversed together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import DIRECTIONS, MARK, OPPOSITE, word_id

AXES = 3  # of translation, the first of an action
NO_AXIS = -1


class DirectionFlip:
    """Reverses a policy's direction tokens, and mirrors action bins.

    Tables: ``_opposite`` [V] and ``_axis`` [V] of every id (itself and ``NO_AXIS`` for other
    tokens); ``_mirror`` [AXES, bins]: the bin, counted from the first, of the negative value.
    """

    def __init__(self, transform: PolicyTransform):
        """Build the tables. Raises ``UserError`` for a vocabulary without directions."""
        tokenizer, config = transform.tokenizer, transform.config
        if not transform.contract.is_normalised:
            raise UserError('train config: auxiliary.direction_flip reverses offsets of the end '
                            f'effector, these actions are {transform.contract.controller}; set it '
                            'to 0')
        if tokenizer.token_to_id(MARK) is None:
            raise UserError('train config: auxiliary.direction_flip needs a vocabulary with words '
                            'for directions')
        self._mark, self._config = word_id(tokenizer, MARK), config
        self._opposite = np.arange(config.text.vocabulary)
        self._axis = np.full(config.text.vocabulary, NO_AXIS)
        for word, (axis, _) in DIRECTIONS.items():
            here = word_id(tokenizer, word)
            self._opposite[here], self._axis[here] = word_id(tokenizer, OPPOSITE[word]), axis
        first = config.ids.bins_first
        self._mirror = np.empty((AXES, config.ids.bins), np.int64)
        for k in range(config.ids.bins):
            chunk = transform.decode_actions(np.full(config.slots, first + k))  # [T, D]
            self._mirror[:, k] = transform.encode_actions(-chunk)[:AXES] - first

    def __call__(self, thought: NDArray[np.int64],
                 actions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return thoughts [B, W] with their directions reversed, and their actions [B, S].

        Actions are mirrored along every axis that has a direction token.
        """
        width, first = thought.shape[1], self._config.ids.bins_first
        marked = thought == self._mark  # [B, W]
        last = width - 1 - marked[:, ::-1].argmax(1)
        after = (np.arange(width) > last[:, None]) & marked.any(1)[:, None]
        axes = np.where(after, self._axis[thought], NO_AXIS)
        out = actions.copy()
        chunk = out.reshape(len(out), self._config.chunk_steps, self._config.action_dim)
        for axis in range(AXES):
            rows = (axes == axis).any(1)
            chunk[rows, :, axis] = first + self._mirror[axis][chunk[rows, :, axis] - first]
        return np.where(axes != NO_AXIS, self._opposite[thought], thought), out
