"""Thinking and acting over a cache against the golden vectors of the published class."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from golden import document, golden, tensors

from dtvla_ros.actions.codec import ActionCodec
from dtvla_ros.engine.think_act import write_greedily
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.policy.checkpoint import load_weights
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.decoder import HybridDecoder


@functools.cache
def _engine(name: str) -> TorchEngine:
    torch.set_num_threads(1)
    model = HybridDecoder(DecoderConfig.from_huggingface(document('config')))
    load_weights(model, golden(f'weights_{name}.safetensors'))
    return TorchEngine(model)


def _chunk(engine: TorchEngine, logits: np.ndarray) -> np.ndarray:
    config = engine.config
    codec = ActionCodec(config.ids.bins_first, config.ids.bins_last)
    values = codec.decode(logits.argmax(-1) + config.ids.bins_first)
    return values.reshape(config.chunk_steps, config.action_dim)


@pytest.mark.parametrize('case', ['trained_a', 'trained_b', 'trained_unseen',
                                  'random_truncated'])
def test_generation(case):
    data = tensors('case_generate')
    engine = _engine(case.split('_')[0])
    ids = engine.config.ids
    prompt = data[f'{case}.in.input_ids'][0].tolist()
    want = data[f'{case}.generated_ids'][0].tolist()
    banned = np.zeros(engine.config.text.vocabulary, bool)
    banned[ids.bins_first:ids.bins_last + 1] = True
    banned[ids.eos] = True
    logits, cache = engine.prefill(prompt, engine.see(data[f'{case}.in.pixel_values'].numpy()))
    np.testing.assert_allclose(logits[-1], data[f'{case}.step_logits'][0], atol=1e-4)
    truncated = case.endswith('truncated')
    tokens, grown = write_greedily(engine, logits[-1], cache, banned=banned,
                                   stop=[ids.think_end, ids.action],
                                   limit=len(want) if truncated else 48)
    assert tokens == want
    chunk = _chunk(engine, engine.act(grown, tokens[-1:]))
    np.testing.assert_allclose(chunk, data[f'{case}.chunk'], atol=1e-9)
    # The prompt's cache is untouched: the whole thought again, in one pass, from the same cache.
    steps, again = engine.think(cache, tokens[:-1])
    np.testing.assert_allclose(steps, data[f'{case}.step_logits'][1:], atol=1e-4)
    np.testing.assert_allclose(_chunk(engine, engine.act(again, tokens[-1:])), chunk, atol=1e-9)
    # And once more with the thought appended to the prefill, its end left to the action pass.
    rows, short = engine.prefill(prompt, engine.see(data[f'{case}.in.pixel_values'].numpy()),
                                 tokens[:-2])
    np.testing.assert_allclose(rows, data[f'{case}.step_logits'][:-1], atol=1e-4)
    np.testing.assert_allclose(_chunk(engine, engine.act(short, tokens[-2:])), chunk, atol=1e-9)


@pytest.mark.parametrize('weights', ['random', 'trained'])
def test_action_pass(weights):
    data = tensors('case_action_pass')
    engine = _engine(weights)
    sequence = data['in.input_ids'][0].tolist()
    end = sequence.index(engine.config.ids.newline) + 1
    features = engine.see(data['in.pixel_values'].numpy())
    rows, cache = engine.prefill(sequence[:end], features, sequence[end:-1])
    want = data[f'{weights}.cot_row_logits']
    np.testing.assert_allclose(rows[:len(want)], want[:len(rows)], atol=1e-4)
    logits = engine.act(cache, sequence[-1:])
    np.testing.assert_allclose(logits, data[f'{weights}.action_logits'], atol=1e-4)
    np.testing.assert_allclose(_chunk(engine, logits), data[f'{weights}.decoded_chunk'],
                               atol=1e-9)


@pytest.mark.parametrize('case', ['mask', 'rand'])
def test_given_thoughts(case):
    data = tensors('case_ablation')
    engine = _engine('trained')
    sequence = data[f'{case}.in.input_ids'][0].tolist()
    end = sequence.index(engine.config.ids.newline) + 1
    _, cache = engine.prefill(sequence[:end], engine.see(data['in.pixel_values'].numpy()))
    logits = engine.act(cache, sequence[end:])
    np.testing.assert_allclose(logits, data[f'{case}.action_logits'], atol=1e-4)
    np.testing.assert_allclose(_chunk(engine, logits), data[f'{case}.chunk'], atol=1e-9)
