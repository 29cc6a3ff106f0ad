"""Actions as tokens: bins in reversed order, with the published one-bin bias.

``encode`` gives the bucket ending at edge i, ``decode`` the midpoint of the one starting there: a
round trip adds one bin, and released checkpoints were trained with exactly that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.errors import UserError


@dataclass(frozen=True, slots=True)
class ActionCodec:
    """Contiguous ids ``first .. last`` stand for values from +1 down to -1."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if self.first < 0 or self.last - self.first < 1:
            raise UserError(f'action ids {self.first}..{self.last} hold no bins')

    @property
    def bins(self) -> int:
        """Number of ids."""
        return self.last - self.first + 1

    @property
    def edges(self) -> NDArray[np.float64]:
        """Bin edges [bins] over [-1, 1]."""
        return np.linspace(-1.0, 1.0, self.bins)

    def encode(self, values: ArrayLike) -> NDArray[np.int64]:
        """Return ids of values (any shape, clipped): ``last`` minus the edges strictly below."""
        x = np.asarray(values, np.float64)
        if not np.isfinite(x).all():
            raise UserError('actions to encode hold NaN or infinity')
        return self.last - np.searchsorted(self.edges, np.clip(x, -1.0, 1.0), side='left')

    def decode(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Return the values of action ids (any shape)."""
        ids = np.asarray(tokens, np.int64)
        if ids.size and (ids.min() < self.first or ids.max() > self.last):
            raise UserError(f'token {int(ids.min())}..{int(ids.max())} outside the action ids '
                            f'{self.first}..{self.last}')
        edges = self.edges
        low = np.clip(self.last - ids, 0, self.bins - 2)
        return (edges[low] + edges[low + 1]) / 2
