from __future__ import annotations

import numpy as np
import pytest

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.command import look_at
from dtvla_sim.tabletop.start import JITTER, sample_start
from dtvla_sim.tabletop.tasks import TASKS


def places(task, seed, starts):
    objects, fixtures = sample_start(task, np.random.default_rng(seed), starts)
    return {name: place[:2] for name, place in {**objects, **fixtures}.items()}


@pytest.mark.parametrize('task', TASKS.values(), ids=lambda t: t.name)
def test_jittered_starts_are_one_arrangement_and_shuffled_ones_are_not(task):
    def spread(starts):
        drawn = [places(task, seed, starts) for seed in range(40)]
        return {name: np.ptp([d[name] for d in drawn], axis=0).max() for name in drawn[0]}

    jitter, shuffle = spread('jitter'), spread('shuffle')
    assert all(0.01 < jitter[name] <= (0.08 if 'bin' in name else 2 * JITTER) for name in jitter)
    assert all(shuffle[name] > 0.2 for name in shuffle)


def test_a_suite_names_its_starts():
    scene = look_at('tabletop', (), 'jitter')
    assert scene.starts == 'jitter' and look_at('tabletop', ()).starts == 'shuffle'
    assert scene.flags['msaa_samples'] == 0 and scene.flags['image_size'] == 128
    with pytest.raises(UserError, match='"benchmark"; there is in tabletop: shuffle, jitter'):
        look_at('tabletop', (), 'benchmark')
    with pytest.raises(UserError, match='"kitchen"'):
        dtvla_sim.make('tabletop', starts='kitchen')
