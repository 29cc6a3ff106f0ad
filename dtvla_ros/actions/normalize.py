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
    """Quantiles 0.01 and 0.99 of each channel; the last, a gripper at -1 or +1, is untouched."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.q01) != len(self.q99) or len(self.q01) < 2:
            raise UserError(f'action statistics: q01 has {len(self.q01)} channels and q99 '
                            f'{len(self.q99)}; both need the same, at least 2')
        for k, (low, high) in enumerate(zip(self.q01, self.q99, strict=True)):
            if not (np.isfinite(low) and np.isfinite(high)):
                raise UserError(f'action statistics: channel {k} is not finite ({low}, {high})')
            if k < len(self.q01) - 1 and high <= low:
                raise UserError(f'action statistics: channel {k} has q01 {low} >= q99 {high}; '
                                'make them with dtvla data stats DATASET --out FOLDER, which '
                                'gives a constant channel a narrow span')

    @classmethod
    def of(cls, actions: ArrayLike) -> ActionStatistics:
        """Return those of actions [N, D], N > 0.

        Where the quantiles of a channel coincide its extremes stand for them, and where those do,
        too, a narrow span around its value. Raises ``UserError`` for what is not finite.
        """
        values = np.asarray(actions, np.float64)
        low, high = np.quantile(values, (0.01, 0.99), axis=0)
        still = high - low < STILL
        low, high = np.where(still, values.min(0), low), np.where(still, values.max(0), high)
        still = high - low < STILL
        return cls(tuple(np.where(still, low - NARROW, low)),
                   tuple(np.where(still, high + NARROW, high)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], dim: int | None = None) -> ActionStatistics:
        """Read ``{'q01': [...], 'q99': [...]}`` (or the same under 'action'), ``dim`` long."""
        try:
            data = data.get('action', data)
            made = cls(*(tuple(map(float, data[key])) for key in ('q01', 'q99')))
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
        x, low, span = self._parts(actions)
        x[..., :-1] = np.clip(2.0 * (x[..., :-1] - low) / span - 1.0, -1.0, 1.0)
        return x

    def unnormalize(self, values: ArrayLike) -> NDArray[np.float64]:
        """[..., D] in [-1, 1] -> the robot's units, gripper untouched."""
        x, low, span = self._parts(values)
        x[..., :-1] = 0.5 * (x[..., :-1] + 1.0) * span + low
        return x

    def _parts(self, values: ArrayLike) -> tuple[NDArray[np.float64], ...]:
        x = np.array(values, np.float64)
        if x.shape[-1:] != (len(self.q01),):
            raise UserError(f'actions {x.shape} do not end in {len(self.q01)} channels')
        low = np.asarray(self.q01[:-1])
        return x, low, np.asarray(self.q99[:-1]) - low + _EPSILON
