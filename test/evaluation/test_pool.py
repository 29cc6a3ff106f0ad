from __future__ import annotations

import functools
import operator
import os

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.pool import run_jobs
from dtvla_ros.evaluation.setup import SceneSetup
from dtvla_ros.evaluation.workers import make_replay_worker


def test_every_job_is_done_once_by_two_processes():
    jobs = [f'job {k}' for k in range(7)]
    done = dict(run_jobs(jobs, operator.methodcaller, ('upper',), 2))
    assert done == {job: job.upper() for job in jobs}


def test_bad_input_found_in_a_worker_reaches_the_user():
    with pytest.raises(UserError, match='unknown suite "kitchen"'):
        list(run_jobs([('task', 1)], make_replay_worker, (SceneSetup('kitchen'),), 1))


def test_a_worker_error_names_the_job():
    with pytest.raises(RuntimeError, match='at abc:(?s:.*)IndexError'):
        list(run_jobs(['abc'], operator.itemgetter, (9,), 1))


def test_a_dead_worker_is_noticed():
    with pytest.raises(RuntimeError, match='died at 3'):
        list(run_jobs([3], functools.partial, (os._exit,), 1))
