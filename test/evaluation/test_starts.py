from __future__ import annotations

import numpy as np
import pytest

import dtvla_sim
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.command import evaluate_experts, look_at
from dtvla_ros.rollout.env import SceneSetup
from dtvla_sim.tabletop.tasks import JITTER, TASKS, sample_start


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
    scene = look_at(SceneSetup('tabletop', 'jitter'), ())
    assert scene.starts == 'jitter' and look_at(SceneSetup('tabletop'), ()).starts == 'shuffle'
    assert scene.flags['msaa_samples'] == 0 and scene.flags['image_size'] == 128
    with pytest.raises(UserError, match='"benchmark"; tabletop has: shuffle, jitter'):
        look_at(SceneSetup('tabletop', 'benchmark'), ())
    with pytest.raises(UserError, match='unknown task "fly"'):
        look_at(SceneSetup('tabletop'), ('fly',))


def experts(suite, task, starts, seed=None, episodes=1):
    summary = evaluate_experts(suite, [task], episodes, False, 1, seed, starts, None)
    return summary['starts'], summary['seeds'], [e['steps'] for e in summary['episodes']]


def test_experts_begin_where_they_are_told():
    task = 'put_the_lemon_in_the_blue_bin'
    shuffle, jitter = (experts('tabletop', task, kind, 7, 3) for kind in (None, 'jitter'))
    assert shuffle[:2] == ('shuffle', [7, 9]) and jitter[:2] == ('jitter', [7, 9])
    assert shuffle[2] != jitter[2]
    with pytest.raises(UserError, match='"random"; tabletop has'):
        experts('tabletop', task, 'random')


@pytest.mark.slow
def test_random_resets_of_libero_are_not_its_recorded_states(libero):
    suite, task = 'libero_object', 'pick_up_the_milk_and_place_it_in_the_basket'
    first = dtvla_sim.EVAL_SEED_START
    recorded = experts(suite, task, 'benchmark')
    assert recorded[:2] == ('benchmark', [first, first])
    at_will = experts(suite, task, 'random', first)
    assert at_will[0] == 'random' and at_will[2] != recorded[2]
    # Seeds below have no recorded state, and the result says what they began from.
    assert experts(suite, task, None, 5) == experts(suite, task, 'random', 5)
    with pytest.raises(UserError, match='seed 5 has no recorded state'):
        experts(suite, task, 'benchmark', 5)
