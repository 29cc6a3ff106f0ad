from __future__ import annotations

import functools
import operator
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.progress import standing
from dtvla_ros.evaluation.workers import make_replay_worker
from dtvla_ros.rollout.episode import EpisodeResult
from dtvla_ros.rollout.setup import SceneSetup, task_of
from dtvla_ros.rollout.workers import Backlog, run_jobs


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
    with pytest.raises(RuntimeError, match='at abc:(?s:.*)IndexError'):
        list(run_jobs(['abc'], operator.itemgetter, (9,), 1))


def test_a_dead_worker_is_noticed():
    with pytest.raises(RuntimeError, match='died at 3'):
        list(run_jobs([3], functools.partial, (os._exit,), 1))
