"""Decisions drawn several times from one moment: what each gained, and that it is learnt."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small import CONFIG, small_policy, small_run
from support.toy import ToyEnv, ToyScene

from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.engine.engine import Decision
from dtvla_ros.errors import UserError
from dtvla_ros.rollout.env_pool import LocalPool
from dtvla_ros.rollout.env_worker import EpisodeJob
from dtvla_ros.training.grpo.branching import BranchJob
from dtvla_ros.training.grpo.learner import Tokens, looks_of, rows_of
from dtvla_ros.training.grpo.report import CURVES
from dtvla_ros.training.grpo.rollout import Rollout, RolloutEngine
from dtvla_ros.training.grpo.train import GrpoRun, GrpoTrainer, train_grpo
from dtvla_ros.training.grpo.trajectory import Trajectory

BRANCHING = replace(CONFIG, compare='decisions', least_spread=0.01, progress_weight=10.0)


def chunks(*speeds: float) -> np.ndarray:
    """Return chunks [G, 4, 7] that move along y."""
    out = np.zeros((len(speeds), 4, 7), np.float32)
    out[:, :, 1] = np.array(speeds)[:, None]
    return out


def decided(found) -> Decision:
    return Decision('', 'complete', found, (), np.zeros(0, np.int64))


def test_all_draws_begin_at_the_same_moment_and_the_first_goes_on():
    seen = []

    def decide(observation):
        seen.append(float(observation.ee_position[1]))
        return decided(chunks(0.5, -1.0, 0.1))

    result = BranchJob(EpisodeJob('left', 3, 2)).play(ToyEnv(), decide)
    assert result.success
    assert 2 * (len(result.gains) - 1) < result.steps <= 2 * len(result.gains)
    np.testing.assert_allclose(np.diff(seen), 0.1, atol=1e-6)  # two steps of 0.05 each
    for gains in result.gains[:-1]:
        np.testing.assert_allclose(gains, (0.1, -0.2, 0.02), atol=1e-6)
    last = 0.5 - seen[-1]  # what was left, and no more than that is gained
    np.testing.assert_allclose(result.gains[-1], (last, -0.2, 0.02), atol=1e-6)


def test_an_episode_ends_outside_the_workspace():
    box = ((0.0, -0.15, 0.0), (1.0, 0.8, 1.0))
    job = EpisodeJob('left', 3, 2, workspace=box)
    result = BranchJob(job).play(ToyEnv(), lambda _: decided(chunks(-1.0, 1.0)))
    assert not result.success and result.steps <= 2
    alone = job.play(ToyEnv(), lambda _: decided(chunks(-1.0)[0]))
    assert not alone.success and alone.steps == result.steps
    assert replace(job, workspace=None).play(
        ToyEnv(), lambda _: decided(chunks(-1.0)[0])).steps == ToyEnv().max_steps


def test_a_suite_that_cannot_go_back_says_so():
    class Plain:
        pass

    with pytest.raises(UserError, match='compare=episodes'):
        BranchJob(EpisodeJob('left', 3, 2)).play(Plain(), lambda _: decided(chunks(0.0)))


@pytest.fixture(scope='module')
def drawn():
    """Return a policy's trajectories of one branched episode, four draws of every decision."""
    model, transform = small_policy()
    sampler = BatchSampler(model, transform, max_thought_tokens=6, thought_temperature=1.0,
                           action_temperature=1.0)
    jobs = [Rollout(BranchJob(EpisodeJob('left', 4, 2)), (0, 5, 0))]
    found: list[Trajectory] = []
    with closing(LocalPool(ToyScene(), 1)) as pool:
        RolloutEngine(pool).branch(
            sampler, lambda: jobs.pop() if jobs else None, found.append, 4)
    return found


def test_an_episode_may_go_on_greedily(drawn):
    model, transform = small_policy()
    sampler = BatchSampler(model, transform, max_thought_tokens=6, thought_temperature=1.0,
                           action_temperature=1.0)
    greedy = BatchSampler(model, transform, max_thought_tokens=6)
    episode = EpisodeJob('left', 4, 2)
    jobs, alone = [Rollout(BranchJob(episode), (0, 5, 0))], [Rollout(episode, (0, 5, 0))]
    found: list[Trajectory] = []
    wanted: list[Trajectory] = []
    with closing(LocalPool(ToyScene(), 1)) as pool:
        engine = RolloutEngine(pool)
        engine.branch(
            sampler, lambda: jobs.pop() if jobs else None, found.append, 4, greedy=True)
        engine.run(greedy, lambda: alone.pop() if alone else None, wanted.append)
    assert [t.key for t in found] == [t.key for t in drawn]
    for k, frames in enumerate(wanted[0].frames):
        for name, image in frames.items():
            assert np.array_equal(found[0].frames[k][name], image)
    assert len(found[0].decisions) == len(wanted[0].decisions)
    assert found[0].steps == wanted[0].steps
    for ours, theirs in zip(found, drawn, strict=True):  # as drawn as where a draw is followed
        assert np.array_equal(ours.decisions[0].action_tokens, theirs.decisions[0].action_tokens)
        assert ours.gains[0] == theirs.gains[0]


