"""``Policy.infer``: prompt-lookup (speculative) decoding with the previous thought as draft.

Every token kept is the one greedy decoding would have chosen; only the number of passes changes
(Leviathan et al. 2023, with the previous output in place of a draft model, and temperature 0).
Where a correction gives the next token that one is taken instead, and the rest is decoded behind
it, with the draft or without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.conventions import MODES
from dtvla_ros.correction import Correction
from dtvla_ros.engine.engine import Decision, Engine, Prefix, SpeculativeStats
from dtvla_ros.errors import UserError
from dtvla_ros.policy import confidence
from dtvla_ros.policy.confidence import Calibration
from dtvla_ros.policy.config import SpecialIds
from dtvla_ros.policy.transform import Observation, PolicyTransform
from dtvla_ros.policy.vocabulary import UNKNOWN
from dtvla_ros.thought import FINISHED

Done = Callable[[list[int]], bool]
Forced = Callable[[list[int]], int | None]  # what must follow tokens written, None: anything
NOT_FINITE = 'action logits are not finite; the weights or the images are damaged'
_CONTEXT = 8  # longest common ending that is compared


def banned_in_thought(ids: SpecialIds, vocabulary: int) -> NDArray[np.bool_]:
    """Return [V], true for ids a thought may not hold: actions, pads, images, tags, eos."""
    banned = np.zeros(vocabulary, bool)
    banned[ids.bins_first:ids.bins_last + 1] = True
    banned[[ids.pad, ids.eos, ids.bos, ids.image, ids.think, ids.action, ids.action_end]] = True
    return banned


def suppressed_in_thought(transform: PolicyTransform) -> NDArray[np.bool_]:
    """Return [V], true for ids a policy never writes: ``banned_in_thought``, unknown words."""
    banned = banned_in_thought(transform.config.ids, transform.config.text.vocabulary)
    if (unknown := transform.tokenizer.token_to_id(UNKNOWN)) is not None:
        banned[unknown] = True
    return banned


class Policy:
    """A policy: an observation in, a thought and a chunk of actions out.

    ``mode`` 'full' thinks, 'masked' acts on an empty thought. The last thought is the next one's
    draft (``draft``): the result is the same, in fewer passes. ``calibration``: what makes a
    confidence of the certainty of a decision that thinks, of its first ``executed`` actions (None:
    all). ``done_margin`` as of the manifest.
    """

    def __init__(self, engine: Engine, transform: PolicyTransform, mode: str = 'full',
                 max_thought_tokens: int = 48, max_think_seconds: float = math.inf,
                 draft: bool = True, calibration: Calibration | None = None,
                 executed: int | None = None, done_margin: float = 0.0):
        if mode not in MODES:
            raise UserError(f'thought mode {mode!r} is none of {", ".join(MODES)}')
        if max_thought_tokens < 1:
            raise UserError(f'max_thought_tokens must be at least 1, got {max_thought_tokens}')
        if not max_think_seconds > 0:
            raise UserError(f'max_think_seconds must be positive, got {max_think_seconds}')
        self.engine, self.transform, self.mode = engine, transform, mode
        self.max_thought_tokens, self.max_think_seconds = max_thought_tokens, max_think_seconds
        self._draft, self.calibration, self._executed = draft, calibration, executed
        self._fields = confidence.field_reader(transform.decode_thought)
        self._last: list[int] = []  # the last thought, without <think>
        engine.suppress_tokens(suppressed_in_thought(transform), {
            transform.next_token('now', f' {FINISHED}'): done_margin} if done_margin else None)

    def reset(self) -> None:
        """Forget the last thought, which is only a draft."""
        self._last = []

    def infer(self, observation: Observation, on_text: Callable[[str], None] | None = None,
              correction: Correction | None = None) -> Decision:
        """Return the decision for one observation.

        ``on_text`` gets the thought's text so far after every token. ``correction`` gives words
        of the thought, around which it is written, and the prompt asks for its thing (as of
        `Correction.asked`); an empty one has none. A thought that hits a
        cap is closed and acted on, and the outcome says ``'truncated'``: whether such a chunk
        may move an arm is the caller's choice. Raises ``FloatingPointError`` if the network's
        output is not finite, ``OutOfMemory`` if memory is used up.
        """
        ids = self.transform.config.ids
        if self.mode == 'masked':
            if on_text:
                on_text('')
            return act_on(self.engine, self.transform, observation, [ids.think, ids.think_end])
        clock, deadline = _Clock(), math.inf
        if correction is not None:
            observation = replace(observation, instruction=correction.asked(
                observation.instruction, self.transform.decode_thought(self._last)))
        prompt, features = encode(self.engine, self.transform, observation, clock.lap)

        def done(tokens: list[int]) -> bool:
            nonlocal deadline
            if len(tokens) == 1:
                clock.lap('prefill')
                deadline = time.perf_counter() + self.max_think_seconds
            if on_text:
                on_text(self.transform.decode_thought(tokens))
            return (tokens[-1] == ids.think_end or len(tokens) >= self.max_thought_tokens
                    or time.perf_counter() > deadline)

        tokens, log_probs, cache, stats, new = write_thought(
            self.engine, prompt, features, [ids.think], self._last if self._draft else [], done,
            self._forced(correction))
        clock.lap('think')
        self._last = tokens
        outcome = 'complete' if tokens[-1] == ids.think_end else 'truncated'
        closing = [] if outcome == 'complete' else [ids.think_end]
        decision = _act(self.engine, self.transform, cache, [*tokens[-1:], *closing],
                        [ids.think, *tokens, *closing], clock, outcome, stats)
        told = ((math.nan, *log_probs, *[math.nan] * len(closing))
                if self.engine.tells_log_probs else ())
        fields = self.fields(decision.thought_tokens)
        certainty = confidence.certainty(
            fields, told,
            decision.action_log_probs.reshape(decision.chunk.shape)[:self._executed])
        return replace(
            decision, thought_log_probs=told, certainty=certainty,
            confidence=self.calibration.confidence(certainty) if self.calibration else None,
            decoded=tuple(dict.fromkeys(filter(None, (fields[k + 1] for k in new)))),
            forced=correction.applied(decision.reasoning) if correction else {})

    @property
    def tells_confidence(self) -> bool:
        """Whether every decision that thinks has a confidence."""
        known = confidence.FEATURES if self.engine.tells_log_probs else confidence.OF_ACTIONS
        return (self.mode == 'full' and self.calibration is not None
                and self.calibration.weights.keys() <= set(known))

    def fields(self, thought: Sequence[int]) -> list[str]:
        """Return of which field of the thought each of its tokens is, '' where of none."""
        return self._fields(thought)

    def _forced(self, correction: Correction | None) -> Forced:
        """Return what gives the token that a correction, if any, puts behind those written."""
        transform, think_end = self.transform, self.transform.config.ids.think_end

        def forced(tokens: list[int]) -> int | None:
            if correction is None or tokens[-1:] == [think_end]:
                return None
            text = transform.decode_thought(tokens)
            if more := correction.follows(text):
                return transform.next_token(text, more)
            return think_end if correction.ends(text) else None

        return forced


class Written(NamedTuple):
    """A thought's tokens, the cache, which holds all of them but the last, and the draft's fate.

    ``log_probs``: of the tokens, not a number where they were forced or the engine does not tell.
    ``new``: places of the tokens that were neither forced nor in the draft.
    """

    tokens: list[int]
    log_probs: list[float]
    cache: Prefix
    drafting: SpeculativeStats
    new: list[int]


def write_thought(engine: Engine, prompt: Sequence[int], features: Any, begun: Sequence[int],
                  draft: Sequence[int], done: Done, forced: Forced = lambda _: None,
                  ) -> Written:
    """Write a thought after ``prompt`` and the tokens ``begun``, until ``done(tokens)``.

    ``draft``: any tokens that the thought might consist of, or none. ``done`` is asked after
    every token, ``forced`` before every one. What was forced ahead counts as no draft.
    """
    def ahead(written: Sequence[int]) -> list[int]:
        given: list[int] = []
        while (token := forced([*written, *given])) is not None:
            given.append(token)
        return given

    # The last draft token need not be run: nobody asks here what follows it.
    sure = ahead([])
    proposal = [*sure, *continuation(draft, sure)]
    run = proposal[:-1]
    chosen, cache = engine.prefill(prompt, features, [*begun, *run])
    answers = [part[len(begun):].tolist() for part in chosen]  # ids, log probabilities
    tokens: list[int] = []
    log_probs: list[float] = []
    new: list[int] = []
    proposed, accepted, passes, ended = 0, 0, 1, False

    def settled(written: list[int]) -> bool:
        nonlocal ended
        ended = done(written)
        return ended

    while True:
        right = 0
        for k, (answer, log_prob) in enumerate(zip(*answers)):
            given = forced(tokens)
            tokens.append(answer if given is None else given)
            log_probs.append(log_prob if given is None else math.nan)
            kept = proposal[k:k + 1] == tokens[-1:]
            if given is None and not kept:
                new.append(len(tokens) - 1)
            right += kept
            if settled(tokens) or not kept:
                break
        proposed += len(proposal) - len(sure)
        accepted += max(0, right - len(sure))
        cache = engine.crop(cache, len(run) - k)
        # Twice as much as was right last time, so that a wrong guess costs little.
        sure = [] if ended else ahead(tokens)
        proposal = run = [*sure, *continuation(draft, [*tokens, *sure])[:2 * right + 4]]
        if not (ended or proposal):
            before = len(tokens)
            more, cache = engine.generate(cache, tokens, lambda written: (
                settled(written) or forced(written) is not None
                or bool(continuation(draft, written))))
            log_probs += more
            new += range(before, len(tokens))
            passes += len(tokens) - before
            sure = [] if ended else ahead(tokens)
            proposal = run = [*sure, *continuation(draft, [*tokens, *sure])[:4]]
        if ended:
            return Written(tokens, log_probs, cache,
                           SpeculativeStats(proposed, accepted, passes), new)
        chosen, cache = engine.verify(cache, [tokens[-1], *run])
        answers = [part.tolist() for part in chosen]
        passes += 1


def continuation(draft: Sequence[int], written: Sequence[int]) -> Sequence[int]:
    """Return what follows in ``draft`` at the place that ``written`` has reached.

    That is after the longest ending the two have in common, of several the one nearest to the
    number of words written; with nothing in common the last word is taken for a substitution.
    """
    here = len(written)

    def common(end: int) -> int:
        limit = min(end, here, _CONTEXT)
        for k in range(limit):
            if draft[end - 1 - k] != written[here - 1 - k]:
                return k
        return limit

    places = sorted(range(1, len(draft) + 1), key=lambda end: abs(end - here))
    best = max(places, key=common, default=0)
    return draft[best if best and common(best) else here:]


def act_on(engine: Engine, transform: PolicyTransform, observation: Observation,
           thought: Sequence[int]) -> Decision:
    """Return the decision for a thought given as ids with tags; nothing is written."""
    clock = _Clock()
    prompt, features = encode(engine, transform, observation, clock.lap)
    _, cache = engine.prefill(prompt, features)
    clock.lap('prefill')
    return _act(engine, transform, cache, thought, thought, clock)


def encode(engine: Engine, transform: PolicyTransform, observation: Observation,
           lap: Callable[[str], object] = lambda _: None) -> tuple[list[int], Any]:
    """Return an observation's prompt ids and image features; ``lap`` is told each phase."""
    prompt = transform.prompt_ids(observation.instruction, observation)
    pixels = transform.pixels(observation.images)
    lap('prepare')
    features = engine.encode_images(pixels)
    lap('see')
    return prompt, features


def _act(engine: Engine, transform: PolicyTransform, cache: Prefix, pending: Sequence[int],
         thought: Sequence[int], clock: _Clock, outcome: str = 'complete',
         stats: SpeculativeStats = SpeculativeStats()) -> Decision:
    """Decode the actions of ``thought``, whose ``pending`` last ids are not yet in the cache."""
    ids = transform.config.ids
    scores = engine.decode_actions(cache, [*pending, ids.action])  # [T*D, bins]
    if not np.isfinite(scores).all():
        raise FloatingPointError(NOT_FINITE)
    tokens = scores.argmax(-1).astype(np.int64) + ids.bins_first
    log_probs = -np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1))
    clock.lap('act')
    return Decision(
        reasoning=transform.decode_thought(thought), outcome=outcome,
        chunk=transform.decode_actions(tokens), thought_tokens=tuple(thought),
        action_tokens=tokens, timings=clock.laps, drafting=stats, action_log_probs=log_probs)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}  # seconds by phase
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
