"""The fused engine: equal to the decoder it is made of, in every way it is asked."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoders import images, small_decoder
from support.policies import untrained

from dtvla_ros.engine import inference_model, torch_engine
from dtvla_ros.engine.export import compare
from dtvla_ros.engine.policy import agreement, banned_in_thought, continuation, write_thought
from dtvla_ros.engine.published import Scene, scene
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError

LIMIT = 24


def _engine(model, **options) -> TorchEngine:
    engine = TorchEngine(model, **options)
    engine.suppress_tokens(banned_in_thought(model.config.ids, model.config.text.vocabulary))
    return engine


def _written(engine: TorchEngine, view: Scene, limit: int):
    return write_thought(engine, view.prompt, engine.encode_images(view.pixels), [], [],
                         lambda tokens: len(tokens) >= limit)


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_equal_to_the_decoder(kv_heads):
    model = small_decoder(kv_heads)
    config, ids = model.config, model.config.ids
    view = scene(model.config, 9, 1)
    prompt, pixels = view.prompt, view.pixels
    thought = [ids.think, 33, 34, 35, ids.think_end]
    tail = [ids.action, *[ids.bins_first] * config.slots, ids.action_end, ids.eos]
    whole = torch.tensor([[*prompt, *thought, *tail]])
    with torch.no_grad():
        hidden = model(whole, torch.ones_like(whole), torch.from_numpy(pixels)[None])[0]
        words, bins = model.token_logits(hidden).numpy(), model.action_logits(hidden).numpy()
    engine = _engine(model)
    features = engine.encode_images(pixels)
    first, start = len(prompt) - 1, len(prompt) + len(thought)
    np.testing.assert_allclose(engine.logits(prompt, features, thought), words[first:start],
                               atol=1e-4)
    chosen, cache = engine.prefill(prompt, features, thought)
    banned = banned_in_thought(ids, config.text.vocabulary)
    assert chosen.tolist() == np.where(banned, -np.inf, words[first:start]).argmax(-1).tolist()
    np.testing.assert_allclose(engine.decode_actions(cache, [ids.action]),
                               bins[start:start + config.slots], atol=1e-4)
    np.testing.assert_allclose(
        engine.decode_actions(engine.crop(cache, 2), [*thought[-2:], ids.action]),
        bins[start:start + config.slots], atol=1e-4)


def test_an_engine_may_take_the_weights_over():
    model = copy.deepcopy(small_decoder())
    view = scene(model.config, 9, 2)
    kept, taken = _engine(model), _engine(model, release=True)
    assert sum(p.numel() for p in model.layers.parameters()) == 0
    assert compare(kept, taken, seed=3).check() is None
    first, second = (engine.prefill(view.prompt, engine.encode_images(view.pixels))[0]
                     for engine in (kept, taken))
    assert first == second


def test_the_cache_grows(monkeypatch):
    monkeypatch.setattr(torch_engine, 'ROOM', 12)
    model = small_decoder()
    view = scene(model.config, 9, 4)
    small = _engine(model)
    monkeypatch.undo()
    large = _engine(model)
    runs = []
    for engine in (small, large):
        tokens, cache, _ = _written(engine, view, 40)
        runs.append((tokens, engine.decode_actions(cache, tokens[-1:])))
    assert runs[0][0] == runs[1][0]
    np.testing.assert_allclose(runs[0][1], runs[1][1], atol=1e-5)


@pytest.mark.slow
def test_a_compiled_token_loop_writes_the_same():
    model = small_decoder()
    view = scene(model.config, 9, 5)
    plain, compiled = _engine(model), _engine(model, compile=True)
    for limit in (1, 2, 17):
        wrote = []
        for engine in (plain, compiled):
            tokens, cache, _ = _written(engine, view, limit)
            wrote.append((tokens, engine.decode_actions(cache, tokens[-1:])))
        assert wrote[0][0] == wrote[1][0]
        np.testing.assert_allclose(wrote[0][1], wrote[1][1], atol=1e-4)


def without_integers(monkeypatch) -> None:
    monkeypatch.setattr(inference_model, 'integers_pay', lambda: False)


@pytest.mark.parametrize('floats', [False, True])
def test_int8_weights_keep_the_direction(floats, monkeypatch):
    if floats:
        without_integers(monkeypatch)
    model, _ = untrained(layers=2)
    parity = compare(TorchEngine(model), TorchEngine(model, int8=True), seed=1)
    parity.check(exact=False)
    assert parity.bins > 0.5
    with pytest.raises(UserError, match='cosine .* required'):
        other, _ = untrained(layers=2, seed=9)
        compare(TorchEngine(model), TorchEngine(other)).check(exact=False)


@pytest.mark.parametrize('kind', ['fp32', 'int8', 'int8 in floats'])
def test_drafts_change_no_thought(kind, monkeypatch):
    """Draft verification gives plain greedy decoding, whatever the draft and the frame."""
    int8 = kind != 'fp32'
    if kind == 'int8 in floats':  # as on a CPU that multiplies no bytes
        without_integers(monkeypatch)
    models = {kv: _talkative(small_decoder(kv)) for kv in (1, 2)}
    engines = {kv: _engine(model, int8=int8) for kv, model in models.items()}
    accepted, thoughts = 0, set()
    for pair in range(400):
        rng = np.random.default_rng(pair)
        engine = engines[1 + pair % 2]
        ids = engine.config.ids
        if pair % 20 < 2:  # a new frame; drafts come from it, from others, or from nowhere
            prompt, pixels = _frame(engine.config, pair)
            features = engine.encode_images(pixels)
        else:
            prompt, features = engine.kept

        def done(tokens: list[int], end: int = ids.think_end) -> bool:
            return tokens[-1] == end or len(tokens) >= LIMIT

        if pair % 20 < 2:
            engine.kept = prompt, features
            engine.plain, cache, _ = write_thought(engine, prompt, features, [ids.think], [], done)
            engine.chunk = engine.decode_actions(cache, [engine.plain[-1], ids.action]).argmax(-1)
            thoughts.add(tuple(engine.plain))
        draft = _mutated(engine.plain, rng, engine.config.text.vocabulary)
        tokens, cache, drafting = write_thought(
            engine, prompt, features, [ids.think], draft, done)
        assert tokens == engine.plain, (pair, draft)
        chunk = engine.decode_actions(cache, [tokens[-1], ids.action]).argmax(-1)
        assert (chunk == engine.chunk).all()
        assert drafting.passes <= len(tokens) and drafting.accepted <= len(tokens)
        accepted += drafting.accepted
    assert accepted > 1200
    assert len(thoughts) > 20 and np.mean([len(set(t)) for t in thoughts]) > 4
    assert len({len(t) for t in thoughts}) > 5  # some end by themselves


def _frame(config, seed: int) -> tuple[list[int], np.ndarray]:
    """Return a prompt and images at which no int8 thought hangs on a rounding."""
    rng, ids = np.random.default_rng(seed), config.ids
    banned = banned_in_thought(ids, config.text.vocabulary)
    banned[[ids.semicolon, ids.newline]] = True
    words = rng.choice(np.flatnonzero(~banned), 6).tolist()
    prompt = [*[ids.image] * config.image_tokens, ids.bos, *words, ids.semicolon, ids.newline]
    return prompt, images(config, rng, 1)[0].numpy()


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
    out = list(tokens)
    for _ in range(int(rng.integers(0, 4))):
        at, word = int(rng.integers(len(out) + 1)), int(rng.integers(vocabulary))
        match int(rng.integers(4)):
            case 0:
                out[at:at + 1] = [word]
            case 1:
                out[at:at] = [word]
            case 2:
                del out[at:at + 1]
            case 3:
                out = out[at:] + out[:at]
    return out


def test_continuation():
    draft = [1, 2, 3, 4, 5, 6]
    assert continuation(draft, [1, 2, 9]) == [4, 5, 6]  # a word was replaced
    assert continuation(draft, [1, 2, 4]) == [5, 6]  # one fell out
    assert continuation(draft, [1, 2, 9, 3]) == [4, 5, 6]  # one came in
    assert continuation(draft, [7, 8, 9, 1, 2]) == [3, 4, 5, 6]
    assert continuation([1, 2, 1, 3, 1, 4], [9, 1, 3, 1]) == [4]  # the longer ending wins
    assert list(continuation(draft, list(range(10, 20)))) == []
    assert list(continuation([], [1])) == []


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), min_size=1,
                                                          max_size=12))
def test_continuation_is_a_tail_of_the_draft(draft, written):
    rest = list(continuation(draft, written))
    assert draft[len(draft) - len(rest):] == rest
    assert agreement(draft, written) <= min(len(draft), len(written))


