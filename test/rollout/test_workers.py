"""Workers in processes: what they answer, and what happens when one dies, hangs or raises."""

from __future__ import annotations

import functools
import operator
import os
import signal
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small import small_policy
from support.toy import INSTRUCTIONS, ToyEnv, ToyScene

from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.journal import standing
from dtvla_ros.evaluation.workers import make_replay_worker, task_of
from dtvla_ros.rollout.batched import BatchedRollouts, Rollout, sampling_seed
from dtvla_ros.rollout.env import Restorable, SceneSetup
from dtvla_ros.rollout.episode import (
    EpisodeJob,
    EpisodeResult,
    observation_from_sim,
    run_episode,
)
from dtvla_ros.rollout.workers import TRIES, Ask, Backlog, End, Lost, open_envs, run_jobs

LEFT = np.tile(np.array([0, 1, 0, 0, 0, 0, -1], np.float32), (4, 1))


def test_an_episode_is_the_one_that_evaluation_runs():
    env = ToyEnv()
    seen = []

    def infer(observation):
        seen.append(observation)
        return type('Decision', (), {
            'chunk': LEFT, 'timings': {}, 'reasoning': '', 'outcome': 'complete'})

    wanted = run_episode(env, infer, 'left', 3, 2)
    with closing(open_envs(ToyScene(), 1)) as envs:
        envs.begin(0, EpisodeJob('left', 3, 2))
        for want in seen:
            ask = envs.wait([0])[0]
            assert isinstance(ask, Ask)
            assert ask.observation.instruction == INSTRUCTIONS['left']
            assert ask.observation.ee_position.tolist() == want.ee_position.tolist()
            for name, image in want.images.items():
                assert np.array_equal(ask.observation.images[name], image)
            envs.answer(0, LEFT)
        end = envs.wait([0])[0]
    assert isinstance(end, End) and wanted.success
    assert (end.result.success, end.result.steps, end.result.commands) == (
        True, wanted.steps, wanted.commands)
    assert isinstance(env, Restorable)


@pytest.mark.parametrize('fault', ['die', 'hang', 'raise'])
def test_a_lost_simulator_is_replaced_and_its_episode_repeated(tmp_path, fault):
    model, transform = small_policy()
    sampler = BatchSampler(model, transform, max_thought_tokens=4, thought_temperature=1.0,
                           action_temperature=1.0)
    jobs = [Rollout(EpisodeJob(task, 5, 2), (k,)) for k, task in enumerate(['left', 'right'])]

    def play(envs):
        rollouts, left, found = BatchedRollouts(envs), list(jobs), {}
        rollouts.run(sampler, lambda: left.pop(0) if left else None,
                     lambda e, result: found.update({e.rollout.job.task: (e, result)}))
        return found, rollouts.times.lost

    with closing(open_envs(ToyScene(), 2)) as envs:
        wanted, lost = play(envs)
    assert lost == 0
    path = tmp_path / 'fault'
    path.write_text(f'right {fault}')
    with closing(open_envs(ToyScene(fault=path), 2, timeout=3.0)) as envs:
        found, lost = play(envs)
    assert lost == 1
    for task, (want, result) in wanted.items():
        got, other = found[task]
        assert (other.steps, other.success) == (result.steps, result.success)
        for (mine,), (theirs,) in zip(got.decisions, want.decisions, strict=True):
            assert mine.thought_tokens == theirs.thought_tokens
            assert np.array_equal(mine.action_tokens, theirs.action_tokens)


def test_an_episode_that_always_fails_ends_the_run(tmp_path):
    path = tmp_path / 'fault'
    path.write_text('left always')
    model, transform = small_policy()
    jobs = [Rollout(EpisodeJob('left', 5, 4))]
    with closing(open_envs(ToyScene(fault=path), 1)) as envs:
        with pytest.raises(RuntimeError, match=f'lost {TRIES} times(.|\n)*the arm fell off'):
            BatchedRollouts(envs).run(
                BatchSampler(model, transform, max_thought_tokens=2),
                lambda: jobs.pop() if jobs else None, lambda *_: None)


def test_processes_end_with_their_owner():
    envs = open_envs(ToyScene(), 2)
    ids = [process.pid for process in envs._processes.values()]
    envs.close()
    envs.close()
    for pid in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_a_suite_refuses_is_told():
    with pytest.raises(UserError, match='unknown suite "nowhere"'):
        open_envs(SceneSetup('nowhere'), 1)
    with pytest.raises(UserError, match='positive'):
        open_envs(ToyScene(), 0)
    with pytest.raises(RuntimeError, match='ValueError'):
        open_envs(ToyScene(limit='many'), 1)


