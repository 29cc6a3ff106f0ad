"""Groups of rollouts: which starts are played, what is kept, rewards and advantages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.golden import document
from support.small import CONFIG, small_policy

import dtvla_sim
from dtvla_ros.engine.batch import SampledDecision
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.results import evaluation_seed
from dtvla_ros.thought import Thought
from dtvla_ros.training.grpo.advantage import Groups, Rewards, group_advantages, well_formed
from dtvla_ros.training.grpo.rollout import Trajectory

TASKS = ('left', 'right', 'up')
TRANSFORM = small_policy()[1]


def test_golden_advantages():
    data = document('rl_math')
    for name in set(data['uid']):
        rows = [k for k, uid in enumerate(data['uid']) if uid == name]
        found = group_advantages(torch.tensor(data['score'])[rows])
        torch.testing.assert_close(found[:, None] * torch.tensor(data['mask'])[rows],
                                   torch.tensor(data['advantages'])[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(('algorithm', 'plain'), [
    ('rloo', lambda own: own - (own.sum(0) - own) / 3),
    ('dr_grpo', lambda own: own - own.mean(0))])
def test_baselines(algorithm, plain):
    values = torch.tensor([[1.4, 0.2], [0.4, 1.0], [0.0, 1.4], [0.9, 0.9]])  # two groups of four
    torch.testing.assert_close(group_advantages(values, algorithm), plain(values))
    for name in (algorithm, 'grpo'):
        equal = group_advantages(torch.full((8, 2), 1.4), name)
        assert equal.abs().max() < 1e-6  # though the mean of 8 is inexact


def played(rollout, success: bool, outcomes=('complete', 'complete')) -> Trajectory:
    """Return a finished episode whose thoughts say nothing."""
    ids = TRANSFORM.config.ids
    decisions = tuple(SampledDecision(
        (ids.bos,), (ids.think, ids.think_end), outcome, np.full(28, ids.bins_first),
        np.zeros((4, 7), np.float32), np.zeros(1, np.float32), np.zeros(28, np.float32))
        for outcome in outcomes)
    return Trajectory(rollout.job, rollout.key, decisions, ({},) * len(decisions), success, 5)


def groups_of(config=CONFIG, first=0, **options) -> Groups:
    return Groups(config, TASKS, 2, Rewards(config, TRANSFORM), first, **options)


def drain(groups: Groups) -> list:
    return list(iter(groups.next, None))


def solve(groups: Groups, rollouts, solved) -> None:
    """Play rollouts; ``solved`` maps a start's number to how many samples succeed."""
    for rollout in rollouts:
        groups.take(played(rollout, rollout.key[2] < solved(rollout.key[1])))


def test_every_sample_of_a_group_has_one_start():
    found = drain(groups_of(first=7))
    assert [r.key for r in found] == [(0, n, m) for n in (7, 8) for m in range(4)]
    assert {(r.job.task, r.job.seed) for r in found[:4]} == {('right', 500_007)}
    assert {(r.job.task, r.job.seed) for r in found[4:]} == {('up', 500_008)}


def test_starts_never_meet_those_of_evaluations():
    span = dtvla_sim.EVAL_SEED_START - CONFIG.first_seed
    for number in (0, 1, span - 1, span, 10 ** 9):
        _, seed = groups_of().start(number)
        assert CONFIG.first_seed <= seed < dtvla_sim.EVAL_SEED_START
        with pytest.raises(UserError):
            evaluation_seed(seed)


@pytest.mark.parametrize('late', [False, True])
def test_groups_of_equals_are_replaced_whoever_finishes_first(late):
    groups = groups_of()
    solved = {0: 4, 1: 2, 2: 0, 3: 1}.get
    first = drain(groups)
    if late:  # 1 is kept while 0 is still going on
        solve(groups, first[4:], solved)
        assert drain(groups) == []
    solve(groups, first[:4] if late else first, solved)
    for wanted in (2, 3):  # 0 is all solved: another start is needed
        more = drain(groups)
        assert {r.key[1] for r in more} == {wanted}
        solve(groups, more, solved)
    assert drain(groups) == []
    assert groups.tried == 4 and len(groups.played) == 16
    assert [t.key[1:] for t in groups.kept] == [(n, m) for n in (1, 3) for m in range(4)]
    advantages = torch.stack(groups.advantages())  # of two decisions each
    assert torch.equal(advantages[:, 0], advantages[:, 1])
    assert advantages[:2].min() > 0 > advantages[2:4].max()
    torch.testing.assert_close(advantages.view(2, 4, 2).sum(1), torch.zeros(2, 2))


def test_resampling_has_an_end():
    groups = groups_of(replace(CONFIG, max_resample_factor=2.0))
    for _ in range(4):
        solve(groups, drain(groups), lambda number: 0)
    assert groups.tried == 4 and groups.kept == [] and len(groups.advantages()) == 0


def test_format_alone_does_not_make_a_group():
    """A start all solved, one thought of eight truncated: 0.05 of reward is no signal."""
    config = replace(CONFIG, min_reward_range=0.1)
    for complete, kept in ((7, 0), (1, 4)):
        groups = groups_of(config)
        for rollout in drain(groups)[:4]:
            outcomes = ('complete',) * complete + ('truncated',) * (rollout.key[2] == 0)
            groups.take(played(rollout, True, outcomes))
        assert len(groups.kept) == kept


def test_what_was_played_before_is_not_played_again():
    whole = groups_of()
    before = {r.key[1:]: played(r, r.key[2] < 2) for r in drain(whole)[:6]}
    groups = groups_of(finished=lambda *key: before.get(key))
    assert [r.key for r in drain(groups)] == [(0, 1, 2), (0, 1, 3)]
    assert [t.key[1:] for t in groups.kept] == [(0, m) for m in range(4)]


def test_processes_share_the_starts():
    config = replace(CONFIG, num_starts=4)
    numbers = [{r.key[1] for r in drain(groups_of(config, rank=rank, world=2))}
               for rank in range(2)]
    assert numbers == [{0, 2}, {1, 3}]
    with pytest.raises(UserError, match='multiple of the 3'):
        groups_of(config, world=3)


def test_rewards():
    rollout = drain(groups_of())[0]
    found = Rewards(CONFIG, TRANSFORM).of([
        played(rollout, True), played(rollout, False, ('complete', *['truncated'] * 3))])
    torch.testing.assert_close(found, torch.tensor([1.4, 0.1]))


def test_every_thought_of_an_expert_is_well_formed():
    place, move = np.array([0.45, -0.12, 0.0]), np.array([0.1, -0.2, 0.0])
    for held, done, trouble, thing in (
            (None, None, None, 'can'), ('red cube', 'can', 'dropped', 'wooden bin'),
            (None, 'black_bowl', 'missed', 'akita_black_bowl')):
        text = Thought.measured(
            held=held, done=done, trouble=trouble, phase='reach', object=thing, place=place,
            following='lower', move=move).compact()
        text = text.replace('_', ' ')
        assert well_formed(text, 'complete', 'grammar'), text
        assert not well_formed(text, 'truncated', 'grammar')
        for broken in (text.replace(' at ', ' '), text + ' up', text.replace('done', 'now'),
                       text.replace('y-12', 'x45'), ''):
            assert not well_formed(broken, 'complete', 'grammar'), broken
            assert well_formed(broken, 'complete', 'closed')
