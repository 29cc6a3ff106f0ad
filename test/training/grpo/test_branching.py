"""Decisions sampled several times from one state: their progress, and that it is learnt."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small import CONFIG, run_toys, sampler_of, small_policy, small_run
from support.toy import ToyEnv, ToyScene

from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.engine.engine import Decision
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.batched import Rollout
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.rollout.workers import open_envs
from dtvla_ros.training.grpo.learner import MicroBatch, by_observation, transitions
from dtvla_ros.training.grpo.report import CURVES
from dtvla_ros.training.grpo.rollout import BranchJob
from dtvla_ros.training.grpo.train import GrpoRun, GrpoTrainer, train_grpo

PER_STEP = replace(CONFIG, rollouts='per-step', min_reward_range=0.01, progress_weight=10.0)


def chunks(*speeds: float) -> np.ndarray:
    """Return chunks [G, 4, 7] that move along y."""
    out = np.zeros((len(speeds), 4, 7), np.float32)
    out[:, :, 1] = np.array(speeds)[:, None]
    return out


def decided(found) -> Decision:
    return Decision('', 'complete', found, (), np.zeros(0, np.int64))


def test_all_samples_begin_at_the_same_state_and_the_first_goes_on():
    seen = []

    def infer(observation):
        seen.append(float(observation.ee_position[1]))
        return decided(chunks(0.5, -1.0, 0.1))

    result = BranchJob(EpisodeJob('left', 3, 2)).run(ToyEnv(), infer)
    assert result.success
    assert 2 * (len(result.progress) - 1) < result.steps <= 2 * len(result.progress)
    np.testing.assert_allclose(np.diff(seen), 0.1, atol=1e-6)  # two steps of 0.05 each
    for progress in result.progress[:-1]:
        np.testing.assert_allclose(progress, (0.1, -0.2, 0.02), atol=1e-6)
    last = 0.5 - seen[-1]  # what was left, and no more than that is made
    np.testing.assert_allclose(result.progress[-1], (last, -0.2, 0.02), atol=1e-6)


def test_an_episode_ends_outside_the_workspace():
    job = EpisodeJob('left', 3, 2, workspace=((0.0, -0.15, 0.0), (1.0, 0.8, 1.0)))
    result = BranchJob(job).run(ToyEnv(), lambda _: decided(chunks(-1.0, 1.0)))
    assert not result.success and result.steps <= 2
    alone = job.run(ToyEnv(), lambda _: decided(chunks(-1.0)[0]))
    assert not alone.success and alone.steps == result.steps
    assert replace(job, workspace=None).run(
        ToyEnv(), lambda _: decided(chunks(-1.0)[0])).steps == ToyEnv().max_steps


def test_a_suite_that_cannot_go_back_says_so():
    with pytest.raises(UserError, match='rollouts=episode'):
        BranchJob(EpisodeJob('left', 3, 2)).run(object(), lambda _: decided(chunks(0.0)))


@pytest.fixture(scope='module')
def sampled():
    """Return a policy's trajectories of one episode, four samples of every decision."""
    episode = Rollout(BranchJob(EpisodeJob('left', 4, 2)), (0, 5, 0))
    return run_toys(sampler_of(*small_policy()), [episode], samples=range(4))


def test_an_episode_may_go_on_greedily(sampled):
    policy, episode = small_policy(), EpisodeJob('left', 4, 2)
    found = run_toys(sampler_of(*policy), [Rollout(BranchJob(episode), (0, 5, 0))],
                 samples=(None, *range(4)))
    wanted, = run_toys(BatchSampler(*policy, max_thought_tokens=6), [Rollout(episode, (0, 5, 0))])
    assert [t.key for t in found] == [t.key for t in sampled]
    for mine, frames in zip(found[0].frames, wanted.frames, strict=True):
        assert all(np.array_equal(mine[name], image) for name, image in frames.items())
    assert found[0].steps == wanted.steps
    for mine, other in zip(found, sampled, strict=True):  # as where a sample is followed
        assert np.array_equal(mine.decisions[0].action_tokens, other.decisions[0].action_tokens)
        assert mine.progress[0] == other.progress[0]


