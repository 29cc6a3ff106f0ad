"""What a policy learns from its episodes, token by token."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from support import small
from support.learn import alike, learn
from support.small import CONFIG, run_toys, sampler_of, small_policy
from torch.distributions import Categorical
from torch.utils._pytree import tree_flatten

from dtvla_ros.policy.checkpoint import read_tensors
from dtvla_ros.rollout.batched import Rollout
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.training.grpo.config import LossAggMode
from dtvla_ros.training.grpo.learner import GradientCosine, Learner, transitions
from dtvla_ros.training.grpo.rollout import Trajectory

TEST = Path(__file__).parents[2]
HOT = replace(CONFIG, thought_temperature=0.8, action_temperature=1.6)


@pytest.fixture(scope='module')
def played():
    """Return a policy, its transform and four sampled episodes of several lengths."""
    model, transform = small_policy()
    rollouts = [Rollout(EpisodeJob(('left', 'right')[k % 2], k, 3), (0, k)) for k in range(4)]
    sampler = sampler_of(model, transform, HOT)
    return model, transform, run_toys(sampler, rollouts, limit=8, groups=2)


def learner_of(played, moved: bool = False, **changes) -> Learner:
    """Return a learner; if ``moved``, no longer where it sampled: ratios are not one, nor KL 0."""
    learner = small.learner_of(copy.deepcopy(played[:2]), replace(HOT, **changes))
    if moved:
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in learner.model.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
    return learner


def test_a_saved_episode_is_the_same_and_knows_what_was_executed(played, tmp_path):
    for k, want in enumerate(played[2]):
        want = replace(want, progress=(0.1,) * k)
        executed = [want.executed(k) for k in range(len(want.decisions))]
        assert sum(executed) == want.steps
        assert all(n == 3 for n in executed[:-1]) and 1 <= executed[-1] <= 3
        want.save(tmp_path / f'{k}.safetensors')
        found = Trajectory.load(tmp_path / f'{k}.safetensors')
        (values, shape), (wanted, same) = (tree_flatten([
            t.job, t.key, t.success, t.steps, t.progress, t.decisions, t.frames])
            for t in (found, want))
        assert shape == same
        for value, other in zip(values, wanted, strict=True):
            assert type(value) is type(other) and np.array_equal(value, other)
    assert not list(tmp_path.glob('*.part'))


def test_sampled_log_probs_are_the_recomputed_ones_before_the_first_update(played):
    """The invariant everything rests on: the first ratios are one, in every group and batch."""
    learner = learner_of(played, num_minibatches=1)
    assert learner.update([], 0, 0) is None and learner.step == 0  # nothing to learn
    rows = transitions(played[2], alike(played[2], [1.0] * 4))
    report = learner.update(rows, 4, 0)
    assert report['log_prob_mismatch'] < 1e-4
    assert report['kl'] == pytest.approx(0.0, abs=1e-6)  # the reference is the policy still
    assert report['clip_fraction'] == report['lower_clip_fraction'] == 0.0
    again = learner.update(rows, 4, 1)
    assert again['log_prob_mismatch'] > 1e-3 and again['kl'] > 1e-6  # it moved, and both see it


def plain(learner: Learner, trajectories, advantages):
    """Return losses by mode, mean KL and mean entropies by definition, a decision at a time."""
    config, transform = learner.config, learner.transform
    ids, terms, distances, entropies = transform.config.ids, [], [], ([], [])

    def distributions(model, row, d, frames):
        """Return those that a decision's thought and actions were drawn from."""
        first, start = len(d.prompt_tokens), len(d.prompt_tokens) + len(d.thought_tokens)
        pixels = torch.from_numpy(transform.pixels(frames))[None]
        hidden = model(row, torch.ones_like(row), pixels)[0]
        thought = model.token_logits(hidden[first:first + len(d.thought_log_probs)])
        action = model.action_logits(hidden[start:start + transform.config.slots])
        thought = thought.masked_fill(learner.banned, -torch.inf) / config.thought_temperature
        return Categorical(logits=thought), Categorical(logits=action / config.action_temperature)

    for t, advantage in zip(trajectories, advantages, strict=True):
        losses = []
        for k, (d, frames) in enumerate(zip(t.decisions, t.frames, strict=True)):
            row = [*d.prompt_tokens, *d.thought_tokens, ids.action, *d.action_tokens.tolist(),
                   ids.action_end, ids.eos]
            words = len(d.thought_log_probs)
            tokens = (torch.tensor(d.thought_tokens[1:1 + words]),
                      torch.from_numpy(d.action_tokens) - ids.bins_first)
            said, there = (distributions(model, torch.tensor([row]), d, frames)
                           for model in (learner.model, learner.reference))
            new, reference = (torch.cat([one.log_prob(part) for one, part in zip(both, tokens)])
                              for both in (said, there))
            gap = reference.detach() - new
            distances.append(gap.exp() - gap - 1)
            for values, distribution in zip(entropies, said):
                values.append(distribution.entropy())
            ratio = (new - torch.tensor([*d.thought_log_probs, *d.action_log_probs])).exp()
            clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high)
            loss = torch.maximum(-advantage * ratio, -advantage * clipped)
            if advantage < 0:
                loss = loss.clamp(max=-advantage * config.clip_ratio_c)
            losses.append(loss[:words + 7 * t.executed(k)])
        terms.append(torch.cat(losses))
    losses = {'token-mean': torch.cat(terms).mean(),
              'seq-mean-token-mean': torch.stack([loss.mean() for loss in terms]).mean(),
              'seq-mean-token-sum': torch.stack([loss.sum() for loss in terms]).mean()}
    return (losses, torch.cat(distances).mean(),
            [torch.cat(values).mean().item() for values in entropies])


