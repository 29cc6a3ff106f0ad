"""Batched decisions: as one at a time, and with the log-probs that learning recomputes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.decoders import by_sample, golden_decoder
from support.golden import tensors
from support.policies import observation, untrained
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.engine.batch import BatchSampler, choose
from dtvla_ros.engine.policy import Policy
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.training.grpo.loss import collate, sequence_log_probs

LIMIT = 12
SENTENCES = ('put the can in the wooden bin', 'push the red cube onto the yellow mark',
             'stack the green cube on the red cube', 'put the lemon in the blue bin',
             'push the can forward', 'put the bread and the can in the wooden bin')


@pytest.fixture(scope='module')
def policy():
    """Return an untrained policy that ends some of its thoughts by itself."""
    model, transform = untrained(layers=2, seed=51)
    with torch.no_grad():
        model.embed_tokens.weight[transform.config.ids.think_end] *= 2.0
        model.norm.weight.normal_(-1.0, 1.0)  # or the tied head says every word again and again
    return model, transform


@pytest.fixture(scope='module')
def scenes():
    return [observation(seed, instruction=text) for seed, text in enumerate(SENTENCES)]


def _same(mine, wanted) -> None:
    assert mine.thought_tokens == wanted.thought_tokens and mine.outcome == wanted.outcome
    assert np.array_equal(mine.action_tokens, wanted.action_tokens)
    assert np.array_equal(mine.chunk, wanted.chunk)


@pytest.mark.parametrize('size', [1, 2, len(SENTENCES)])
def test_greedy_batches_decide_as_one_at_a_time(policy, scenes, size):
    model, transform = policy
    sampler = BatchSampler(model, transform, max_thought_tokens=LIMIT)
    one = Policy(TorchEngine(copy.deepcopy(model)), transform, max_thought_tokens=LIMIT)
    found = [d for k in range(0, len(scenes), size) for d in sampler.infer(scenes[k:k + size])]
    assert {d.outcome for d in found} == {'complete', 'truncated'}  # or the test shows nothing
    assert len({len(d.thought_tokens) for d in found}) > 2
    assert len({len(d.prompt_tokens) for d in found}) > 1
    for decision, scene in zip(found, scenes, strict=True):
        assert decision.prompt_tokens == tuple(transform.prompt_ids(scene.instruction, scene))
        _same(decision, one.infer(scene))


def test_golden_batch():
    case, model = tensors('case_generate'), golden_decoder('trained')
    ids, size = model.config.ids, model.config.action_dim
    transform = PolicyTransform(model.config, Tokenizer(WordLevel({}, unk_token='')),
                                ActionStatistics((-1.0,) * size, (1.0,) * size),
                                contract=ActionContract.of_joints(
                                    [f'joint{k}' for k in range(size - 1)]))
    rows = zip(case['batch.in.input_ids'], case['batch.in.attention_mask'].bool(), strict=True)
    prompts = [row[real].tolist() for row, real in rows]
    longest = case['batch.out.input_cot_ids'].shape[1]
    found = BatchSampler(model, transform, max_thought_tokens=longest).sample(
        prompts, by_sample(case['batch.in.pixel_values'], model))
    whole = zip(case['batch.out.input_cot_ids'], case['batch.out.attention_mask'].bool(),
                strict=True)
    for decision, prompt, (row, real), actions in zip(
            found, prompts, whole, case['batch.clean.action_token_ids'], strict=True):
        assert [*prompt, *decision.thought_tokens, ids.action] == row[real].tolist()
        assert decision.action_tokens.tolist() == actions.tolist()


@pytest.mark.parametrize(('thought', 'action'), [(1.0, 1.6), (0.8, 0.0), (0.0, 1.2), (0.0, 0.0)])
def test_sampled_log_probs_are_those_that_learning_recomputes(policy, scenes, thought, action):
    model, transform = policy
    sampler = BatchSampler(model, transform, max_thought_tokens=LIMIT,
                           thought_temperature=thought, action_temperature=action)
    decisions = sampler.infer(scenes, range(len(scenes)))
    assert len({d.outcome for d in decisions}) == 2
    pixels = torch.from_numpy(np.stack([transform.pixels(scene.images) for scene in scenes]))
    tokens = collate(decisions, model.config.ids)
    with torch.no_grad():
        again, _ = sequence_log_probs(
            model, tokens, model.encode_images(pixels), banned=sampler.banned,
            thought_temperature=thought or 1.0, action_temperature=action or 1.0)
    width = tokens.input_ids.shape[1]
    for k, decision in enumerate(decisions):
        count = len(decision.thought_tokens) - 1 - (decision.outcome == 'truncated')
        assert len(decision.thought_log_probs) == count
        assert not sampler.banned[list(decision.thought_tokens[1:1 + count])].any()
        np.testing.assert_allclose(again[k, :width][tokens.thought_mask[k]],
                                   decision.thought_log_probs, atol=1e-4)
        np.testing.assert_allclose(again[k, width:], decision.action_log_probs, atol=1e-4)


def test_a_seed_fixes_a_row_whoever_is_beside_it(policy, scenes):
    sampler = BatchSampler(*policy, max_thought_tokens=LIMIT, thought_temperature=1.0,
                           action_temperature=1.0)
    seeds = list(range(len(scenes)))
    wanted = sampler.infer(scenes, seeds)
    assert len(wanted[0].thought_tokens) < max(len(d.thought_tokens) for d in wanted[1:])
    for mine, want in zip(sampler.infer(scenes[::-1], seeds[::-1])[::-1], wanted, strict=True):
        _same(mine, want)
    _same(sampler.infer(scenes[2:3], seeds[2:3])[0], wanted[2])
    first, second = sampler.infer([scenes[2]] * 2, [1, 2])
    assert first.thought_tokens != second.thought_tokens
    assert not np.array_equal(first.action_tokens, second.action_tokens)


def test_a_row_without_a_seed_is_greedy(policy, scenes):
    sampler = BatchSampler(*policy, max_thought_tokens=LIMIT, thought_temperature=0.5,
                           action_temperature=2.0)
    wanted = BatchSampler(*policy, max_thought_tokens=LIMIT).infer(scenes[:2])
    drawn = sampler.infer(scenes[:2], [1, 2])
    found = sampler.infer(scenes[:2], [None, 1, 2, None], copies=2)
    for mine, want in zip(found, [wanted[0], *drawn, wanted[1]], strict=True):
        _same(mine, want)


def test_ended_rows_are_not_computed(policy, scenes):
    rows = []
    hook = policy[0].layers[0].register_forward_pre_hook(
        lambda _, inputs: rows.append(inputs[0].shape[:2]))
    found = BatchSampler(*policy, max_thought_tokens=LIMIT).infer(scenes)
    hook.remove()
    steps = [b for b, n in rows if n == 1]
    assert sum(steps) == sum(len(d.thought_log_probs) - 1 for d in found)
    assert len(rows) == len(steps) + 2  # one prefill, one action pass


def test_choose_follows_the_distribution():
    log_probs = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0]).log()
    noise = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    picked = choose(log_probs.expand(1000, 5), noise)
    np.testing.assert_allclose(picked.bincount(minlength=5) / 1000, [0.5, 0.0, 0.3, 0.2, 0.0],
                               atol=2e-3)
    edge = choose(log_probs.expand(2, 5), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert edge.tolist() == [0, 3]
    first = torch.tensor([0.0, 1.0]).log()
    assert choose(first[None], torch.zeros(1, dtype=torch.float64)).tolist() == [1]


def test_bad_requests(policy, scenes):
    sampler = BatchSampler(*policy, thought_temperature=1.0)
    assert sampler.infer([]) == []
    for seeds, word in ((None, 'got none'), ([0], 'got 1')):
        with pytest.raises(UserError, match=f'needs 6 seeds, {word}'):
            sampler.infer(scenes, seeds)
    for options in ({'action_temperature': -1.0}, {'max_thought_tokens': 0}):
        with pytest.raises(UserError, match=next(iter(options)).replace('_temp', ' temp')):
            BatchSampler(*policy, **options)


def test_damaged_weights_are_told(policy, scenes):
    broken = copy.deepcopy(policy[0])
    broken.norm.weight.data[0] = float('nan')
    with pytest.raises(FloatingPointError, match='not finite'):
        BatchSampler(broken, policy[1], max_thought_tokens=2).infer(scenes[:2])
