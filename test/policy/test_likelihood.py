"""Log-probs of thoughts and actions against the golden vectors and a token-by-token count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.decoders import by_sample, golden_decoder, images, padded, sequence, small_decoder
from support.golden import tensors
from torch.distributions import Categorical

from dtvla_ros.errors import UserError
from dtvla_ros.policy.likelihood import Written, lay_out, likelihood

COLD, HOT = 0.7, 1.6


def _banned(config) -> torch.Tensor:
    """Return the published ban: action ids and eos."""
    banned = torch.zeros(config.text.vocabulary, dtype=torch.bool)
    banned[config.ids.bins_first:config.ids.bins_last + 1] = True
    banned[config.ids.eos] = True
    return banned


def _written(case: dict, model) -> Written:
    """Return the golden prompt with thought, responses and tail; the mask as published."""
    prefix, actions, ids = case['in.input_ids'], case['in.responses'], model.config.ids
    tail = torch.tensor([[ids.action_end, ids.eos]]).expand(len(prefix), 2)
    real = torch.nn.functional.pad(case['in.attention_mask'], (0, actions.shape[1] + 2), value=1)
    window = case['out.cot_mask'].bool()
    mask = torch.zeros(real.shape, dtype=torch.bool)
    mask[:, prefix.shape[1] - window.shape[1]:prefix.shape[1]] = window
    return Written(torch.cat([prefix, actions, tail], 1), real, mask)


def test_golden_log_probs():
    case, model = tensors('case_rl_logprob'), golden_decoder('random')
    written = _written(case, model)
    with torch.no_grad():
        found = likelihood(
            model, written, model.encode_images(by_sample(case['in.pixel_values'], model)),
            banned=_banned(model.config), thought_temperature=1.0, action_temperature=HOT)
    end, window = case['in.input_ids'].shape[1], case['out.cot_mask'].shape[1]
    torch.testing.assert_close(found.thought[:, end - window:end], case['clean.cot_logprob'],
                               atol=1e-4, rtol=0)
    torch.testing.assert_close(found.action, case['clean.action_logprob'], atol=1e-4, rtol=0)
    assert not found.thought[~written.thought_mask].any()


def _plain(model, row: list[int], pixels: torch.Tensor, banned: torch.Tensor):
    """Return log-prob and entropy of each thought token and action of one sequence."""
    ids = model.config.ids
    hidden = model(torch.tensor([row]), torch.ones(1, len(row)), pixels)[0]
    allowed = (~banned).nonzero()[:, 0]
    start = len(row) - model.config.slots - 3
    end = next(k for k in range(len(row))
               if row[k:k + 2] == [ids.semicolon, ids.newline]) + 2
    thought, actions = [], []
    for k in range(end + 1, start):
        said = Categorical(logits=model.token_logits(hidden[k - 1])[allowed] / COLD)
        index = allowed.tolist().index(row[k])
        thought.append((said.log_prob(torch.tensor(index)), said.entropy()))
    for k in range(start, start + model.config.slots):
        span = slice(ids.bins_first, ids.bins_last + 1)
        done = Categorical(logits=model.token_logits(hidden[k])[span] / HOT)
        actions.append((done.log_prob(torch.tensor(row[k + 1] - ids.bins_first)), done.entropy()))
    return end + 1, thought, actions


def test_each_token_follows_its_definition_and_so_do_the_gradients():
    model, rng = small_decoder(), np.random.default_rng(0)
    config, banned = model.config, _banned(model.config)
    rows = [sequence(config, rng, words, thought) for words, thought in ((3, 7), (6, 0), (1, 4))]
    left = [2, 5, 0]
    ids, mask = padded(rows, left, max(map(len, rows)) + 7, config.ids.pad)
    pixels = images(config, rng, len(rows))
    chosen = torch.zeros(ids.shape, dtype=torch.bool)
    wanted = torch.zeros(())
    plain = []
    for k, row in enumerate(rows):
        first, thought, actions = _plain(model, row, pixels[k:k + 1], banned)
        first += left[k]
        chosen[k, first:first + len(thought)] = True
        plain.append((first, thought, actions))
        wanted = wanted + sum(p + 0.1 * h for p, h in thought + actions)
    found = likelihood(
        model, Written(ids, mask, chosen), model.encode_images(pixels), banned=banned,
        thought_temperature=COLD, action_temperature=HOT, entropy=True)
    for k, (first, thought, actions) in enumerate(plain):
        span = slice(first, first + len(thought))
        for mine, values in (
                (found.thought[k, span], [p for p, _ in thought]),
                (found.thought_entropy[k, span], [h for _, h in thought]),
                (found.action[k], [p for p, _ in actions]),
                (found.action_entropy[k], [h for _, h in actions])):
            torch.testing.assert_close(mine, torch.stack(values), atol=1e-4, rtol=0)
    total = (found.thought.sum() + found.action.sum()
             + 0.1 * (found.thought_entropy.sum() + found.action_entropy.sum()))
    parameters = list(model.parameters())
    for mine, want in zip(torch.autograd.grad(total, parameters),
                          torch.autograd.grad(wanted, parameters), strict=True):
        # SigLIP's key biases have no gradient but rounding: softmax does not see them.
        torch.testing.assert_close(mine, want, rtol=1e-3,
                                   atol=max(1e-3 * want.abs().max().item(), 1e-6))


def test_lay_out_marks_what_was_chosen():
    ids = small_decoder().config.ids
    think, end = ids.think, ids.think_end
    written = lay_out([[40, 41], [42]], [[think, 30, 31, end], [think, 32, end]], [3, 1],
                      [[70, 71], [72, 73]], ids)
    tail = [ids.action_end, ids.eos]
    assert written.input_ids.tolist() == [
        [40, 41, think, 30, 31, end, ids.action, 70, 71, *tail],
        [ids.pad, ids.pad, 42, think, 32, end, ids.action, 72, 73, *tail]]
    assert written.attention_mask.sum(1).tolist() == [11, 9]
    assert written.input_ids[written.thought_mask].tolist() == [30, 31, end, 32]


def test_what_can_not_have_been_written_is_refused():
    model, rng = small_decoder(), np.random.default_rng(1)
    config = model.config
    row = sequence(config, rng, 2, 3)
    features = model.encode_images(images(config, rng, 1))
    ids, mask = padded([row], [1], len(row) + 1, config.ids.pad)
    chosen = torch.zeros(ids.shape, dtype=torch.bool)
    chosen[0, -1] = True  # eos
    with pytest.raises(UserError, match=rf'banned \(ids \[{config.ids.eos}\]\)'):
        likelihood(model, Written(ids, mask, chosen), features, banned=_banned(config))
    nothing = torch.zeros_like(chosen)
    with pytest.raises(UserError, match='fewer than'):
        likelihood(model, Written(ids[:, :-4], mask[:, :-4], nothing[:, :-4]), features)
    other = ids.clone()
    other[0, -4] = config.ids.bos
    with pytest.raises(UserError, match='after its last <action>'):
        likelihood(model, Written(other, mask, nothing), features)
    with pytest.raises(UserError, match='temperature must be positive'):
        likelihood(model, Written(ids, mask, nothing), features, action_temperature=0.0)
    for column in (0, 1):  # a pad, and the first real token
        chosen = nothing.clone()
        chosen[0, column] = True
        with pytest.raises(UserError, match='no real token before'):
            Written(ids, mask, chosen)
    with pytest.raises(UserError, match='alike'):
        Written(ids, mask[:, 1:], nothing)
