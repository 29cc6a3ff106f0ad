"""A whole run: it learns, it can be killed, it goes on, and it says what it did."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small import CONFIG, small_run
from support.toy import ToyScene
from torch.utils._pytree import tree_flatten

from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import read_tensors
from dtvla_ros.rollout.workers import open_envs
from dtvla_ros.training import checkpoint
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.report import CURVES, REPORT, where_time_goes
from dtvla_ros.training.grpo.train import GrpoRun, GrpoTrainer, train_grpo

TEST = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def init(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp('init'))


def train(init, out: Path, iterations: int, **options):
    return train_grpo(CONFIG, GrpoRun(init, out, iterations, replan_steps=2),
                      pool=open_envs(ToyScene(), 2), **options)


@pytest.fixture(scope='module')
def whole(init, tmp_path_factory):
    """Return the folder of a run of three iterations that nothing disturbed, and its history."""
    out = tmp_path_factory.mktemp('whole') / 'run'
    return out, train(init, out, 3)


def comparable(history, *without):
    """Return a history without what a run may differ in when it is repeated."""
    return [{k: v for k, v in row.items() if k not in ('seconds', 'episodes', *without)}
            for row in history]


def test_a_run_leaves_a_policy_and_a_report(whole, init):
    out, history = whole
    assert [row['iteration'] for row in history] == [0, 1, 2, 3]
    assert ['evaluation' in row for row in history] == [True, False, True, True]
    assert all(row['update']['log_prob_mismatch'] < 1e-3 for row in history[1:] if row['update'])
    assert not list((out / 'rollouts').iterdir())
    state = json.loads((out / checkpoint.CHECKPOINT / 'state.json').read_text())
    assert state['history'] == history
    assert state['tried'] == sum(row['groups']['tried'] for row in history[1:])
    page = (out / REPORT).read_text()
    assert (out / CURVES).read_bytes().startswith(b'\x89PNG')
    assert 'src="data:image/png;base64,' in page and 'src="data:image/jpeg;base64,' in page
    assert 'http' not in page.split('</style>')[1]
    assert any((out / 'tensorboard').iterdir())
    assert 'rollouts/s' in where_time_goes(history)
    weights = read_tensors(out / checkpoint.WEIGHTS)
    kept = read_tensors(out / checkpoint.CHECKPOINT / 'tensors.safetensors')
    before = read_tensors(init / checkpoint.WEIGHTS)
    assert all(torch.equal(v, kept[f'objective.{k}']) for k, v in weights.items())
    assert all(torch.equal(v, kept[f'average.{k}']) for k, v in before.items())  # the reference
    assert any(not torch.equal(v, before[k]) for k, v in weights.items())


def test_an_iteration_repeats_itself_exactly(whole, init, tmp_path):
    again = train(init, tmp_path / 'again', 1)
    assert comparable(again, 'evaluation') == comparable(whole[1][:2], 'evaluation')


def second_iteration(out: Path) -> list[Path]:
    """Return the episodes kept of the second iteration, if that is what is being played."""
    with suppress(FileNotFoundError):  # no state yet, or just being replaced
        state = json.loads((out / checkpoint.CHECKPOINT / 'state.json').read_text())
        return [p for p in (out / 'rollouts').glob('*.safetensors')
                if len(state['history']) == 2 and int(p.name[:7]) >= state['tried']]
    return []


def test_killed_in_the_middle_nothing_is_lost(whole, init, tmp_path):
    """SIGKILL while episodes of the second iteration lie on disk; the same command goes on."""
    out, (_, want) = tmp_path / 'run', whole
    command = [sys.executable, '-m', 'support.practise', str(init), str(out), '3']
    process = subprocess.Popen(command, cwd=TEST, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 900.0
    try:
        while len(second_iteration(out)) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {p: p.stat().st_mtime_ns for p in second_iteration(out)}
    assert len(kept) >= 3
    (torn := out / 'rollouts/.tmp4V65cQ').touch()  # as safetensors calls what it is writing

    trainer = GrpoTrainer(CONFIG, GrpoRun(init, out, 3, replan_steps=2), open_envs(ToyScene(), 2))
    with closing(trainer.pool):
        assert trainer.iteration == 1 and not torn.exists()
        assert all(p.stat().st_mtime_ns == stamp for p, stamp in kept.items())
        row = trainer.iterate()
        assert row['episodes'] == row['success']['n'] - len(kept)
        trainer.save()
    (found, shape), (values, same) = (
        tree_flatten(comparable(history)) for history in (train(init, out, 3), want))
    assert shape == same  # and equal but for rounding: other episodes may have shared a batch
    assert found == pytest.approx(values, rel=1e-3, abs=1e-5)


def test_a_run_goes_on_only_with_its_own_configuration(whole, init):
    out, _ = whole
    for config, run, named in (
            (replace(CONFIG, learning_rate=1.0), {}, 'learning_rate'),
            (CONFIG, {'suite': 'libero_object'}, 'suite'), (CONFIG, {'replan_steps': 3}, 'replan'),
            (CONFIG, {'tasks': ('left',)}, 'tasks')):
        options = {'replan_steps': 2} | run
        with pytest.raises(UserError, match=f'another {named}'):
            GrpoTrainer(config, GrpoRun(init, out, 9, **options))


def test_estimate_costs_nothing(init, tmp_path, capsys):
    out = tmp_path / 'run'
    assert train(init, out, 1, estimate=True) == [{'iteration': 0}] and not out.exists()
    told = capsys.readouterr().out
    assert 'an iteration: 8 episodes (2 starts, 4 each) of about 6 decisions' in told


def test_the_shipped_recipe_has_the_defaults():
    path = TEST.parent / 'config' / 'train' / 'grpo.yaml'
    assert GrpoConfig.read(path) == GrpoConfig()
    assert GrpoConfig.read(path, ['follow=greedy']) == GrpoConfig(continue_from='greedy')


def test_bad_runs_are_named(init, tmp_path):
    for options in ({}, {'iterations': 1, 'minutes': 1.0}):
        with pytest.raises(UserError, match='--iterations'):
            GrpoRun(init, tmp_path, **options)
    run = GrpoRun(init, tmp_path / 'run', 1, tasks=('fly',), replan_steps=2)
    with pytest.raises(UserError, match='unknown task "fly".*left, right'):
        train_grpo(CONFIG, run, pool=open_envs(ToyScene(), 1))
