"""One decision: see, think, act, with the prefix computed once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.engine.engine import Decision, Engine
from dtvla_ros.errors import UserError
from dtvla_ros.policy.config import SpecialIds
from dtvla_ros.policy.observation import Observation
from dtvla_ros.policy.transform import PolicyTransform
from dtvla_ros.policy.vocabulary import UNKNOWN

MODES = ('full', 'masked', 'random')


def banned_in_thought(ids: SpecialIds, vocabulary: int) -> NDArray[np.bool_]:
    """Return [V], true for ids a thought may not hold: actions, pads, images, tags, eos."""
    banned = np.zeros(vocabulary, bool)
    banned[ids.bins_first:ids.bins_last + 1] = True
    banned[[ids.pad, ids.eos, ids.bos, ids.image, ids.think, ids.action, ids.action_end]] = True
    return banned


def write_greedily(engine: Engine, logits: NDArray[np.float32], cache: Any, *,
                   banned: NDArray[np.bool_], stop: Sequence[int], limit: int,
                   deadline: float = math.inf,
                   on_token: Callable[[list[int]], None] | None = None,
                   ) -> tuple[list[int], Any]:
    """Write tokens until they end in ``stop``, ``limit`` is reached or the clock passes.

    ``logits`` [V] predict the first token; ``deadline`` is a ``time.perf_counter`` reading.
    The last token written is not in the returned cache: the action pass takes it along.
    """
    tail = list(stop)
    tokens: list[int] = []
    while True:
        tokens.append(int(np.where(banned, -np.inf, logits).argmax()))
        if on_token:
            on_token(tokens)
        if tokens[-len(tail):] == tail or len(tokens) >= limit or time.perf_counter() > deadline:
            return tokens, cache
        rows, cache = engine.think(cache, tokens[-1:])
        logits = rows[-1]


class ThinkAct:
    """A policy: an observation in, a thought and a chunk of actions out.

    ``mode`` 'full' writes its own thought, 'masked' gets an empty one, 'random' gets
    ``random_words`` words drawn at random: both tell how much the actions need the thought.
    """

    def __init__(self, engine: Engine, transform: PolicyTransform, mode: str = 'full',
                 max_thought_tokens: int = 48, max_think_seconds: float = math.inf,
                 seed: int = 0, random_words: int = 16):
        if mode not in MODES:
            raise UserError(f'thought mode {mode!r} is none of {", ".join(MODES)}')
        if max_thought_tokens < 1:
            raise UserError(f'max_thought_tokens must be at least 1, got {max_thought_tokens}')
        if not max_think_seconds > 0:
            raise UserError(f'max_think_seconds must be positive, got {max_think_seconds}')
        self.engine = engine
        self.transform = transform
        self.mode = mode
        self.max_thought_tokens = max_thought_tokens
        self.max_think_seconds = max_think_seconds
        self._random_words = random_words
        self._rng = np.random.default_rng(seed)
        ids, vocabulary = transform.config.ids, transform.config.text.vocabulary
        self._banned = banned_in_thought(ids, vocabulary)
        ordinary = ~self._banned
        ordinary[[ids.think_end, ids.newline]] = False
        if (unknown := transform.tokenizer.token_to_id(UNKNOWN)) is not None:
            self._banned[unknown] = True
            ordinary[unknown] = False
        ordinary[transform.tokenizer.get_vocab_size():] = False
        self._ordinary = np.flatnonzero(ordinary)

    def decide(self, observation: Observation,
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
        outcome = 'complete'
        if self.mode == 'full':
            logits, cache = self.engine.prefill(prompt, features, [ids.think])
            clock.lap('prefill')

            def tell(tokens: list[int]) -> None:
                if on_token:
                    on_token(self.transform.decode_thought(tokens))

            words, cache = write_greedily(
                self.engine, logits[-1], cache, banned=self._banned, stop=[ids.think_end],
                limit=self.max_thought_tokens, on_token=tell,
                deadline=time.perf_counter() + self.max_think_seconds)
            clock.lap('think')
            pending = words[-1:]
            if words[-1] != ids.think_end:
                outcome = 'cut'
                words.append(ids.think_end)
                pending = words[-2:]
            thought = [ids.think, *words]
        else:
            _, cache = self.engine.prefill(prompt, features)
            clock.lap('prefill')
            words = [] if self.mode == 'masked' else self._rng.choice(
                self._ordinary, self._random_words).tolist()
            thought = pending = [ids.think, *words, ids.think_end]
            if on_token:
                on_token(self.transform.decode_thought(thought))
        scores = self.engine.act(cache, [*pending, ids.action])  # [T*D, bins]
        if not np.isfinite(scores).all():
            raise FloatingPointError('action logits are not finite; the weights or the images '
                                     'are damaged')
        tokens = scores.argmax(-1).astype(np.int64) + ids.bins_first
        clock.lap('act')
        return Decision(
            reasoning=self.transform.decode_thought(thought), outcome=outcome,
            chunk=self.transform.decode_actions(tokens), thought_tokens=tuple(thought),
            action_tokens=tokens, timings=clock.laps)


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