def test_samples_share_what_was_seen_and_are_their_own(sampled):
    assert [t.key for t in sampled] == [(0, 5, k) for k in range(4)]
    for k in range(len(sampled[0].decisions)):
        assert len({id(t.frames[k]) for t in sampled}) == 1
        assert len({t.decisions[k].prompt_tokens for t in sampled}) == 1
        assert len({t.decisions[k].action_tokens.tobytes() for t in sampled}) == 4
    rows = transitions(sampled, [torch.zeros(len(t.decisions)) for t in sampled])
    groups = by_observation(rows)
    assert [len(group) for group in groups] == [4] * len(sampled[0].decisions)
    assert [row.decision for row in groups[1]] == [t.decisions[1] for t in sampled]
    for t in sampled:
        moved = [0.1 * np.clip(d.chunk[:2, 1], -1.0, 1.0).sum() for d in t.decisions]
        assert t.progress[:-1] == pytest.approx(moved[:-1], abs=1e-5)


def played(tmp_path, replan: int, limit: int, **changes):
    """Return a trainer and the groups of its first iteration, format worth nothing."""
    run = GrpoRun(small_run(tmp_path / 'init'), tmp_path / 'run', 1, replan_steps=replan)
    trainer = GrpoTrainer(replace(PER_STEP, format_weight=0.0, **changes), run,
                          open_envs(ToyScene(limit=limit), 2))
    with closing(trainer.pool):
        return trainer, trainer.roll_out()


def test_advantages_compare_the_samples_of_one_decision(tmp_path):
    _, groups = played(tmp_path, 2, 12)
    assert len(groups.kept) == 8 and len(groups.episodes) == 2
    for first in (0, 4):
        progress = torch.tensor([t.progress for t in groups.kept[first:first + 4]])  # [G, n]
        wanted = (progress - progress.mean(0)) / progress.std(0)
        wanted[:, progress.amax(0) - progress.amin(0) < 0.001] = torch.nan
        torch.testing.assert_close(torch.stack(groups.advantages()[first:first + 4]), wanted,
                                   atol=2e-3, rtol=2e-3, equal_nan=True)


def test_an_update_makes_the_better_samples_likelier(tmp_path):
    trainer, groups = played(tmp_path, 4, 16, num_starts=8, num_minibatches=1, num_iterations=4)
    assert not any(t.success for t in groups.kept)  # the end of an episode teaches nothing here
    rows = transitions(groups.kept, groups.advantages())
    learner = trainer.learner
    assert learner.update(rows, len(groups.kept), 0)['log_prob_mismatch'] < 1e-3
    together = []
    for group in by_observation(rows):
        batch = MicroBatch.of(group, trainer.transform, 'cpu')
        found = learner.log_probs(learner.model, batch)[0].detach()
        change = ((found - batch.old_log_probs) * batch.executed).sum(1)
        together.append(float(((change - change.mean()) * batch.advantages).mean()))
    assert len(together) > 16
    assert np.mean(together) > 4.0 * np.std(together) / len(together) ** 0.5


def test_a_run_tells_the_progress_of_its_decisions(tmp_path):
    config = replace(PER_STEP, evaluate_episodes=0)
    run = GrpoRun(small_run(tmp_path / 'init'), tmp_path / 'run', 1, replan_steps=4)
    history = train_grpo(config, run, pool=open_envs(ToyScene(), 2))
    assert all(row['success']['n'] == 2 for row in history[1:])  # samples are no episodes
    assert all(abs(row['progress']) < 0.4 for row in history[1:])
    assert (tmp_path / 'run' / CURVES).exists()
    again = train_grpo(config, replace(run, iterations=2), pool=open_envs(ToyScene(), 2))
    assert [row['iteration'] for row in again] == [0, 1, 2]
