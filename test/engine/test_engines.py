"""Both engines against the decoder they are made of, phase by phase; ONNX Runtime's providers."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from support.decoders import small_decoder
from support.policies import untrained

from dtvla_ros.engine.export import write_graphs
from dtvla_ros.engine.onnx_engine import OnnxEngine
from dtvla_ros.engine.policy import banned_in_thought, write_thought
from dtvla_ros.engine.published import scene
from dtvla_ros.engine.torch_engine import TorchEngine
from dtvla_ros.errors import UserError
from dtvla_ros.policy.model import HybridDecoder

close = np.testing.assert_allclose


@pytest.fixture(scope='module', params=['nano', 'shared', 'grouped', 'single', 'last'])
def model(request) -> HybridDecoder:
    if request.param == 'nano':
        return untrained()[0]
    if request.param == 'last':  # the action ids end the vocabulary
        old = small_decoder(1).config
        return HybridDecoder(replace(old, text=replace(
            old.text, vocabulary=old.ids.bins_last + 1)))
    return small_decoder({'shared': 1, 'grouped': 2, 'single': 4}[request.param])


@pytest.fixture(scope='module', params=['torch', 'onnx'])
def case(request, model, tmp_path_factory) -> SimpleNamespace:
    """Return an engine, what it sees, a thought, and what is true by the decoder alone."""
    config, view = model.config, scene(model.config, 8, seed=5)
    if request.param == 'torch':
        engine = TorchEngine(model)
    else:
        folder = tmp_path_factory.mktemp('graphs')
        write_graphs(model, folder)
        engine = OnnxEngine(folder, config)
    banned = banned_in_thought(config.ids, config.text.vocabulary)
    engine.suppress_tokens(banned)
    words = np.random.default_rng(5).choice(np.flatnonzero(~view.banned), 11).tolist()

    @torch.inference_mode()
    def true(thought: list[int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return scores of words and of bins, and the words chosen, without any cache."""
        ids, slots, end = config.ids, config.slots, len(view.prompt) + len(thought)
        whole = torch.tensor([[*view.prompt, *thought, ids.action, *[ids.bins_first] * slots,
                               ids.action_end, ids.eos]])
        hidden = model(whole, torch.ones_like(whole), torch.from_numpy(view.pixels)[None])[0]
        scores = model.token_logits(hidden[len(view.prompt) - 1:end]).numpy()
        return (scores, model.action_logits(hidden[end:end + slots]).numpy(),
                np.where(banned, -np.inf, scores).argmax(-1).tolist())

    def sure(thought: list[int]) -> np.ndarray:
        """Return the log softmax of the words chosen over those that are permitted."""
        scores = np.where(banned, -np.inf, true(thought)[0]).astype(np.float64)
        return scores.max(-1) - np.log(np.exp(scores).sum(-1))

    return SimpleNamespace(
        sure=sure, engine=engine, prompt=view.prompt, features=engine.encode_images(view.pixels),
        pixels=view.pixels, thought=[config.ids.think, *words], banned=banned, true=true)


def test_scores(case, model):
    with torch.inference_mode():
        want = model.encode_images(torch.from_numpy(case.pixels)[None])[0]
    close(case.features.numpy(), want, atol=1e-4)
    close(case.engine.logits(case.prompt, case.features, case.thought),
          case.true(case.thought)[0], atol=2e-4)


def test_one_cache_is_continued_twice_and_rewound(case):
    """Acting leaves it as it was."""
    engine, thought = case.engine, case.thought
    chosen, cache = engine.prefill(case.prompt, case.features, thought)
    assert chosen.ids.tolist() == case.true(thought)[2]
    close(chosen.log_probs, case.sure(thought), atol=2e-4)
    assert cache.count == len(case.prompt + thought)
    _, start = engine.prefill(case.prompt, case.features)
    other = [*thought[:4], *reversed(thought)]
    for words in (thought, other, thought):
        chosen, cache = engine.verify(start, words)
        assert chosen.ids.tolist() == case.true(words)[2][1:]
        close(chosen.log_probs, case.sure(words)[1:], atol=2e-4)
    _, cache = engine.verify(start, other)
    chosen, cache = engine.verify(engine.crop(cache, len(other) - 4), thought[4:])
    assert chosen.ids.tolist() == case.true(thought)[2][5:]
    pending = [*thought[-2:], engine.config.ids.action]
    cache = engine.crop(cache, 2)
    first, again = (engine.decode_actions(cache, pending) for _ in range(2))
    close(first, case.true(thought)[1], atol=2e-4)
    np.testing.assert_array_equal(again, first)


