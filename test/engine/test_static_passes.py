"""Recorded passes of fixed shapes against the same passes without padding; what is recorded."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.decoders import small_decoder

from dtvla_ros.engine import static_passes
from dtvla_ros.engine.capture import StandIn
from dtvla_ros.engine.engine import Prefix
from dtvla_ros.engine.policy import banned_in_thought, write_thought
from dtvla_ros.engine.published import Scene, scene
from dtvla_ros.engine.static_passes import PENDING, bucket
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.policy.config import DecoderConfig
from dtvla_ros.policy.model import HybridDecoder

TEXT, DRAFT, THOUGHT = (8, 16), (4, 8), 20
close = np.testing.assert_allclose


def word_within(model: HybridDecoder) -> int:
    """Return the word that most thoughts of a model hold, and do not begin with."""
    config, engine, count = model.config, TorchEngine(model), Counter[int]()
    engine.suppress_tokens(banned_in_thought(config.ids, config.text.vocabulary))
    for seed in range(8):
        view = scene(config, 4 + seed, seed)
        tokens = write_thought(engine, view.prompt, engine.encode_images(view.pixels),
                               [config.ids.think], [], lambda said: len(said) >= THOUGHT)[0]
        count.update({*tokens[2:]} - {*tokens[:2]})
    return count.most_common(1)[0][0]


class Case:
    """The same model twice, in float64: as it is, and with all passes recorded."""

    def __init__(self, kv_heads: int):
        model = copy.deepcopy(small_decoder(kv_heads)).double()
        with torch.no_grad():  # it says different words
            torch.manual_seed(0)
            model.norm.weight.normal_(-1.0, 1.0)
        model.config = replace(model.config, ids=replace(
            model.config.ids, think_end=word_within(model)))  # and ends its thoughts
        self.config: DecoderConfig = model.config
        self.plain, self.static = TorchEngine(model), TorchEngine(model)
        self.recorder = StandIn()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(static_passes, 'TEXT', TEXT)
            patch.setattr(static_passes, 'DRAFT', DRAFT)
            self.warmed = self.static.warm_up(THOUGHT, recorder=self.recorder)
        self.banned = banned_in_thought(self.config.ids, self.config.text.vocabulary)
        self.passes = self.static._static
        for engine in (self.plain, self.static):
            engine.suppress_tokens(self.banned)

    def views(self, words: int, seed: int = 0) -> tuple[Scene, list]:
        view = scene(self.config, words, seed)
        return view, [(engine, engine.encode_images(view.pixels))
                      for engine in (self.plain, self.static)]

    def words(self, count: int) -> list[int]:
        return np.random.default_rng(count).choice(
            np.flatnonzero(~self.banned), count).tolist()

    def addresses(self) -> tuple[int, ...]:
        return self.passes.cache.keys.data_ptr(), self.passes.cache.values.data_ptr()


@pytest.fixture(scope='module', params=[1, 2])
def case(request) -> Case:
    return Case(request.param)


def same(results: list) -> None:
    """Check ids, log probabilities and scores of both engines."""
    (chosen, scores), (other, others) = results
    assert chosen.ids.tolist() == other.ids.tolist()
    close(other.log_probs, chosen.log_probs, atol=1e-6)
    close(others, scores, atol=1e-6)


@pytest.mark.parametrize('begun', [0, 1, 4, 5, 8, 9, 13, 21])
@pytest.mark.parametrize('words', [3, 7, 8, 9, 15, 16])
def test_prompts_and_drafts_of_all_lengths(case, words, begun):
    """Borders of buckets included, and drafts that go beyond the last one."""
    view, engines = case.views(words, begun)
    close(engines[1][1], engines[0][1], atol=1e-12)
    results = []
    for engine, features in engines:
        chosen, cache = engine.prefill(view.prompt, features, case.words(begun))
        assert cache == Prefix(len(view.prompt) + begun, len(view.prompt))
        results.append((chosen, engine.decode_actions(cache, [
            case.config.ids.think_end, case.config.ids.action])))
    same(results)
    assert case.static._passes is not None, 'it ran in recorded passes'


@pytest.mark.parametrize('more', [1, 3, 4, 5, 8, 9, 17])
def test_drafts_behind_a_cache_that_is_rewound(case, more):
    view, engines = case.views(9, more)
    results = []
    for engine, features in engines:
        _, cache = engine.prefill(view.prompt, features, case.words(6))
        _, longer = engine.verify(cache, case.words(8))  # what lies there is written again
        chosen, cache = engine.verify(engine.crop(longer, 9), case.words(more))
        results.append((chosen, engine.decode_actions(cache, [case.config.ids.action])))
    same(results)


@pytest.mark.parametrize('pending', [1, 2, PENDING, PENDING + 1, 12, 30])
def test_actions_after_any_number_of_given_words(case, pending):
    view, engines = case.views(16, pending)
    scores = []
    for engine, features in engines:
        _, cache = engine.prefill(view.prompt, features)
        scores.append(engine.decode_actions(
            cache, [*case.words(pending - 1), case.config.ids.action]))
    close(scores[1], scores[0], atol=1e-6)


def written(engine: TorchEngine, features: torch.Tensor, prompt: list[int], draft: list[int],
            done) -> tuple[list[int], list[float], np.ndarray]:
    ids = engine.config.ids
    tokens, log_probs, cache, *_ = write_thought(
        engine, prompt, features, [ids.think], draft, done)
    return tokens, log_probs, engine.decode_actions(cache, [tokens[-1], ids.action])


@pytest.mark.parametrize('ahead', [1, 2, 5])
def test_thoughts_are_the_same_word_for_word(case, ahead, monkeypatch):
    """Whether they end by themselves, by the limit, or go on behind their end tag."""
    monkeypatch.setattr(case.passes.tokens, 'ahead', ahead)
    end, lengths = case.config.ids.think_end, set()
    for seed in range(8):
        view, engines = case.views(4 + seed, seed)
        for stops, limit in ((True, 1), (True, THOUGHT), (False, THOUGHT)):
            def done(tokens, stops=stops, limit=limit):
                return len(tokens) >= limit or stops and tokens[-1] == end
            found = [written(*engine, view.prompt, [], done) for engine in engines]
            assert found[0][0] == found[1][0]
            close(found[1][1], found[0][1], atol=1e-6)
            close(found[1][2], found[0][2], atol=1e-6)
            lengths.add(len(found[0][0]))
        draft = [*found[0][0][:seed], *case.words(3), *found[0][0][seed:]]
        assert written(*engines[1], view.prompt, draft, done)[0] == found[0][0]
    assert any(1 < length < THOUGHT for length in lengths), 'some end by themselves'


def test_nothing_is_recorded_again_and_no_tensor_moves(case):
    """Whatever outgrows the recorded passes runs beside them, and they go on afterwards."""
    names, before = list(case.recorder.replays), case.addresses()
    assert case.warmed.passes == len(names) == 9 and case.warmed.bytes > 0
    assert case.static.ready.startswith('9 passes recorded in ') and not case.plain.ready

    def long(tokens):
        return len(tokens) >= 60

    for words in (5, 17, 60, 5):  # 17: more than the last bucket; 60 words outgrow any cache
        view, engines = case.views(words, words)
        found = [written(*engine, view.prompt, [], long) for engine in engines]
        assert found[0][0] == found[1][0] and len(found[0][0]) == 60
        close(found[1][2], found[0][2], atol=1e-6)
        assert case.static._passes is None, 'it had outgrown them'
    replays = dict(case.recorder.replays)
    view, ((_, _), (engine, features)) = case.views(5)
    written(engine, features, view.prompt, [], lambda tokens: len(tokens) >= 7)
    used = {name: count - replays[name] for name, count in case.recorder.replays.items()
            if count > replays[name]}
    assert used == {'see': 1, 'prompt 8 rows, 8 read': 1, 'token': 6, 'act': 1}
    assert list(case.recorder.replays) == names and case.addresses() == before


def test_numbers_that_are_none_do_not_stay(case):
    """Rows that a damaged image left behind are seen through no mask."""
    _, engines = case.views(9)
    broken, _ = case.views(16, 1)
    static = engines[1][0]
    dark = static.encode_images(np.full_like(broken.pixels, np.nan))
    _, cache = static.prefill(broken.prompt, dark, case.words(5))
    assert np.isnan(static.decode_actions(cache, [case.config.ids.action])).all()
    view, engines = case.views(4, 2)
    found = [written(*engine, view.prompt, [], lambda tokens: len(tokens) >= 12)
             for engine in engines]
    assert found[0][0] == found[1][0]
    close(found[1][2], found[0][2], atol=1e-6)


def test_a_bucket_is_the_smallest_that_holds_it():
    assert [bucket(DRAFT, count) for count in (1, 4, 5, 8, 9)] == [4, 4, 8, 8, None]


def test_the_stand_in_finds_what_no_graph_can_do():
    x, out, recorder = torch.ones(3), torch.zeros(3), StandIn()
    kept = [x]

    def held():
        return kept[0], out

    replay = recorder.record('twice', lambda: out.copy_(2.0 * kept[0]), held)
    x.fill_(4.0)
    replay()
    assert out.tolist() == [8.0] * 3 and recorder.replays == {'twice': 1}
    with pytest.raises(RuntimeError, match='twice is recorded twice'):
        recorder.record('twice', lambda: None, held)
    for number, run in enumerate((
            lambda: out.copy_(x * float(x[0])), lambda: out.copy_(x.nonzero().sum() + x),
            lambda: out.copy_(x + torch.tensor([1.0, 2.0, 3.0])))):
        with pytest.raises(RuntimeError, match=r'captured|tracing'):
            recorder.record(f'bad {number}', run, held)
    kept[0] = x.clone()
    with pytest.raises(RuntimeError, match='twice: a tensor has moved'):
        replay()


@pytest.mark.parametrize('weights', [None, 'int8'])
def test_a_head_of_few_words_chooses_the_same(weights):
    model = small_decoder(1)
    view, banned = scene(model.config, 9, 3), np.ones(model.config.text.vocabulary, bool)
    banned[[5, 17, 23, 40, 60]] = False
    every, few = TorchEngine(model, weights), TorchEngine(model, weights)
    few.warm_up(THOUGHT, recorder=StandIn(trace=False))
    every._model.restrict = lambda _: False
    found = []
    for engine in (every, few):
        engine.suppress_tokens(banned)
        found.append(written(engine, engine.encode_images(view.pixels), view.prompt, [],
                             lambda tokens: len(tokens) >= 9))
    assert few._static is None, 'recorded with another head'
    assert found[0][0] == found[1][0] and {*found[0][0]} <= {5, 17, 23, 40, 60}
    close(found[1][1], found[0][1], atol=1e-5)
    assert not few._model.restrict(torch.tensor([5, 17, 23, 40, 60]))
    first = found[0][0][0]
    for engine in (every, few):
        engine.suppress_tokens(banned, {first: 100.0})
    firsts = [engine.prefill(view.prompt, engine.encode_images(view.pixels))[0]
              for engine in (every, few)]
    assert firsts[0].ids == firsts[1].ids != [first]
    close(firsts[1].log_probs, firsts[0].log_probs, atol=1e-5)
    few.suppress_tokens(np.zeros_like(banned))
    assert few._model._words is None
