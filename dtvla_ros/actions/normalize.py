"""From the robot's action units to [-1, 1] and back, by quantiles of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dtvla_ros.errors import UserError

_EPSILON = 1e-8  # as published, so that released statistics give released numbers
STILL = 1e-6  # span below which a channel counts as constant
NARROW = 1e-3  # span to either side of a constant channel: what is decoded stays beside it


@dataclass(frozen=True, slots=True)
class ActionStatistics:
    """Quantiles 0.01 and 0.99 of each channel; ``gripper``, a switch, is untouched.

    That is its index, the last one's usually, None where there is none; it is kept counted from
    the end.
    """

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    gripper: int | None = -1

    def __post_init__(self) -> None:
        if self.gripper is not None and self.gripper >= 0:
            object.__setattr__(self, 'gripper', self.gripper - len(self.q01))
        if len(self.q01) != len(self.q99) or len(self.q01) < 2:
            raise UserError(f'action statistics: q01 has {len(self.q01)} channels and q99 '
                            f'{len(self.q99)}; both need the same, at least 2')
        if self.gripper is not None and not -len(self.q01) <= self.gripper < 0:
            raise UserError(f'action statistics: {len(self.q01)} channels, none of which is the '
                            'gripper that the action contract names')
        for k, (low, high) in enumerate(zip(self.q01, self.q99, strict=True)):
            if not (np.isfinite(low) and np.isfinite(high)):
                raise UserError(f'action statistics: channel {k} is not finite ({low}, {high})')
            if self._moves[k] and high <= low:
                raise UserError(f'action statistics: channel {k} has q01 {low} >= q99 {high}; '
                                'make them with dtvla data stats DATASET --out FOLDER, which '
                                'gives a constant channel a narrow span')

    @classmethod
    def of(cls, actions: ArrayLike, gripper: int | None = -1) -> ActionStatistics:
        """Return those of actions [N, D], N > 0, one of whose channels may be the gripper's.

        Where the quantiles of a channel coincide its extremes stand for them, and where those do,
        too, a narrow span around its value. Raises ``UserError`` for what is not finite.
        """
        values = np.asarray(actions, np.float64)
        low, high = np.quantile(values, (0.01, 0.99), axis=0)
        still = high - low < STILL
        low, high = np.where(still, values.min(0), low), np.where(still, values.max(0), high)
        still = high - low < STILL
        return cls(tuple(np.where(still, low - NARROW, low)),
                   tuple(np.where(still, high + NARROW, high)), gripper)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], dim: int | None = None,
                  gripper: int | None = -1) -> ActionStatistics:
        """Read ``{'q01': [...], 'q99': [...]}`` (or the same under 'action'), ``dim`` long."""
        try:
            data = data.get('action', data)
            low, high = (tuple(map(float, data[key])) for key in ('q01', 'q99'))
            made = cls(low, high, gripper)
        except KeyError as error:
            raise UserError(f'action statistics: {error.args[0]} is missing') from None
        except (TypeError, ValueError) as error:
            raise UserError(f'action statistics: no lists of numbers: {error}') from None
        if dim not in (None, len(made.q01)):
            raise UserError(f'action statistics: q01 has {len(made.q01)} channels, not {dim}')
        return made

    def to_dict(self) -> dict[str, list[float]]:
        """Return what ``from_dict`` reads."""
        return {'q01': list(self.q01), 'q99': list(self.q99)}

    def normalize(self, actions: ArrayLike) -> NDArray[np.float64]:
        """[..., D] in the robot's units -> [-1, 1] (clipped), gripper untouched."""
        x, moves, low, span = self._parts(actions)
        x[..., moves] = np.clip(2.0 * (x[..., moves] - low) / span - 1.0, -1.0, 1.0)
        return x

    def unnormalize(self, values: ArrayLike) -> NDArray[np.float64]:
        """[..., D] in [-1, 1] -> the robot's units, gripper untouched."""
        x, moves, low, span = self._parts(values)
        x[..., moves] = 0.5 * (x[..., moves] + 1.0) * span + low
        return x

    @property
    def _moves(self) -> NDArray[np.bool_]:
        moves = np.ones(len(self.q01), bool)
        if self.gripper is not None:
            moves[self.gripper] = False
        return moves

    def _parts(self, values: ArrayLike) -> tuple[NDArray[Any], ...]:
        x = np.array(values, np.float64)
        if x.shape[-1:] != (len(self.q01),):
            raise UserError(f'actions {x.shape} do not end in {len(self.q01)} channels')
        moves = self._moves
        low = np.asarray(self.q01)[moves]
        return x, moves, low, np.asarray(self.q99)[moves] - low + _EPSILON
