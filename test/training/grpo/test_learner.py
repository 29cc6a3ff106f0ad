"""What a policy learns from its episodes, token by token."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.learn import alike, learn
from support.small import CONFIG, small_policy
from support.toy import ToyScene
from torch.distributions import Categorical

from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.policy.checkpoint import read_tensors
from dtvla_ros.rollout.env_pool import LocalPool
from dtvla_ros.rollout.env_worker import EpisodeJob
from dtvla_ros.training.grpo.learner import Directions, Learner, Tokens, rows_of
from dtvla_ros.training.grpo.loss import AGGREGATIONS
from dtvla_ros.training.grpo.rollout import Rollout, RolloutEngine
from dtvla_ros.training.grpo.trajectory import Trajectory

TEST = Path(__file__).parents[2]
HOT = replace(CONFIG, thought_temperature=0.8, action_temperature=1.6)


def sampler_of(model, transform, config=HOT) -> BatchSampler:
    return BatchSampler(model, transform, max_thought_tokens=6,
                        thought_temperature=config.thought_temperature,
                        action_temperature=config.action_temperature)


@pytest.fixture(scope='module')
def played():
    """Return a policy, its transform and four sampled episodes of several lengths."""
    model, transform = small_policy()
    jobs = [Rollout(EpisodeJob(('left', 'right')[k % 2], k, 3), (0, k)) for k in range(4)]
    found: list[Trajectory] = []
    with closing(LocalPool(ToyScene(limit=8), 2)) as pool:
        RolloutEngine(pool, lanes=2).run(
            sampler_of(model, transform), lambda: jobs.pop(0) if jobs else None, found.append)
    return model, transform, sorted(found, key=lambda t: t.key)


def learner_of(played, config=HOT) -> Learner:
    model, transform, _ = played
    model = copy.deepcopy(model)
    return Learner(model, transform, sampler_of(model, transform).banned, config,
                   Accelerator(cpu=True))


def test_episodes_know_what_was_executed(played):
    for trajectory in played[2]:
        executed = [trajectory.executed(k) for k in range(len(trajectory.decisions))]
        assert sum(executed) == trajectory.steps
        assert all(n == 3 for n in executed[:-1]) and 1 <= executed[-1] <= 3


def test_a_saved_episode_is_the_same(played, tmp_path):
    for k, want in enumerate(played[2]):
        want.save(tmp_path / f'{k}.safetensors')
        found = Trajectory.load(tmp_path / f'{k}.safetensors')
        for name in ('job', 'key', 'success', 'steps'):
            assert getattr(found, name) == getattr(want, name)
        for mine, other in zip(found.decisions, want.decisions, strict=True):
            for name in type(other).__dataclass_fields__:
                assert np.array_equal(getattr(mine, name), getattr(other, name)), name
                assert type(getattr(mine, name)) is type(getattr(other, name))
        for mine, other in zip(found.frames, want.frames, strict=True):
            assert all(np.array_equal(mine[name], other[name]) for name in other)
    assert not list(tmp_path.glob('*.part'))


def test_sampled_log_probs_are_the_recomputed_ones_before_the_first_update(played):
    """The invariant everything rests on: the first ratios are one, in every lane and batch."""
    learner = learner_of(played, replace(HOT, minibatches=1))
    report = learner.update(rows_of(played[2], alike(played[2], [1.0] * 4)), 4, 0)
    assert report.drift < 1e-4
    assert report.kl == pytest.approx(0.0, abs=1e-6)  # the reference is the policy still
    assert report.clip_fraction == report.lower_clip_fraction == 0.0
    again = learner.update(rows_of(played[2], alike(played[2], [1.0] * 4)), 4, 1)
    assert again.drift > 1e-3 and again.kl > 1e-6  # it moved, and both see it


def plain(learner: Learner, model, trajectories, advantages, config):
    """Return loss and mean KL before a step, one decision and one token at a time."""
    transform, ids = learner.transform, learner.transform.config.ids
    allowed = (~learner.policy.banned).nonzero()[:, 0].tolist()

    def log_prob(m, hidden, token, action):
        if action:
            logits = m.action_logits(hidden) / config.action_temperature
            return Categorical(logits=logits).log_prob(torch.tensor(token - ids.bins_first))
        logits = m.token_logits(hidden)[allowed] / config.thought_temperature
        return Categorical(logits=logits).log_prob(torch.tensor(allowed.index(token)))

    terms, means, count, distance, drawn = 0.0, 0.0, 0, 0.0, 0
    for trajectory, advantage in zip(trajectories, advantages, strict=True):
        before = terms, count
        for k, (d, frames) in enumerate(zip(trajectory.decisions, trajectory.frames,
                                            strict=True)):
            row = [*d.prompt_tokens, *d.thought_tokens, ids.action, *d.action_tokens.tolist(),
                   ids.action_end, ids.eos]
            pixels = torch.from_numpy(transform.pixels(frames))[None]
            tokens = torch.tensor([row])
            mine, reference = (m(tokens, torch.ones_like(tokens), pixels)[0]
                               for m in (model, learner.reference))
            first = len(d.prompt_tokens)
            start = first + len(d.thought_tokens)

            words = range(first, first + len(d.thought_log_probs))
            actions = range(start, start + transform.config.slots)
            moved = 7 * trajectory.executed(k)
            olds = [*d.thought_log_probs, *d.action_log_probs]
            for n, at in enumerate([*words, *actions]):
                new, there = (
                    log_prob(m, hidden[at], row[at + 1], at >= start)
                    for m, hidden in ((model, mine), (learner.reference, reference)))
                old, gap = float(olds[n]), there.detach() - new
                distance = distance + gap.exp() - gap - 1
                drawn += 1
                if n < len(words) + moved:
                    ratio = (new - old).exp()
                    low, high = 1 - config.clip_low, 1 + config.clip_high
                    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(low, high))
                    if advantage < 0:
                        loss = loss.clamp(max=-advantage * config.dual_clip)
                    terms, count = terms + loss, count + 1
        means = means + (terms - before[0]) / (count - before[1])
    if config.aggregation == 'seq-mean-token-mean':
        return means / len(trajectories), distance / drawn
    if config.aggregation == 'token-mean':
        return terms / count, distance / drawn
    return terms / len(trajectories), distance / drawn


@pytest.mark.parametrize('mode', AGGREGATIONS)
def test_the_gradient_is_that_of_the_definition(played, mode):
    """Micro-batches and slices add up; unexecuted actions give no policy gradient, only KL.

    Rounding errors are those of the whole gradient: a convolution's bias that the norm behind it
    removes has none of its own, only noise. Another aggregation's definition is told apart.
    """
    config = replace(HOT, aggregation=mode, kl_weight=0.3, minibatches=1, micro_batch=3,
                     gradient_clip=1e9, learning_rate=1e-9)
    long, cut = played[2][:2]
    # Of two lengths, or a mean of all tokens were a mean of the episodes' means.
    trajectories = [long, replace(cut, decisions=cut.decisions[:1], frames=cut.frames[:1],
                                  steps=cut.executed(0))]
    learner = learner_of(played, config)
    torch.manual_seed(0)
    with torch.no_grad():  # away from the sampling policy, or every ratio is one and the KL zero
        for weight in learner.model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    defined = {}
    for other in AGGREGATIONS:
        model = copy.deepcopy(learner.model)
        meant = replace(config, aggregation=other)
        loss, kl = plain(learner, model, trajectories, [0.7, -1.3], meant)
        (loss + config.kl_weight * kl).backward()
        defined[other] = loss, kl, {n: p.grad for n, p in model.named_parameters()}
    grads = {}
    hook = learner.optimizer.register_step_pre_hook(
        lambda *_: grads.update({n: p.grad.clone()
                                 for n, p in learner.model.named_parameters()}))
    report = learner.update(rows_of(trajectories, alike(trajectories, [0.7, -1.3])), 2, 0)
    hook.remove()
    loss, kl, wanted = defined.pop(mode)
    assert report.kl == pytest.approx(kl.item(), rel=1e-3)
    assert report.loss == pytest.approx((loss + config.kl_weight * kl).item(), rel=1e-3)
    assert_gradient(grads, wanted)
    for *_, others in defined.values():
        with pytest.raises(AssertionError):
            assert_gradient(grads, others)


def assert_gradient(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Each weight's within 2e-3 of its own largest or 1e-5 of the whole gradient's largest."""
    whole = max(want.abs().max().item() for want in wanted.values())
    for name, want in wanted.items():
        torch.testing.assert_close(
            found[name], want, rtol=2e-3,
            atol=max(2e-3 * want.abs().max().item(), 1e-5 * whole), msg=name)


