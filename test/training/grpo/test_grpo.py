"""A whole run: it learns, it can be killed, it goes on, and it says what it did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.learn import alike
from support.small import CONFIG, small_policy, small_run
from support.toy import INSTRUCTIONS, ToyScene

from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.policy.checkpoint import read_tensors
from dtvla_ros.rollout.env_pool import LocalPool
from dtvla_ros.rollout.env_worker import EpisodeJob
from dtvla_ros.training import run_state
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.learner import PolicyPass, Tokens, rows_of
from dtvla_ros.training.grpo.report import CURVES, REPORT, where_time_goes
from dtvla_ros.training.grpo.rollout import Rollout, RolloutEngine
from dtvla_ros.training.grpo.start import load_start
from dtvla_ros.training.grpo.train import GrpoRun, GrpoTrainer, train_grpo

TEST = Path(__file__).parents[2]
SECONDS = ('seconds', 'episodes')  # what a run may differ in when it is repeated


@pytest.fixture(scope='module')
def init(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp('init'))


@pytest.fixture(scope='module')
def whole(init, tmp_path_factory):
    """Return the folder of a run of four iterations that nothing disturbed, and its history."""
    out = tmp_path_factory.mktemp('whole') / 'run'
    config = replace(CONFIG, evaluate_every=2)
    pool = LocalPool(ToyScene(), 2)
    return out, train_grpo(config, GrpoRun(init, out, 4, replan_steps=2), pool=pool)


def comparable(history):
    return [{k: v for k, v in row.items() if k not in SECONDS} for row in history]


def log_probs(run):
    """Return what the policy of a run gives the words and actions that a new one would draw, [N].

    Weights cannot be held equal: a bias before a norm over its own channel has no gradient but
    rounding, which Adam makes a whole step of.
    """
    model, transform = small_policy(seed=1)
    sampler = BatchSampler(model, transform, thought_temperature=1.0, action_temperature=1.0)
    jobs = [Rollout(EpisodeJob(task, 0, 2), (0,)) for task in INSTRUCTIONS]
    drawn = []
    with closing(LocalPool(ToyScene(), 2)) as pool:
        RolloutEngine(pool).run(
            sampler, lambda: jobs.pop(0) if jobs else None, drawn.append)
    drawn.sort(key=lambda t: t.job.task)
    rows = rows_of(drawn, alike(drawn, [0.0, 0.0]))
    tokens = Tokens.of(rows, transform, 'cpu')
    pixels = torch.from_numpy(np.stack([transform.pixels(row.frames) for row in rows]))
    judge = PolicyPass(load_start(run).model, sampler.banned, CONFIG)
    with torch.no_grad():
        found, _ = judge(tokens.written, pixels, torch.arange(len(rows)))
    return found[tokens.chosen]


def close(mine, wanted, path=''):
    """Hold two histories equal but for rounding: other episodes may have shared a batch."""
    if isinstance(wanted, dict):
        assert mine.keys() == wanted.keys(), path
        for k, v in wanted.items():
            close(mine[k], v, f'{path}.{k}')
    elif isinstance(wanted, list):
        assert len(mine) == len(wanted), path
        for k, v in enumerate(wanted):
            close(mine[k], v, f'{path}.{k}')
    elif 'drift' not in path:
        assert mine == pytest.approx(wanted, rel=1e-3, abs=1e-5), path


def test_a_run_leaves_a_policy_and_a_report(whole):
    out, history = whole
    assert [row['iteration'] for row in history] == [0, 1, 2, 3, 4]
    assert ['evaluation' in row for row in history] == [True, False, True, False, True]
    assert all(row['update']['drift'] < 1e-3 for row in history[1:] if row['update'])
    assert any(row['update'] for row in history[1:])
    assert not list((out / 'rollouts').iterdir())
    state = json.loads((out / run_state.CHECKPOINT / 'state.json').read_text())
    assert state['history'] == history
    assert state['tried'] == sum(row['groups']['tried'] for row in history[1:])
    page = (out / REPORT).read_text()
    assert (out / CURVES).read_bytes().startswith(b'\x89PNG')
    assert 'src="data:image/png;base64,' in page and 'src="data:image/jpeg;base64,' in page
    assert 'http' not in page.split('</style>')[1]
    assert any((out / 'tensorboard').iterdir())
    assert 'rollouts/s' in where_time_goes(history)
    weights = read_tensors(out / run_state.WEIGHTS)
    kept = read_tensors(out / run_state.CHECKPOINT / 'tensors.safetensors')
    assert all(torch.equal(v, kept[f'objective.{k}']) for k, v in weights.items())
    moved = [k for k, v in weights.items() if not torch.equal(v, kept[f'average.{k}'])]
    assert moved  # and the reference is what it began with


def test_the_reference_is_the_policy_it_began_with(whole, init):
    kept = read_tensors(whole[0] / run_state.CHECKPOINT / 'tensors.safetensors')
    for name, value in read_tensors(init / run_state.WEIGHTS).items():
        assert torch.equal(kept[f'average.{name}'], value)


def test_an_iteration_repeats_itself_exactly(whole, init, tmp_path):
    config, out = replace(CONFIG, evaluate_every=2), tmp_path / 'again'
    again = train_grpo(config, GrpoRun(init, out, 1, replan_steps=2),
                       pool=LocalPool(ToyScene(), 2))
    for mine, want in zip(comparable(again), comparable(whole[1]), strict=False):
        mine.pop('evaluation', None), want.pop('evaluation', None)
        assert mine == want


def second_iteration(out: Path) -> list[Path]:
    """Return the episodes kept of the second iteration, if that is what is being played."""
    try:
        state = json.loads((out / run_state.CHECKPOINT / 'state.json').read_text())
    except FileNotFoundError:  # none yet, or just being replaced
        return []
    if len(state['history']) != 2:
        return []
    return [p for p in (out / 'rollouts').glob('*.safetensors')
            if int(p.name[:7]) >= state['tried']]


def test_killed_in_the_middle_nothing_is_lost(whole, init, tmp_path):
    """SIGKILL while episodes of the second iteration lie on disk; the same command goes on."""
    out, (want_out, want) = tmp_path / 'run', whole
    command = [sys.executable, str(TEST / 'support' / 'practise.py'), str(init), str(out)]
    environment = dict(os.environ)
    process = subprocess.Popen([*command, '4'], env=environment, stdout=subprocess.DEVNULL)
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

    config = replace(CONFIG, evaluate_every=2)
    trainer = GrpoTrainer(config, GrpoRun(init, out, 4, replan_steps=2),
                          LocalPool(ToyScene(), 2))
    with closing(trainer.pool):
        assert trainer.iteration == 1
        assert all(p.stat().st_mtime_ns == stamp for p, stamp in kept.items())
        row = trainer.iterate()
        assert row['episodes'] == row['success']['n'] - len(kept)
        trainer.save()
    found = train_grpo(config, GrpoRun(init, out, 4, replan_steps=2),
                       pool=LocalPool(ToyScene(), 2))
    close(comparable(found), comparable(want))
    mine, wanted, before = (log_probs(run) for run in (out, want_out, init))
    torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-3)
    assert float((before - wanted).abs().max()) > 0.1


def test_a_run_goes_on_only_with_its_own_recipe(whole, init):
    out, _ = whole
    for config, run, named in (
            (replace(CONFIG, evaluate_every=2, learning_rate=1.0), {}, 'learning_rate'),
            (CONFIG, {'suite': 'libero_object'}, 'suite'), (CONFIG, {'replan_steps': 3}, 'replan'),
            (CONFIG, {'tasks': ('left',)}, 'tasks')):
        options = {'replan_steps': 2} | run
        with pytest.raises(UserError, match=f'another {named}'):
            GrpoTrainer(config, GrpoRun(init, out, 9, **options))


def test_estimate_costs_nothing(init, tmp_path, capsys):
    out = tmp_path / 'run'
    history = train_grpo(CONFIG, GrpoRun(init, out, 1, replan_steps=2), estimate=True,
                         pool=LocalPool(ToyScene(), 2))
    assert history == [{'iteration': 0}] and not out.exists()
    told = capsys.readouterr().out
    assert 'an iteration: 8 episodes (2 starts, 4 each) of about 6 decisions' in told


@pytest.mark.parametrize('text, named', [
    ('groups: many', 'groups'), ('gruops: 3', 'gruops'), ('a: [1', 'malformed'), ('word', 'key:'),
    ('group: 1', 'at least 2'), ('algorithm: ppo', 'ppo'), ('aggregation: sum', 'sum'),
    ('dual_clip: 0.5', 'dual_clip'), ('action_temperature: 0', 'action_temperature'),
    ('kl_weight: -1', 'kl_weight'), ('form: free', 'free'), ('precision: fp8', 'fp8'),
    ('compare: starts', 'starts'), ('progress_weight: -1', 'progress_weight'),
    ('workspace_low: [1.0, 0.0, 0.0]', 'workspace is empty on x'),
    ('workspace_high: [1.0, 0.0]', 'three numbers')])
def test_a_bad_recipe_is_named(tmp_path, text, named):
    path = tmp_path / 'recipe.yaml'
    path.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        GrpoConfig.read(path)
    assert str(path) in str(caught.value)


def test_the_shipped_recipes():
    recipes = TEST.parent / 'config' / 'train'
    assert GrpoConfig.read(recipes / 'grpo.yaml') == GrpoConfig()
    assert GrpoConfig().kl_weight > 0.0
    decisions = GrpoConfig.read(recipes / 'grpo-decisions.yaml')
    assert decisions.branching and decisions.kl_weight > 0.0


def test_iterations_or_minutes(init, tmp_path):
    for options in ({}, {'iterations': 1, 'minutes': 1.0}):
        with pytest.raises(UserError, match='--iterations'):
            GrpoRun(init, tmp_path, **options)


def test_an_unknown_task_is_named(init, tmp_path):
    run = GrpoRun(init, tmp_path / 'run', 1, tasks=('fly',), replan_steps=2)
    with pytest.raises(UserError, match='unknown task "fly".*left, right'):
        GrpoTrainer(CONFIG, run, LocalPool(ToyScene(), 1))
