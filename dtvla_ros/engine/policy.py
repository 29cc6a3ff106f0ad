"""One decision: see, think, act, with the prefix computed once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.engine.decode import write_thought
from dtvla_ros.engine.engine import MODES, Decision, Drafting, Engine
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import SpecialIds
from dtvla_ros.policy.observation import Observation
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import UNKNOWN

_MEMORY = 256  # thoughts remembered for swapping


def banned_in_thought(ids: SpecialIds, vocabulary: int) -> NDArray[np.bool_]:
    """Return [V], true for ids a thought may not hold: actions, pads, images, tags, eos."""
    banned = np.zeros(vocabulary, bool)
    banned[ids.bins_first:ids.bins_last + 1] = True
    banned[[ids.pad, ids.eos, ids.bos, ids.image, ids.think, ids.action, ids.action_end]] = True
    return banned


class Policy:
    """A policy: an observation in, a thought and a chunk of actions out.

    ``mode`` says where the thought comes from: 'full' writes its own; 'masked' gets an empty
    one; 'random' gets ``random_words`` words drawn at random; 'swapped' writes its own and acts
    on one it wrote for another frame (on an empty one until there is another); 'frozen' writes
    one and keeps it for ``keep`` decisions. All but 'full' tell how much the actions need it.

    The last thought is the next one's draft: the result is the same, in fewer passes.
    """

    def __init__(self, engine: Engine, transform: PolicyTransform, mode: str = 'full',
                 max_thought_tokens: int = 48, max_think_seconds: float = math.inf,
                 seed: int = 0, random_words: int = 16, keep: int = 4, draft: bool = True):
        if mode not in MODES:
            raise UserError(f'thought mode {mode!r} is none of {", ".join(MODES)}')
        for name, value in (('max_thought_tokens', max_thought_tokens), ('keep', keep)):
            if value < 1:
                raise UserError(f'{name} must be at least 1, got {value}')
        if not max_think_seconds > 0:
            raise UserError(f'max_think_seconds must be positive, got {max_think_seconds}')
        self.engine = engine
        self.transform = transform
        self.mode = mode
        self.max_thought_tokens = max_thought_tokens
        self.max_think_seconds = max_think_seconds
        self._random_words = random_words
        self._keep = keep
        self._drafts = draft
        self._rng = np.random.default_rng(seed)
        self._last: list[int] = []  # the thought written last, without <think>
        self._age = 0  # decisions since then
        self._memory: list[list[int]] = []
        ids, vocabulary = transform.config.ids, transform.config.text.vocabulary
        banned = banned_in_thought(ids, vocabulary)
        ordinary = ~banned
        ordinary[[ids.think_end, ids.newline]] = False
        if (unknown := transform.tokenizer.token_to_id(UNKNOWN)) is not None:
            banned[unknown] = True
            ordinary[unknown] = False
        ordinary[transform.tokenizer.get_vocab_size():] = False
        self._ordinary = np.flatnonzero(ordinary)
        engine.forbid(banned)

    def infer(self, observation: Observation,
               on_token: Callable[[str], None] | None = None) -> Decision:
        """Return the decision for one observation.

        ``on_token`` gets the thought's text so far after every word. A thought that hits a cap
        is closed and acted on, and the outcome says ``'cut'``: whether such a chunk may move an
        arm is the caller's choice. Raises ``FloatingPointError`` if the network's output is not
        finite.
        """
        ids = self.transform.config.ids
        clock = _Clock()
        prompt = self.transform.prompt_ids(observation.instruction, observation)
        pixels = self.transform.pixels(observation.images)
        clock.lap('prepare')
        features = self.engine.see(pixels)
        clock.lap('see')
        outcome, drafting = 'complete', Drafting()
        if self._writes():
            words, cache, drafting = self._write(prompt, features, on_token, clock)
            pending = words[-1:]
            if words[-1] != ids.think_end:
                outcome = 'cut'
                words.append(ids.think_end)
                pending = words[-2:]
            if self.mode == 'swapped':
                cache = self.engine.rewind(cache, len(words) - len(pending) + 1)
                words = self._another(words)
                pending = [ids.think, *words]
        else:
            _, cache = self.engine.prefill(prompt, features)
            clock.lap('prefill')
            words = self._given()
            pending = [ids.think, *words]
            if on_token:
                on_token(self.transform.decode_thought(words))
        scores = self.engine.act(cache, [*pending, ids.action])  # [T*D, bins]
        if not np.isfinite(scores).all():
            raise FloatingPointError('action logits are not finite; the weights or the images '
                                     'are damaged')
        tokens = scores.argmax(-1).astype(np.int64) + ids.bins_first
        clock.lap('act')
        self._age += 1
        return Decision(
            reasoning=self.transform.decode_thought(words), outcome=outcome,
            chunk=self.transform.decode_actions(tokens), thought_tokens=(ids.think, *words),
            action_tokens=tokens, timings=clock.laps, drafting=drafting)

    def _writes(self) -> bool:
        if self.mode == 'frozen':
            return not self._last or self._age >= self._keep
        return self.mode in ('full', 'swapped')

    def _write(self, prompt: Sequence[int], features: Any,
               on_token: Callable[[str], None] | None,
               clock: _Clock) -> tuple[list[int], Any, Drafting]:
        """Write a thought: its tokens, the cache without the last of them, and the drafting."""
        ids = self.transform.config.ids
        deadline = math.inf

        def done(tokens: list[int]) -> bool:
            nonlocal deadline
            if len(tokens) == 1:
                clock.lap('prefill')
                deadline = time.perf_counter() + self.max_think_seconds
            if on_token:
                on_token(self.transform.decode_thought(tokens))
            return (tokens[-1] == ids.think_end or len(tokens) >= self.max_thought_tokens
                    or time.perf_counter() > deadline)

        draft = self._last if self._drafts else []
        words, cache, drafting = write_thought(
            self.engine, prompt, features, [ids.think], draft, done)
        clock.lap('think')
        self._last, self._age = list(words), 0
        return words, cache, drafting

    def _given(self) -> list[int]:
        ids = self.transform.config.ids
        if self.mode == 'frozen':
            return [*(w for w in self._last if w != ids.think_end), ids.think_end]
        words = [] if self.mode == 'masked' else self._rng.choice(
            self._ordinary, self._random_words).tolist()
        return [*words, ids.think_end]

    def _another(self, words: list[int]) -> list[int]:
        """Return a thought written for another frame, and remember this frame's."""
        others = [thought for thought in self._memory if thought != words]
        self._memory = [*self._memory[1 - _MEMORY:], words]
        if not others:
            return [self.transform.config.ids.think_end]
        return others[int(self._rng.integers(len(others)))]


def act_on(
    engine: Engine, transform: PolicyTransform, observation: Observation, thought: Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the action ids [T*D] and the chunk [T, D] for a thought given as ids with tags."""
    ids = transform.config.ids
    prompt = transform.prompt_ids(observation.instruction, observation)
    _, cache = engine.prefill(prompt, engine.see(transform.pixels(observation.images)))
    scores = engine.act(cache, [*thought, ids.action])  # [T*D, bins]
    tokens = scores.argmax(-1).astype(np.int64) + ids.bins_first
    return tokens, transform.decode_actions(tokens)


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