def test_draws_share_what_was_seen_and_are_their_own(drawn):
    assert [t.key for t in drawn] == [(0, 5, draw) for draw in range(4)]
    for k in range(len(drawn[0].decisions)):
        assert len({id(t.frames[k]) for t in drawn}) == 1
        assert len({t.decisions[k].prompt_tokens for t in drawn}) == 1
        assert len({t.decisions[k].action_tokens.tobytes() for t in drawn}) == 4
    rows = rows_of(drawn, [torch.zeros(len(t.decisions)) for t in drawn])
    looks = looks_of(rows)
    assert [len(look) for look in looks] == [4] * len(drawn[0].decisions)
    assert [row.decision for row in looks[1]] == [t.decisions[1] for t in drawn]


def test_what_moved_the_arm_is_the_first_draw(drawn):
    """The gains follow from the actions drawn, and the hand is where the first ones took it."""
    for k in range(len(drawn[0].decisions) - 1):
        for t in drawn:
            way = 0.1 * np.clip(t.decisions[k].chunk[:2, 1], -1.0, 1.0).sum()
            assert t.gains[k] == pytest.approx(way, abs=1e-5)


def test_a_saved_draw_is_the_same(drawn, tmp_path):
    drawn[2].save(tmp_path / 'draw.safetensors')
    found = Trajectory.load(tmp_path / 'draw.safetensors')
    assert (found.key, found.gains, found.job) == (drawn[2].key, drawn[2].gains, drawn[2].job)


def test_advantages_compare_the_draws_of_one_decision(tmp_path):
    init = small_run(tmp_path / 'init')
    run = GrpoRun(init, tmp_path / 'run', 1, replan_steps=2)
    trainer = GrpoTrainer(replace(BRANCHING, form_weight=0.0), run, LocalPool(ToyScene(), 2))
    with closing(trainer.pool):
        groups = trainer.play()
    assert len(groups.kept) == 8 and len(groups.episodes) == 2
    values = groups.advantages()
    for first in (0, 4):
        gains = torch.tensor([t.gains for t in groups.kept[first:first + 4]])  # [G, n]
        found = torch.stack(list(values[first:first + 4]))
        assert found.shape == gains.shape
        for k in range(gains.shape[1]):
            spread = 10.0 * float(gains[:, k].max() - gains[:, k].min())
            if spread < 0.01:
                assert found[:, k].isnan().all()
                continue
            want = (gains[:, k] - gains[:, k].mean()) / gains[:, k].std()
            torch.testing.assert_close(found[:, k], want, atol=2e-3, rtol=2e-3)


def test_an_update_makes_the_better_draws_likelier(tmp_path):
    init = small_run(tmp_path / 'init')
    config = replace(BRANCHING, groups=8, form_weight=0.0, minibatches=1, epochs=4)
    run = GrpoRun(init, tmp_path / 'run', 1, replan_steps=4)
    trainer = GrpoTrainer(config, run, LocalPool(ToyScene(limit=16), 2))
    with closing(trainer.pool):
        groups = trainer.play()
    assert not any(t.success for t in groups.kept)  # the end of an episode teaches nothing here
    rows = rows_of(groups.kept, groups.advantages())
    report = trainer.learner.update(rows, len(groups.kept), 0)
    assert report.drift < 1e-3
    together = []
    for look in looks_of(rows):
        tokens = Tokens.of(look, trainer.transform, 'cpu')
        pixels = torch.from_numpy(trainer.transform.pixels(look[0].frames)[None])
        with torch.no_grad():
            found, _ = trainer.learner.policy(tokens.written, pixels, torch.zeros(4).long())
        old = tokens.placed([row.decision.thought_log_probs for row in look],
                            [row.decision.action_log_probs for row in look])
        change = ((found - old) * tokens.acted).sum(1)
        together.append(float(
            ((change - change.mean()) * torch.tensor([row.advantage for row in look])).mean()))
    assert len(together) > 16
    assert np.mean(together) > 4.0 * np.std(together) / len(together) ** 0.5


def test_a_run_tells_what_decisions_gain(tmp_path):
    init = small_run(tmp_path / 'init')
    config = replace(BRANCHING, evaluate_episodes=0)
    run = GrpoRun(init, tmp_path / 'run', 2, replan_steps=4)
    history = train_grpo(config, run, pool=LocalPool(ToyScene(), 2))
    assert all(row['success']['n'] == 2 for row in history[1:])  # draws are no episodes
    assert all(abs(row['progress']) < 0.4 for row in history[1:])
    assert (tmp_path / 'run' / CURVES).exists()
    again = train_grpo(config, replace(run, iterations=3), pool=LocalPool(ToyScene(), 2))
    assert [row['iteration'] for row in again] == [0, 1, 2, 3]
