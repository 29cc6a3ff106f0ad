"""The torch engine's options, and drafts, which change no thought."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.decoders import small_decoder
from support.policies import untrained

from dtvla_ros.engine import inference_model
from dtvla_ros.engine.export import compare
from dtvla_ros.engine.inference_model import Float8
from dtvla_ros.engine.policy import banned_in_thought, continuation, write_thought
from dtvla_ros.engine.published import scene
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError

LIMIT = 24


def _engine(model, **options) -> TorchEngine:
    engine = TorchEngine(model, **options)
    engine.suppress_tokens(banned_in_thought(model.config.ids, model.config.text.vocabulary))
    return engine


def test_an_engine_may_take_the_weights_over():
    model = copy.deepcopy(small_decoder())
    kept, taken = _engine(model), _engine(model, release=True)
    assert sum(p.numel() for p in model.layers.parameters()) == 0
    compare(kept, taken, seed=3).check()


@pytest.mark.slow
def test_a_compiled_token_loop_writes_the_same():
    model = small_decoder()
    view = scene(model.config, 9, 5)
    plain, compiled = _engine(model), _engine(model)
    compiled.warm_up(32, compiled=True)
    for limit in (1, 2, 17):
        wrote = []
        for engine in (plain, compiled):
            tokens, log_probs, cache, *_ = write_thought(
                engine, view.prompt, engine.encode_images(view.pixels), [], [],
                lambda tokens, limit=limit: len(tokens) >= limit)
            wrote.append((tokens, log_probs, engine.decode_actions(cache, tokens[-1:])))
        assert wrote[0][0] == wrote[1][0]
        for k in (1, 2):
            np.testing.assert_allclose(wrote[0][k], wrote[1][k], atol=1e-4)


@pytest.mark.parametrize('floats', [False, True])
def test_int8_weights_keep_the_direction(floats, monkeypatch):
    if floats:
        monkeypatch.setattr(inference_model, 'integers_pay', lambda: False)
    model, _ = untrained(layers=2)
    parity = compare(TorchEngine(model), TorchEngine(model, 'int8'), seed=1)
    parity.check(exact=False)
    assert parity.bins > 0.5
    with pytest.raises(UserError, match='cosine .* required'):
        other, _ = untrained(layers=2, seed=9)
        compare(TorchEngine(model), TorchEngine(other)).check(exact=False)


@pytest.mark.parametrize('rows', [1, 7])
@pytest.mark.parametrize('bias', [False, True])
def test_fp8_is_the_product_of_rounded_rows_and_weights(rows, bias):
    torch.manual_seed(rows)
    weight, x = torch.randn(48, 32), torch.randn(rows, 32)
    b = torch.randn(48) if bias else None
    layer = Float8(weight, b)
    assert layer.matrix.dtype == torch.float8_e4m3fn
    whole = layer.matrix.t().float() * layer.scale.t()  # three bits of mantissa
    assert ((whole - weight).abs() <= weight.abs() / 16 + layer.scale.t() / 512).all()
    step = x.abs().amax(-1, keepdim=True) / 448
    want = ((x / step).clamp(-448, 448).to(torch.float8_e4m3fn).float() * step) @ whole.t()
    torch.testing.assert_close(layer(x), want if b is None else want + b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(x[None])[0], layer(x))
    assert torch.isfinite(layer(1e30 * x)).all() and layer(x.bfloat16()).dtype == torch.bfloat16


def test_the_gate_refuses_fp8():
    """Three bits of mantissa are too few for it, of random weights at least."""
    model, _ = untrained(layers=2)
    engine = TorchEngine(model, 'fp8')
    assert engine.where == 'cpu float32 with fp8 weights'
    parity = compare(TorchEngine(model), engine, seed=1)
    assert parity.cosine > 0.98 and parity.bins > 0.9
    with pytest.raises(UserError, match='cosine .* required'):
        parity.check(exact=False)
    with pytest.raises(UserError, match="weights 'fp4'"):
        TorchEngine(model, 'fp4')


@pytest.mark.parametrize('kind', ['fp32', 'int8', 'int8 in floats'])
def test_drafts_change_no_thought(kind, monkeypatch):
    """Draft verification gives plain greedy decoding, whatever the draft and the frame."""
    if kind == 'int8 in floats':  # as on a CPU that multiplies no bytes
        monkeypatch.setattr(inference_model, 'integers_pay', lambda: False)
    engines = [_engine(_talkative(small_decoder(kv)),
                       weights=None if kind == 'fp32' else 'int8') for kv in (2, 1)]
    accepted, thoughts = 0, set()
    for frame in (pair for pair in range(400) if pair % 20 < 2):
        engine = engines[frame % 2]
        ids = engine.config.ids
        view = scene(engine.config, 9, frame)  # at which no int8 thought hangs on a rounding
        features = engine.encode_images(view.pixels)

        def said(draft: list[int], engine=engine, ids=ids, view=view, features=features):
            tokens, _, cache, drafting, _ = write_thought(
                engine, view.prompt, features, [ids.think], draft,
                lambda tokens: tokens[-1] == ids.think_end or len(tokens) >= LIMIT)
            return tokens, engine.decode_actions(
                cache, [tokens[-1], ids.action]).argmax(-1).tolist(), drafting

        plain, chunk, _ = said([])
        thoughts.add(tuple(plain))
        for pair in range(frame, frame + 20, 2):  # drafts of it, or from nowhere
            draft = _mutated(plain, np.random.default_rng(pair), engine.config.text.vocabulary)
            tokens, bins, drafting = said(draft)
            assert tokens == plain, (pair, draft)
            assert bins == chunk
            assert drafting.passes <= len(tokens) and drafting.accepted <= len(tokens)
            accepted += drafting.accepted
    assert accepted > 1200
    assert len(thoughts) > 20 and np.mean([len(set(t)) for t in thoughts]) > 4
    assert len({len(t) for t in thoughts}) > 5  # some end by themselves


def _talkative(model):
    """Return a copy that says different words, and sometimes ends its thought."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(0)
        model.embed_tokens.weight[model.config.ids.think_end] *= 1.5
        model.norm.weight.normal_(-1.0, 1.0)
    return model


def _mutated(tokens: list[int], rng: np.random.Generator, vocabulary: int) -> list[int]:
    """Return tokens with a few words changed, dropped, added or moved; sometimes all new."""
    if rng.random() < 0.1:
        return rng.integers(0, vocabulary, rng.integers(1, 2 * LIMIT)).tolist()
    for _ in range(int(rng.integers(0, 4))):
        at, dropped, added = rng.integers(len(tokens) + 1), *rng.integers(0, 2, 2)
        words = rng.integers(0, vocabulary, added).tolist()
        tokens = [*tokens[:at], *words, *tokens[at + dropped:]]
        if rng.random() < 0.25:
            tokens = tokens[at:] + tokens[:at]
    return tokens


def test_continuation():
    draft = [1, 2, 3, 4, 5, 6]
    assert continuation(draft, [1, 2, 9]) == [4, 5, 6]  # a word was replaced
    assert continuation(draft, [1, 2, 4]) == [5, 6]  # one fell out
    assert continuation(draft, [1, 2, 9, 3]) == [4, 5, 6]  # one came in
    assert continuation(draft, [7, 8, 9, 1, 2]) == [3, 4, 5, 6]
    assert continuation([1, 2, 1, 3, 1, 4], [9, 1, 3, 1]) == [4]  # the longer ending wins
    assert list(continuation(draft, list(range(10, 20)))) == []
    assert list(continuation([], [1])) == []
