"""Simulators in processes: what they answer, and what happens when one dies, hangs or raises."""

from __future__ import annotations

import os
import signal
from contextlib import closing

import numpy as np
import pytest
from support.small import small_policy
from support.toy import INSTRUCTIONS, ToyEnv, ToyScene

from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env_pool import LocalPool, Lost
from dtvla_ros.rollout.env_worker import End, EpisodeJob, Look
from dtvla_ros.rollout.episode import observation_from_sim, run_episode
from dtvla_ros.rollout.setup import SceneSetup
from dtvla_ros.training.grpo.rollout import TRIES, Rollout, RolloutEngine, sampling_seed

LEFT = np.tile(np.array([0, 1, 0, 0, 0, 0, -1], np.float32), (4, 1))


def test_an_episode_is_the_one_that_evaluation_plays():
    env = ToyEnv()
    seen = []

    def decide(observation):
        seen.append(observation)
        return type('Decision', (), {
            'chunk': LEFT, 'timings': {}, 'reasoning': '', 'outcome': 'complete'})

    wanted = run_episode(env, decide, 'left', 3, 2)
    with closing(LocalPool(ToyScene(), 1)) as pool:
        pool.begin(0, EpisodeJob('left', 3, 2))
        for want in seen:
            look = pool.wait([0])[0]
            assert isinstance(look, Look)
            assert look.observation.instruction == INSTRUCTIONS['left']
            assert look.observation.ee_position.tolist() == want.ee_position.tolist()
            for name, image in want.images.items():
                assert np.array_equal(look.observation.images[name], image)
            pool.go_on(0, LEFT)
        end = pool.wait([0])[0]
    assert isinstance(end, End) and wanted.success
    assert (end.result.success, end.result.steps, end.result.commands) == (
        True, wanted.steps, wanted.commands)


@pytest.mark.parametrize('fault', ['die', 'hang', 'raise'])
def test_a_lost_simulator_is_replaced_and_its_episode_repeated(tmp_path, fault):
    model, transform = small_policy()
    sampler = BatchSampler(model, transform, max_thought_tokens=4, thought_temperature=1.0,
                           action_temperature=1.0)
    jobs = [Rollout(EpisodeJob(task, 5, 2), (k,)) for k, task in enumerate(['left', 'right'])]

    def play(pool):
        engine, left, found = RolloutEngine(pool), list(jobs), {}
        engine.run(sampler, lambda: left.pop(0) if left else None,
                   lambda t: found.update({t.job.task: t}))
        return found, engine.times.lost

    with closing(LocalPool(ToyScene(), 2)) as pool:
        wanted, lost = play(pool)
    assert lost == 0
    path = tmp_path / 'fault'
    path.write_text(f'right {fault}')
    with closing(LocalPool(ToyScene(fault=path), 2, timeout=3.0)) as pool:
        found, lost = play(pool)
    assert lost == 1
    for task, want in wanted.items():
        assert found[task].steps == want.steps and found[task].success == want.success
        assert len(found[task].decisions) == len(want.decisions)
        for mine, other in zip(found[task].decisions, want.decisions, strict=True):
            assert mine.thought_tokens == other.thought_tokens
            assert np.array_equal(mine.action_tokens, other.action_tokens)


def test_an_episode_that_always_fails_ends_the_run(tmp_path):
    path = tmp_path / 'fault'
    path.write_text('left always')
    model, transform = small_policy()
    jobs = [Rollout(EpisodeJob('left', 5, 4))]
    with closing(LocalPool(ToyScene(fault=path), 1)) as pool:
        engine = RolloutEngine(pool)
        with pytest.raises(RuntimeError, match=f'lost {TRIES} times(.|\n)*the arm fell off'):
            engine.run(BatchSampler(model, transform, max_thought_tokens=2),
                       lambda: jobs.pop() if jobs else None, lambda _: None)


def test_processes_end_with_the_pool():
    pool = LocalPool(ToyScene(), 2)
    ids = [worker.process.pid for worker in pool._workers.values()]
    pool.close()
    pool.close()
    for pid in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_a_suite_refuses_is_told():
    with pytest.raises(UserError, match='unknown suite "nowhere"'):
        LocalPool(SceneSetup('nowhere'), 1)
    with pytest.raises(UserError, match='positive'):
        LocalPool(ToyScene(), 0)
    with pytest.raises(RuntimeError, match='ValueError'):
        LocalPool(ToyScene(limit='many'), 1)


def test_keys_draw_differently():
    keys = [(0, 1, 2), (0, 2, 1), (0, 1, 3), (1, 1, 2)]
    seeds = {sampling_seed(key, k) for key in keys for k in range(50)}
    assert len(seeds) == 200
    assert sampling_seed((0, 1, 2), 7) == sampling_seed((0, 1, 2), 7)
    assert all(0 <= seed < 2 ** 63 for seed in seeds)


@pytest.mark.slow
def test_the_tabletop_suite_in_a_pool():
    """A frozen simulator (SIGSTOP) is replaced by another; pictures are those of the suite."""
    import dtvla_sim

    with closing(LocalPool(SceneSetup('tabletop'), 1, timeout=5.0)) as pool:
        env = dtvla_sim.make('tabletop')
        assert pool.ready.tasks == tuple(env.tasks)
        task = env.tasks[0]
        obs, info = env.reset(seed=600_000, options={'task': task})
        want = observation_from_sim(obs, info, env)
        job = EpisodeJob(task, 600_000, 2, max_steps=4)
        for frozen in (True, False):
            pool.begin(0, job)
            look = pool.wait([0])[0]
            assert isinstance(look, Look)
            for name, image in want.images.items():
                assert np.array_equal(look.observation.images[name], image)
            if frozen:
                os.kill(pool._workers[0].process.pid, signal.SIGSTOP)
                pool.go_on(0, LEFT)
                lost = pool.wait([0])[0]
                assert isinstance(lost, Lost) and 'within 5 s' in str(lost)
        pool.go_on(0, LEFT)
        assert isinstance(pool.wait([0])[0], Look)
        pool.go_on(0, LEFT)
        end = pool.wait([0])[0]
        assert isinstance(end, End) and end.result.steps == 4
