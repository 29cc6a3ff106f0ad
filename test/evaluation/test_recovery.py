"""An object is knocked out of the hand once, at a moment the seed says, and that is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dtvla_sim
from dtvla_ros.evaluation import recovery
from dtvla_ros.evaluation.workers import PolicySetup
from dtvla_ros.rollout.env import SceneSetup
from dtvla_sim.experts import make_expert
from dtvla_sim.forced_release import FORCED, ForcedReleaseEnv

NANO = Path(__file__).parents[2] / 'models' / 'nano'
TASK = 'put_the_can_in_the_wooden_bin'


@pytest.fixture(scope='module')
def env():
    environment = ForcedReleaseEnv(dtvla_sim.make('tabletop', image_size=32))
    yield environment
    environment.close()


def play(env, monkeypatch, seed, steps=400):
    """Let the expert play; return when the fingers opened against its will, and success."""
    env.reset(seed=seed, options={'task': TASK})
    expert = make_expert(env.env)
    executed, wanted, inner = [], [], env.env.step
    monkeypatch.setattr(env.env, 'step', lambda action: (executed.append(action[6]),
                                                         inner(action))[1])
    success = False
    while not success and len(wanted) < steps:
        action = expert.act().action
        wanted.append(action[6])
        success = env.step(action)[-1]['success']
    monkeypatch.undo()
    return np.flatnonzero(np.array(executed) < np.array(wanted)).tolist(), success


def test_the_hand_is_opened_once_and_the_expert_recovers(env, monkeypatch):
    opened, success = play(env, monkeypatch, 3)
    assert env.released
    assert success
    assert 1 <= len(opened) <= FORCED
    assert opened[-1] - opened[0] < FORCED
    assert play(env, monkeypatch, 3)[0] == opened, 'the same seed, the same moment'
    assert len({play(env, monkeypatch, seed, 120)[0][0] - opened[0] for seed in (4, 5)}) == 2


def test_nothing_is_knocked_from_an_empty_hand(env):
    env.reset(seed=1, options={'task': TASK})
    for _ in range(30):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert not env.released


def test_success_counts_only_where_something_was_lost():
    rows = [recovery.Recovery('full', 'a', 1, True, True, 90, ('dropped now reach',), 0),
            recovery.Recovery('full', 'a', 2, False, True, 60, (), 0),
            recovery.Recovery('masked', 'a', 1, True, False, 180, ('',), 0),
            recovery.Recovery('full', 'b', 1, True, True, 90, ('missed now reach',), 0)]
    summary = recovery.summarise(rows)
    assert (summary['full']['successes'], summary['full']['n']) == (2, 2)
    assert summary['full']['never_carried'] == 1
    assert summary['masked']['rate'] == 0.0
    assert [r.task for r in recovery.examples(rows, 5)] == ['a', 'b']


@pytest.mark.skipif(not NANO.is_dir(), reason='models/nano is not there')
def test_a_policy_loses_its_object_and_its_thoughts_are_kept():
    serve = recovery.make_recovery_worker(
        PolicySetup(SceneSetup('tabletop'), str(NANO), 'onnx', 'full'))
    result = serve(('full', TASK, dtvla_sim.EVAL_SEED_START + 2))
    assert result.knocked
    assert len(result.thoughts) > 3
    assert 0 <= result.at <= recovery.BEFORE
