"""Workers in processes: what they answer, and what happens when one dies, hangs or raises."""

import functools
import operator
import os
from contextlib import closing
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toy import ToyEnv, ToyScene

from dtvla_ros.engine.engine import Decision
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.workers import make_replay_worker, task_of
from dtvla_ros.rollout.batched import sampling_seed
from dtvla_ros.rollout.env import SceneSetup
from dtvla_ros.rollout.episode import EpisodeJob, run_episode
from dtvla_ros.rollout.workers import TRIES, Ask, Backlog, End, open_envs, run_jobs

LEFT = np.tile(np.array([0, 1, 0, 0, 0, 0, -1], np.float32), (4, 1))


def test_an_episode_is_the_one_that_evaluation_runs():
    seen = []

    def infer(observation):
        seen.append(observation)
        return Decision('', 'complete', LEFT, (), np.zeros(0, np.int64))

    wanted = run_episode(ToyEnv(), infer, 'left', 3, 2)
    with closing(open_envs(ToyScene(), 1)) as envs:
        envs.begin(0, EpisodeJob('left', 3, 2))
        for want in seen:
            ask = envs.wait([0])[0]
            assert isinstance(ask, Ask) and ask.observation.instruction == want.instruction
            assert ask.observation.ee_position.tolist() == want.ee_position.tolist()
            for name, image in want.images.items():
                assert np.array_equal(ask.observation.images[name], image)
            envs.answer(0, LEFT)
        end = envs.wait([0])[0]
        processes = [slot.process.pid for slot in envs._slots.values()]
        envs.close()  # and again at the end of this block
    assert isinstance(end, End) and wanted.success
    assert (end.result.success, end.result.steps, end.result.commands) == (
        True, wanted.steps, wanted.commands)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize('fault', ['die', 'hang', 'raise'])
def test_a_lost_simulator_is_replaced_and_its_episode_repeated(play, tmp_path, fault):
    path = tmp_path / 'fault'
    with closing(open_envs(ToyScene(fault=path), 2, timeout=3.0)) as envs:
        wanted, lost = play(envs)
        assert lost == 0
        path.write_text(f'right {fault}')
        assert play(envs) == (wanted, 1)


def test_an_episode_that_always_fails_ends_the_run(play, tmp_path):
    path = tmp_path / 'fault'
    path.write_text('left always')
    with closing(open_envs(ToyScene(fault=path), 1)) as envs:
        with pytest.raises(RuntimeError, match=f'lost {TRIES} times(.|\n)*the arm fell off'):
            play(envs)


def test_what_a_suite_refuses_is_told():
    for scene, size, error, said in (
            (SceneSetup('nowhere'), 1, UserError, 'unknown suite "nowhere"'),
            (ToyScene(), 0, UserError, 'positive'),
            (ToyScene(limit='many'), 1, RuntimeError, 'ValueError')):
        with pytest.raises(error, match=said):
            open_envs(scene, size)


def test_keys_sample_differently():
    keys = [(0, 1, 2), (0, 2, 1), (0, 1, 3), (1, 1, 2)]
    seeds = [[sampling_seed(key, k) for key in keys for k in range(50)] for _ in range(2)]
    assert seeds[0] == seeds[1] and len({*seeds[0]}) == 200
    assert 0 <= min(seeds[0]) <= max(seeds[0]) < 2**63


def test_every_job_is_done_once_by_two_processes():
    jobs = [f'job {k}' for k in range(7)]
    done = dict(run_jobs(jobs, operator.methodcaller, ('upper',), 2))
    assert done == {job: job.upper() for job in jobs}


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


@pytest.mark.parametrize('error, said, job, make, setup', [
    (UserError, 'suite "kitchen"', ('task', 1), make_replay_worker, (SceneSetup('kitchen'),)),
    (ModuleNotFoundError, 'rerun', '', import_module, ('rerun.no_such_module',)),
    (RuntimeError, f'abc: .*lost {TRIES} times(?s:.*)IndexError', 'abc', operator.itemgetter,
     (9,)),
    (RuntimeError, f'3: .*lost {TRIES} times, at last: its process died', 3, functools.partial,
     (os._exit,))], ids=['refused', 'lacks a package', 'raises', 'dies'])
def test_what_happens_in_a_worker_reaches_the_user(error, said, job, make, setup):
    with pytest.raises(error, match=said):
        list(run_jobs([job], make, setup, 1))
