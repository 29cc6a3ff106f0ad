from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla_ros.evaluation.statistics import Rate, latency_summary, wilson


@pytest.mark.parametrize('successes, n, low, high', [
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
])
def test_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_the_rate_and_is_symmetric(case):
    successes, n = case
    low, high = wilson(successes, n)
    assert 0.0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1.0
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_nothing_known_without_episodes():
    assert wilson(0, 0) == (0.0, 1.0)
    assert math.isnan(Rate(0, 0).value)


@pytest.mark.parametrize('successes, n', [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match='successes'):
        wilson(successes, n)


def test_latency_summary_in_milliseconds():
    row = latency_summary({'think': [0.001 * k for k in range(1, 101)], 'act': []})
    assert set(row) == {'think'}
    assert row['think']['p50_ms'] == pytest.approx(50.5)
    assert row['think']['n'] == 100
