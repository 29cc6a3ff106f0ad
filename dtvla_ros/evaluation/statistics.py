"""Honest numbers from few episodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a success rate, (0, 1) for n = 0.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Raises
    ------
    ValueError
        If not ``0 <= successes <= n``.

    """
    if not 0 <= successes <= n:
        raise ValueError(f'{successes} successes of {n} episodes')
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class Rate:
    """A success rate and how well it is known."""

    successes: int
    n: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Rate:
        outcomes = list(outcomes)
        return cls(sum(outcomes), len(outcomes))

    @property
    def value(self) -> float:
        return self.successes / self.n if self.n else math.nan

    def __str__(self) -> str:
        if not self.n:
            return '-'
        low, high = wilson(self.successes, self.n)
        return f'{self.value:.0%} ({self.successes}/{self.n}, {low:.0%} - {high:.0%})'

    def to_dict(self) -> dict[str, float | int | list[float]]:
        low, high = wilson(self.successes, self.n)
        return {
            'successes': self.successes, 'n': self.n,
            'rate': round(self.value, 4) if self.n else 0.0,
            'wilson95': [round(low, 4), round(high, 4)],
        }


def latency_summary(samples: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return median, p95 and p99 [ms] of the samples [s] of every phase."""
    return {
        phase: {
            'p50_ms': round(float(np.percentile(values, 50)) * 1e3, 3),
            'p95_ms': round(float(np.percentile(values, 95)) * 1e3, 3),
            'p99_ms': round(float(np.percentile(values, 99)) * 1e3, 3),
            'n': len(values),
        }
        for phase, values in samples.items() if len(values)
    }
