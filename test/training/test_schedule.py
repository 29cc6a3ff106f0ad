"""Learning-rate factors of small runs and of the published one."""

from __future__ import annotations

import pytest
from support.golden import document

from dtvla_ros.errors import UserError
from dtvla_ros.training.schedule import warm_cosine, warm_then_cosine


def test_golden_schedule():
    data = document('lr_schedule')
    floor = data['min_lr'] / data['base_lr']
    for step, factor in data['factor'].items():
        found = warm_then_cosine(int(step), data['total'], data['warmup'], floor)
        assert found == pytest.approx(factor, abs=1e-9), step
    assert warm_then_cosine(0, data['total'], data['warmup'], floor) == pytest.approx(
        data['init_rate'], abs=1e-12)


def test_small_runs_warm_up_below_the_cosine():
    assert warm_cosine(0, 200, 0.0, 0.02) == pytest.approx(1 / 200)
    assert warm_cosine(99, 200, 0.5, 0.02) == pytest.approx(0.5 * (0.02 + 0.98 * 0.5))
    assert warm_cosine(9999, 200, 1.3, 0.02) == pytest.approx(0.02)


def test_without_warm_up_it_starts_at_the_peak():
    assert warm_then_cosine(0, 10, 0, 0.1) == 1.0
    assert warm_then_cosine(5, 10, 0, 0.0) == pytest.approx(0.5)
    assert warm_then_cosine(99, 10, 0, 0.1) == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match='warm-up of 10 steps in a run of 10'):
        warm_then_cosine(0, 10, 10, 0.1)
