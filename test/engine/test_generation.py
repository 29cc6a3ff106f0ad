"""Thinking and acting over a cache against the golden vectors of the published class."""

from __future__ import annotations

import numpy as np
import pytest
from support.decoders import golden_decoder
from support.golden import tensors

from dtvla_ros.actions.codec import ActionCodec
from dtvla_ros.engine.policy import write_thought
from dtvla_ros.engine.published import PublishedScheme
from dtvla_ros.engine.torch_engine import TorchEngine

CASES = ['trained_a', 'trained_b', 'trained_unseen', 'random_truncated']


def _engine(name: str) -> TorchEngine:
    engine = TorchEngine(golden_decoder(name))
    engine.suppress_tokens(_banned(engine))
    return engine


def _banned(engine) -> np.ndarray:
    ids = engine.config.ids
    banned = np.zeros(engine.config.text.vocabulary, bool)
    banned[ids.bins_first:ids.bins_last + 1] = True
    banned[ids.eos] = True
    return banned


def _given(engine: TorchEngine, data: dict, name: str):
    """Return a sequence, the length of its prompt, and the features of the images."""
    ids, sequence = engine.config.ids, data[name][0].tolist()
    end = list(zip(sequence, sequence[1:])).index((ids.semicolon, ids.newline)) + 2
    return sequence, end, engine.encode_images(data['in.pixel_values'].numpy())


def _close(engine: TorchEngine, logits: np.ndarray, chunk) -> None:
    ids = engine.config.ids
    values = ActionCodec(ids.bins_first, ids.bins_last).decode(logits.argmax(-1) + ids.bins_first)
    np.testing.assert_allclose(values.reshape(chunk.shape), chunk, atol=1e-9)


def _case(case: str):
    """Return prompt, pixels, the thought that must come out, and the test for its end."""
    data = tensors('case_generate')
    prompt = data[f'{case}.in.input_ids'][0].tolist()
    want = data[f'{case}.generated_ids'][0].tolist()
    ids = golden_decoder(case.split('_')[0]).config.ids
    limit = len(want) if case.endswith('truncated') else 4 * len(want)

    def done(tokens: list[int]) -> bool:
        return tokens[-2:] == [ids.think_end, ids.action] or len(tokens) >= limit

    return prompt, data[f'{case}.in.pixel_values'].numpy(), want, done, data


@pytest.mark.parametrize('case', CASES)
def test_generation(case):
    engine = _engine(case.split('_')[0])
    prompt, pixels, want, done, data = _case(case)
    features = engine.encode_images(pixels)
    steps = engine.logits(prompt, features, want[:-1])
    np.testing.assert_allclose(steps, data[f'{case}.step_logits'], atol=1e-4)
    tokens, _, cache, drafting, new = write_thought(engine, prompt, features, [], [], done)
    assert tokens == want and drafting.passes == len(want) == len(new)
    chunk = data[f'{case}.chunk'].numpy()
    _close(engine, engine.decode_actions(cache, tokens[-1:]), chunk)
    again, _, _, stats, new = write_thought(engine, prompt, features, [], want, done)
    assert again == want and stats.passes == 1 and not new
    assert stats.accepted == stats.proposed == len(want)


@pytest.mark.parametrize('case', CASES)
def test_the_published_scheme_is_the_published_one(case):
    model = golden_decoder(case.split('_')[0])
    scheme = PublishedScheme(model)
    prompt, pixels, want, _, data = _case(case)
    limit = len(want) if case.endswith('truncated') else 4 * len(want)
    assert scheme.generate(prompt, pixels, _banned(scheme), limit) == want
    mine = _engine(case.split('_')[0])
    _, cache = mine.prefill(prompt, mine.encode_images(pixels), want[:-1])
    logits = scheme.act(prompt, want, pixels)
    np.testing.assert_allclose(logits, mine.decode_actions(cache, want[-1:]), atol=1e-4)
    _close(mine, logits, data[f'{case}.chunk'])


@pytest.mark.parametrize('weights', ['random', 'trained'])
def test_action_pass(weights):
    data, engine = tensors('case_action_pass'), _engine(weights)
    sequence, end, features = _given(engine, data, 'in.input_ids')
    rows = engine.logits(sequence[:end], features, sequence[end:-1])  # rows P-1 .. A-1
    want = data[f'{weights}.cot_row_logits']
    np.testing.assert_allclose(rows, want[:len(rows)], atol=1e-4)
    _, cache = engine.prefill(sequence[:end], features, sequence[end:-1])
    logits = engine.decode_actions(cache, sequence[-1:])
    np.testing.assert_allclose(logits, data[f'{weights}.action_logits'], atol=1e-4)
    _close(engine, logits, data[f'{weights}.decoded_chunk'])


@pytest.mark.parametrize('case', ['mask', 'rand'])
def test_given_thoughts(case):
    data, engine = tensors('case_ablation'), _engine('trained')
    sequence, end, features = _given(engine, data, f'{case}.in.input_ids')
    _, cache = engine.prefill(sequence[:end], features)
    logits = engine.decode_actions(cache, sequence[end:])
    np.testing.assert_allclose(logits, data[f'{case}.action_logits'], atol=1e-4)
    _close(engine, logits, data[f'{case}.chunk'])