def test_the_gradient_is_that_of_the_definition(played):
    """Micro-batches and slices add up; unexecuted actions give no policy gradient, only KL.

    Rounding errors are those of the whole gradient: a convolution's bias that the norm behind it
    removes has none of its own, only noise. Another aggregation's definition is told apart.
    """
    long, short = played[2][:2]
    # Of two lengths, or a mean of all tokens were a mean of the episodes' means.
    trajectories = [long, replace(short, decisions=short.decisions[:1], frames=short.frames[:1],
                                  steps=short.executed(0))]
    learner = learner_of(played, moved=True)
    losses, kl, entropies = plain(learner, trajectories, [0.7, -1.3])
    names, weights = zip(*learner.model.named_parameters(), strict=True)
    wanted = {mode: dict(zip(names, torch.autograd.grad(loss + 0.3 * kl, weights,
                                                        retain_graph=True), strict=True))
              for mode, loss in losses.items()}
    for mode in get_args(LossAggMode):
        learner = learner_of(played, moved=True, loss_agg_mode=mode, beta=0.3, num_minibatches=2,
                             micro_batch=3, gradient_clip=1e9, learning_rate=1e-12)
        found = dict.fromkeys(names, 0.0)
        learner.optimizer.register_step_pre_hook(lambda *_, found=found, learner=learner: (
            found.update({n: found[n] + p.grad / 2
                          for n, p in learner.model.named_parameters()})))
        report = learner.update(transitions(trajectories, alike(trajectories, [0.7, -1.3])), 2, 0)
        told = [report[name] for name in ('loss', 'kl', 'thought_entropy', 'action_entropy')]
        loss = (losses[mode] + 0.3 * kl).item()
        assert told == pytest.approx([loss, kl.item(), *entropies], rel=1e-3)
        for other, gradient in wanted.items():
            # Within 2e-3 of each weight's own largest or 1e-5 of the whole gradient's largest.
            largest = {name: want.abs().max() for name, want in gradient.items()}
            whole = max(largest.values())
            close = [bool(((found[name] - want).abs() <= 2e-3 * want.abs() + max(
                2e-3 * largest[name], 1e-5 * whole)).all()) for name, want in gradient.items()]
            assert all(close) is (other == mode)


@pytest.mark.parametrize('shift, wanted', [(0.0, 0.0), (1.0, 0.5), (100.0, 1.0)])
def test_gradients_are_as_similar_as_what_they_share(shift, wanted):
    """Gradients of noise alone, of as much signal as noise, of hardly any noise."""
    rng = torch.Generator().manual_seed(0)
    cosine, weight = GradientCosine(), torch.nn.Parameter(torch.zeros(200, 200))
    assert cosine.mean == 0.0
    for _ in range(8):
        weight.grad = shift + torch.randn(200, 200, generator=rng)
        cosine.add([weight])
    assert cosine.mean == pytest.approx(wanted, abs=0.02)


def test_a_fraction_of_the_decisions_is_learnt_from_and_no_other(played, monkeypatch):
    episodes, seen = played[2] * 20, []
    rows = transitions(episodes, alike(episodes, [1.0] * len(episodes)))
    numbers = {id(row): k for k, row in enumerate(rows)}
    monkeypatch.setattr(Learner, '_backward', lambda _, batch, *args, **options: seen.extend(
        numbers[id(row)] for row in batch))
    monkeypatch.setattr(Learner, '_step', lambda _, metrics: None)

    def learnt(iteration):
        seen.clear()
        with np.errstate(invalid='ignore'):  # of what nothing was added, there is no mean
            learner_of(played, sample_fraction=0.25).update(rows, len(episodes), iteration)
        return sorted(seen)

    first = learnt(0)
    assert len(set(first)) == len(first) == pytest.approx(0.25 * len(rows), rel=0.25)
    assert first == learnt(0) != learnt(1)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(played, tmp_path):
    """Unequal shares, their gradients added up over gloo: the weights of one process with all."""
    episodes, out = tmp_path / 'episodes', tmp_path / 'out'
    out.mkdir()
    for k, trajectory in enumerate(played[2]):
        trajectory.save(episodes / f'{k}.safetensors')
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--local-addr=127.0.0.1',
         '--nproc-per-node=2', '-m', 'support.learn', str(episodes), str(out)], cwd=TEST,
        env=os.environ | {'ACCELERATE_USE_CPU': 'true', 'GLOO_SOCKET_IFNAME': 'lo'},
        check=True, timeout=300.0)
    learner, report = learn(episodes, 0, 1)
    wanted = learner.model.state_dict()
    for rank in range(2):
        found = read_tensors(out / f'{rank}.safetensors')
        for name, value in report.items():
            assert found.pop(name).item() == pytest.approx(value, rel=1e-3, abs=1e-4)
        for name, value in found.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)
    start = small_policy()[0].state_dict()
    assert any(not torch.allclose(wanted[k], start[k], atol=1e-4) for k in start)