def test_slices_weigh_every_token_alike(played):
    """With plain gradient steps, four slices add up to what one step over everything does."""
    rows = rows_of(played[2], alike(played[2], [1.0, -0.5, 0.3, -0.8]))
    sums = []
    for minibatches in (1, 4):
        learner = learner_of(played, replace(HOT, minibatches=minibatches, learning_rate=0.0001,
                                             gradient_clip=1e9))
        total = [torch.zeros_like(p) for p in learner.model.parameters()]

        def add(*_, total=total, learner=learner):
            for t, p in zip(total, learner.model.parameters(), strict=True):
                t.add_(p.grad)
            for p in learner.model.parameters():
                p.grad.zero_()  # no step: the weights stay

        learner.optimizer.register_step_pre_hook(add)
        learner.update(rows, 4, 0)
        sums.append([t / minibatches for t in total])
    for one, four in zip(*sums, strict=True):
        torch.testing.assert_close(one, four, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('shift, wanted', [(0.0, 0.0), (1.0, 0.5), (100.0, 1.0)])
def test_steps_agree_as_much_as_they_share(shift, wanted):
    """Gradients of noise alone, of as much signal as noise, of hardly any noise."""
    rng = torch.Generator().manual_seed(0)
    directions, weight = Directions(), torch.nn.Parameter(torch.zeros(200, 200))
    assert directions.agreement == 0.0
    for _ in range(8):
        weight.grad = shift + torch.randn(200, 200, generator=rng)
        directions.add([weight])
    assert directions.agreement == pytest.approx(wanted, abs=0.02)


def test_the_kl_holds_the_policy(played):
    """No advantage at all: what the weights do then is go back to the reference."""
    learner = learner_of(played, replace(HOT, kl_weight=1.0, minibatches=1, learning_rate=3e-3,
                                         warmup_steps=1))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in learner.model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    rows = rows_of(played[2], alike(played[2], [0.0] * 4))
    first, *_, last = [learner.update(rows, 4, k).kl for k in range(12)]
    assert first > 0.02 and last < 0.5 * first


def test_tokens_lie_in_their_columns(played):
    transform = played[1]
    rows = rows_of(played[2], alike(played[2], [0.0] * 4))[:5]
    tokens = Tokens.of(rows, transform, 'cpu')
    thoughts = [row.decision.thought_log_probs for row in rows]
    actions = [row.decision.action_log_probs for row in rows]
    placed = tokens.placed(thoughts, actions)
    assert placed.shape == tokens.chosen.shape == tokens.acted.shape
    for k, row in enumerate(rows):
        both = np.concatenate([thoughts[k], actions[k]])
        np.testing.assert_array_equal(placed[k][tokens.chosen[k]].numpy(), both)
        acted = len(thoughts[k]) + 7 * row.executed
        np.testing.assert_array_equal(placed[k][tokens.acted[k]].numpy(), both[:acted])


def test_nothing_to_learn_is_nothing_done(played):
    learner = learner_of(played)
    before = [p.clone() for p in learner.model.parameters()]
    assert learner.update([], 0, 0) is None
    assert all(map(torch.equal, before, learner.model.parameters()))


def test_a_share_of_the_decisions_is_learnt_from_and_no_other(played, monkeypatch):
    *_, episodes = played
    rows = rows_of(episodes * 20, alike(episodes * 20, [1.0] * len(episodes) * 20))
    seen: list[int] = []

    def learnt(iteration):
        learner = learner_of(played, replace(HOT, learn_share=0.25))
        monkeypatch.setattr(learner, '_backward', lambda piece, *_, **__: seen.extend(
            next(k for k, row in enumerate(rows) if row is one) for one in piece))
        monkeypatch.setattr(learner, '_step', lambda _: 0.0)
        seen.clear()
        learner.update(rows, len(episodes) * 20, iteration)
        return sorted(seen)

    first = learnt(0)
    assert len(first) == pytest.approx(0.25 * len(rows), rel=0.25)
    assert len(set(first)) == len(first)
    assert first == learnt(0)
    assert first != learnt(1)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(played, tmp_path):
    """Unequal shares, their gradients added up over gloo: the weights of one process with all."""
    episodes, out = tmp_path / 'episodes', tmp_path / 'out'
    out.mkdir()
    for k, trajectory in enumerate(played[2]):
        trajectory.save(episodes / f'{k}.safetensors')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    common = os.environ | {
        'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port), 'ACCELERATE_USE_CPU': 'true', 'GLOO_SOCKET_IFNAME': 'lo'}
    crew = [subprocess.Popen(
        [sys.executable, str(TEST / 'support' / 'learn.py'), str(episodes), str(out)],
        env=common | {'RANK': str(rank), 'LOCAL_RANK': str(rank)}) for rank in range(2)]
    assert [process.wait(300.0) for process in crew] == [0, 0]
    wanted = learn(episodes, 0, 1).model.state_dict()
    for rank in range(2):
        found = read_tensors(out / f'{rank}.safetensors')
        for name, value in found.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)
    start = small_policy()[0].state_dict()
    assert any(not torch.allclose(wanted[k], start[k], atol=1e-4) for k in start)