def test_keys_sample_differently():
    keys = [(0, 1, 2), (0, 2, 1), (0, 1, 3), (1, 1, 2)]
    seeds = {sampling_seed(key, k) for key in keys for k in range(50)}
    assert len(seeds) == 200
    assert sampling_seed((0, 1, 2), 7) == sampling_seed((0, 1, 2), 7)
    assert all(0 <= seed < 2 ** 63 for seed in seeds)


@pytest.mark.slow
def test_the_tabletop_suite_in_a_process():
    """A frozen simulator (SIGSTOP) is replaced by another; images are those of the suite."""
    import dtvla_sim

    with closing(open_envs(SceneSetup('tabletop'), 1, timeout=5.0)) as envs:
        env = dtvla_sim.make('tabletop')
        assert envs.info.tasks == tuple(env.tasks)
        task = env.tasks[0]
        obs, info = env.reset(seed=600_000, options={'task': task})
        want = observation_from_sim(obs, info, env)
        job = EpisodeJob(task, 600_000, 2, max_steps=4)
        for frozen in (True, False):
            envs.begin(0, job)
            ask = envs.wait([0])[0]
            assert isinstance(ask, Ask)
            for name, image in want.images.items():
                assert np.array_equal(ask.observation.images[name], image)
            if frozen:
                os.kill(envs._processes[0].pid, signal.SIGSTOP)
                envs.answer(0, LEFT)
                lost = envs.wait([0])[0]
                assert isinstance(lost, Lost) and 'within 5 s' in lost.reason
        envs.answer(0, LEFT)
        assert isinstance(envs.wait([0])[0], Ask)
        envs.answer(0, LEFT)
        end = envs.wait([0])[0]
        assert isinstance(end, End) and end.result.steps == 4


def test_every_job_is_done_once_by_two_processes():
    jobs = [f'job {k}' for k in range(7)]
    done = dict(run_jobs(jobs, operator.methodcaller, ('upper',), 2))
    assert done == {job: job.upper() for job in jobs}


def test_a_process_stays_with_a_task():
    jobs = [(task, seed) for seed in range(3) for task in 'abc']
    done = [job for job, _ in run_jobs(jobs, operator.itemgetter, (0,), 1, task_of)]
    assert done == sorted(jobs)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.lists(st.integers(0, 3)))
def test_no_more_changes_of_task_than_must_be(sizes, order):
    """Whoever is ready first: ``order`` says who asks, then all in turn."""
    jobs = [('', str(task), seed) for seed in range(6) for task, n in enumerate(sizes) if seed < n]
    backlog = Backlog(jobs, task_of)
    given_out = {who: [] for who in range(4)}
    while len(backlog):
        who = order.pop() if order else len(backlog) % 4
        given_out[who].append(backlog.take(who))
    assert sorted(job for mine in given_out.values() for job in mine) == sorted(jobs)
    changes = 0
    for mine in given_out.values():
        tasks = [task_of(job) for job in mine]
        changes += sum(a != b for a, b in zip(['', *tasks], tasks))
        for task in set(tasks):
            seeds = [job[-1] for job in mine if task_of(job) == task]
            assert seeds == sorted(seeds)
    # Every task once, and at the end those who would idle take a share of the others' work.
    alone = sum(len(set(map(task_of, mine))) > 0 for mine in given_out.values())
    assert changes <= len(sizes) + alone * (alone - 1)


def test_the_success_meanwhile_says_of_how_many_tasks_it_is():
    wanted = [(task, seed) for task in 'ab' for seed in (1, 2)]
    done = {}
    assert standing(wanted, done) == '0/2 tasks: -'
    done = {job: EpisodeResult(*job, True, 9) for job in wanted[:2]}
    assert standing(wanted, done).startswith('1/2 tasks: 100% (2/2, ')
    done |= {job: EpisodeResult(*job, False, 9) for job in wanted[2:]}
    assert standing(wanted, done).startswith('50% (2/4, ')


def test_bad_input_found_in_a_worker_reaches_the_user():
    with pytest.raises(UserError, match='unknown suite "kitchen"'):
        list(run_jobs([('task', 1)], make_replay_worker, (SceneSetup('kitchen'),), 1))


def test_a_worker_error_names_the_job():
    with pytest.raises(RuntimeError, match=f'abc: .*lost {TRIES} times(?s:.*)IndexError'):
        list(run_jobs(['abc'], operator.itemgetter, (9,), 1))


def test_a_dead_worker_is_noticed():
    with pytest.raises(RuntimeError, match=f'3: .*lost {TRIES} times, at last: its process died'):
        list(run_jobs([3], functools.partial, (os._exit,), 1))
