"""The ONNX engine against the decoder it was exported from, phase by phase."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime
import pytest
import torch
from support.decoders import small_decoder
from support.policies import untrained
from transformers import DynamicCache

from dtvla_ros.engine.export import write_graphs
from dtvla_ros.engine.onnx_engine import OnnxEngine, new_rows_mask
from dtvla_ros.engine.published import scene
from dtvla_ros.errors import UserError
from dtvla_ros.policy.model import HybridDecoder


@dataclass
class Case:
    model: HybridDecoder
    engine: OnnxEngine
    pixels: np.ndarray
    prompt: list[int]
    thought: list[int]

    @torch.inference_mode()
    def run(self, tokens: list[int]) -> tuple[torch.Tensor, DynamicCache]:
        ids = torch.tensor([tokens])
        features = self.model.encode_images(torch.from_numpy(self.pixels)[None])
        count = len(tokens)
        mask = torch.from_numpy(new_rows_mask(0, count, len(self.prompt)))
        cache = DynamicCache()
        hidden = self.model.run(self.model.embed_prompt(ids, features), mask,
                                torch.arange(1, count + 1)[None], cache)
        return hidden[0], cache

    @torch.inference_mode()
    def logits(self, thought: list[int]) -> np.ndarray:
        hidden, _ = self.run([*self.prompt, *thought])
        return self.model.token_logits(hidden[len(self.prompt) - 1:]).numpy()

    @torch.inference_mode()
    def act(self, thought: list[int], pending: list[int]) -> np.ndarray:
        _, cache = self.run([*self.prompt, *thought])
        x = self.model.embed_action(torch.tensor([pending]))
        start, count, first = cache.get_seq_length(), x.shape[1], len(pending) - 1
        mask = torch.from_numpy(new_rows_mask(start, count, len(self.prompt), start + first))
        hidden = self.model.run(
            x, mask, torch.arange(start + 1, start + count + 1)[None], cache)
        slots = hidden[0, first:first + self.model.config.slots]
        return self.model.action_logits(slots).numpy()

    def banned(self) -> np.ndarray:
        ids = self.model.config.ids
        out = np.zeros(self.model.config.text.vocabulary, bool)
        out[ids.bins_first:ids.bins_last + 1] = True
        out[ids.eos] = True
        return out

    def choices(self, thought: list[int]) -> np.ndarray:
        return np.where(self.banned(), -np.inf, self.logits(thought)).argmax(-1)


def make_case(model: HybridDecoder, folder) -> Case:
    write_graphs(model, folder)
    config, view = model.config, scene(model.config, 8, seed=5)
    words = np.random.default_rng(5).choice(np.flatnonzero(~view.banned), 11).tolist()
    engine = OnnxEngine(folder, config)
    case = Case(model, engine, view.pixels, view.prompt, [config.ids.think, *words])
    engine.suppress_tokens(case.banned())
    return case


@pytest.fixture(scope='module', params=['nano', 'shared', 'grouped', 'last'])
def case(request, tmp_path_factory) -> Case:
    if request.param == 'nano':
        model, _ = untrained()
    elif request.param == 'last':  # the action ids end the vocabulary
        old = small_decoder(1)
        text = replace(old.config.text, vocabulary=old.config.ids.bins_last + 1)
        model = HybridDecoder(replace(old.config, text=text))
    else:
        model = small_decoder(1 if request.param == 'shared' else 2)
    return make_case(model, tmp_path_factory.mktemp(request.param))


def test_features(case):
    with torch.inference_mode():
        want = case.model.encode_images(torch.from_numpy(case.pixels)[None])[0]
    np.testing.assert_allclose(case.engine.encode_images(case.pixels).numpy(), want, atol=1e-4)


def test_logits(case):
    features = case.engine.encode_images(case.pixels)
    got = case.engine.logits(case.prompt, features, case.thought)
    np.testing.assert_allclose(got, case.logits(case.thought), atol=2e-4)


def test_a_thought_in_one_pass_and_word_by_word(case):
    want = case.choices(case.thought)
    features = case.engine.encode_images(case.pixels)
    chosen, cache = case.engine.prefill(case.prompt, features, case.thought)
    assert chosen.tolist() == want.tolist() and cache.count == len(case.prompt + case.thought)
    chosen, cache = case.engine.prefill(case.prompt, features)
    steps = [int(chosen[0])]
    for token in case.thought:
        chosen, cache = case.engine.verify(cache, [token])
        steps.append(int(chosen[0]))
    assert steps == want.tolist()


def test_one_cache_is_continued_twice(case):
    features = case.engine.encode_images(case.pixels)
    _, start = case.engine.prefill(case.prompt, features)
    other = [*case.thought[:2], *reversed(case.thought)]
    for thought in (case.thought, other, case.thought):
        chosen, _ = case.engine.verify(start, thought)
        assert chosen.tolist() == case.choices(thought)[1:].tolist()


def test_rewind(case):
    features = case.engine.encode_images(case.pixels)
    wrong = [*case.thought[:4], *reversed(case.thought)]
    _, cache = case.engine.prefill(case.prompt, features, wrong)
    cache = case.engine.crop(cache, len(wrong) - 4)
    chosen, cache = case.engine.verify(cache, case.thought[4:])
    assert chosen.tolist() == case.choices(case.thought)[5:].tolist()
    pending = [case.thought[-1], case.model.config.ids.action]
    np.testing.assert_allclose(case.engine.decode_actions(case.engine.crop(cache, 1), pending),
                               case.act(case.thought[:-1], pending), atol=2e-4)


def test_act_leaves_the_cache_as_it_was(case):
    action = case.model.config.ids.action
    features = case.engine.encode_images(case.pixels)
    _, cache = case.engine.prefill(case.prompt, features, case.thought)
    first = case.engine.decode_actions(cache, [action])
    np.testing.assert_allclose(first, case.act(case.thought, [action]), atol=2e-4)
    np.testing.assert_array_equal(case.engine.decode_actions(cache, [action]), first)


def test_write(case):
    features = case.engine.encode_images(case.pixels)
    chosen, cache = case.engine.prefill(case.prompt, features)
    tokens, asked = [int(chosen[0])], []
    cache = case.engine.generate(cache, tokens, lambda t: asked.append(len(t)) or len(t) == 7)
    assert asked == [2, 3, 4, 5, 6, 7]
    assert cache.count == len(case.prompt) + 6
    assert tokens == case.choices(tokens[:-1]).tolist()


def test_forbid(case):
    features = case.engine.encode_images(case.pixels)
    chosen, _ = case.engine.prefill(case.prompt, features)
    banned = case.banned()
    banned[chosen[0]] = True
    case.engine.suppress_tokens(banned)
    second, _ = case.engine.prefill(case.prompt, features)
    want = np.where(banned, -np.inf, case.logits([])).argmax(-1)
    assert second.tolist() == want.tolist() != chosen.tolist()
    case.engine.suppress_tokens(case.banned())


def test_buffers_grow(case):
    rows = case.engine._capacity
    word = case.thought[-1]
    features = case.engine.encode_images(case.pixels)
    _, cache = case.engine.prefill(case.prompt, features, case.thought)
    grown, cache = case.engine.verify(cache, [word] * rows)
    assert case.engine._capacity > rows
    assert grown[-5:].tolist() == case.choices([*case.thought, *[word] * rows])[-5:].tolist()


def test_a_prompt_with_too_few_image_ids(case):
    with pytest.raises(ValueError, match='image ids'):
        case.engine.prefill(case.prompt[1:], case.engine.encode_images(case.pixels))


@pytest.fixture(scope='module')
def small_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('small')
    write_graphs(small_decoder(1), folder)
    return folder


@pytest.mark.parametrize(('provider', 'missing'), [
    ('cuda', 'CUDAExecutionProvider'), ('tensorrt', 'TensorrtExecutionProvider')])
def test_a_missing_provider_is_named_once(small_folder, caplog, provider, missing):
    if missing in onnxruntime.get_available_providers():
        pytest.skip(f'{missing} is here')
    model = small_decoder(1)
    with caplog.at_level(logging.INFO):
        engine = OnnxEngine(small_folder, model.config, provider=provider)
    records = [r.getMessage() for r in caplog.records if r.name.endswith('providers')]
    assert len(records) == 1
    assert missing in records[0] and 'pip install onnxruntime-gpu' in records[0]
    view = scene(model.config, 8)
    assert np.isfinite(engine.logits(view.prompt, engine.encode_images(view.pixels), [])).all()


def test_auto_is_quiet_on_a_machine_without_a_gpu(small_folder, caplog):
    if 'CUDAExecutionProvider' in onnxruntime.get_available_providers():
        pytest.skip('CUDA is here')
    OnnxEngine(small_folder, small_decoder(1).config, provider='auto')
    assert not caplog.records


def test_an_unknown_provider(tmp_path):
    with pytest.raises(UserError, match="provider 'tpu'"):
        OnnxEngine(tmp_path, small_decoder(1).config, provider='tpu')