def test_words_are_written_until_done(case):
    chosen, cache = case.engine.prefill(case.prompt, case.features)
    tokens, asked = chosen.ids.tolist(), []
    more, cache = case.engine.generate(
        cache, tokens, lambda t: asked.append(len(t)) or len(t) == 7)
    assert asked == [2, 3, 4, 5, 6, 7]
    assert cache.count == len(case.prompt) + 6 and tokens == case.true(tokens[:-1])[2]
    close([*chosen.log_probs, *more], case.sure(tokens[:-1]), atol=2e-4)


def test_given_words_are_taken_and_the_rest_is_chosen_behind_them_with_any_draft(case):
    engine, think, action = case.engine, case.thought[0], case.engine.config.ids.action
    given = dict(zip((0, 3, 4, 8), case.thought[1:]))

    def write(draft):
        tokens, log_probs, cache, drafting, new = write_thought(
            engine, case.prompt, case.features, [think], draft, lambda t: len(t) == 10,
            lambda t: given.get(len(t)))
        assert cache.count == len(case.prompt) + len(tokens)
        sure = [np.nan if k in given else value for k, value in enumerate(
            case.sure([think, *tokens])[1:-1])]
        close(log_probs, sure, atol=2e-4)  # what is given has no probability
        return tokens, engine.decode_actions(cache, [tokens[-1], action]), drafting, new

    tokens, scores, drafting, new = write([])
    _, bins, chosen = case.true([think, *tokens])
    assert tokens == [given.get(k, chosen[1 + k]) for k in range(10)]
    close(scores, bins, atol=2e-4)
    assert drafting.proposed == 0 and drafting.passes == 7, 'what is given is not waited for'
    assert new == [k for k in range(10) if k not in given]
    for draft in (tokens, tokens[:6], tokens[::-1], case.thought, chosen[1:]):
        again, same, _, new = write(draft)
        assert again == tokens and not set(new) & set(given)
        close(same, bins, atol=2e-4)
    _, _, drafting, new = write(tokens)
    assert drafting.passes == 1 and not new


def test_a_suppressed_word_is_not_chosen(case):
    chosen, _ = case.engine.prefill(case.prompt, case.features)
    banned = case.banned.copy()
    banned[chosen.ids] = True
    case.engine.suppress_tokens(banned)
    second, _ = case.engine.prefill(case.prompt, case.features)
    want = np.where(banned, -np.inf, case.true([])[0]).argmax(-1)
    assert second.ids.tolist() == want.tolist() != chosen.ids.tolist()
    case.engine.suppress_tokens(case.banned)


@pytest.mark.parametrize('more', [-0.01, 0.01])
def test_a_word_with_a_margin_is_chosen_only_where_it_leads_by_more(case, more):
    scores = np.where(case.banned, -np.inf, case.true([])[0])[0]
    second, first = np.argsort(scores)[-2:].tolist()
    lead = float(scores[first] - scores[second])
    case.engine.suppress_tokens(case.banned, {first: lead + more})
    chosen, _ = case.engine.prefill(case.prompt, case.features)
    assert chosen.ids.tolist() == [second if more > 0 else first]
    case.engine.suppress_tokens(case.banned)


def test_the_cache_grows(case):
    many = [case.thought[-1]] * 600  # more than there is room for at first
    _, cache = case.engine.prefill(case.prompt, case.features, case.thought)
    grown, cache = case.engine.verify(cache, many)
    _, bins, words = case.true([*case.thought, *many])
    assert grown.ids[-5:].tolist() == words[-5:]
    close(case.engine.decode_actions(cache, [case.engine.config.ids.action]), bins, atol=2e-4)


@pytest.mark.parametrize(('provider', 'missing'), [
    ('cuda', 'CUDAExecutionProvider'), ('tensorrt', 'TensorrtExecutionProvider'), ('auto', '')])
def test_a_missing_provider_is_named_once(tmp_path, caplog, provider, missing):
    if (missing or 'CUDAExecutionProvider') in onnxruntime.get_available_providers():
        pytest.skip(f'{provider} is here')
    model = small_decoder(1)
    write_graphs(model, tmp_path)
    with caplog.at_level(logging.INFO):
        engine = OnnxEngine(tmp_path, model.config, provider=provider)
    records = [r.getMessage() for r in caplog.records if r.name.endswith('providers')]
    assert len(records) == bool(missing)  # 'auto' is quiet
    assert all(missing in r and 'pip install onnxruntime-gpu' in r for r in records)
    view = scene(model.config, 8)
    features = engine.encode_images(view.pixels)
    assert np.isfinite(engine.logits(view.prompt, features, [])).all()
    with pytest.raises(ValueError, match='image ids'):  # there are too few
        engine.prefill(view.prompt[1:], features)
    with pytest.raises(UserError, match="provider 'tpu'"):
        OnnxEngine(tmp_path, model.config, provider='tpu')
