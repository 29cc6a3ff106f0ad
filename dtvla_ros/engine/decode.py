"""Last cycle's thought as this cycle's draft: verified in one pass, re-aligned where it differs.

Every word kept is the one greedy decoding would have chosen, so the result is greedy decoding;
only the number of passes changes (speculative decoding, Leviathan et al. 2023, with the previous
output in place of a draft model, and temperature 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dtvla_ros.engine.engine import Engine, SpeculativeStats

Done = Callable[[list[int]], bool]
_CONTEXT = 8  # longest common ending that is compared


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

    ends = range(min(here, len(draft)), 0, -1), range(here + 1, len(draft) + 1)
    places = sorted((end for part in ends for end in part), key=lambda end: abs(end - here))
    best = max(places, key=common, default=0)
    return draft[best if best and common(best) else here:]


def agreement(proposed: Sequence[int], chosen: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    for k, (a, b) in enumerate(zip(proposed, chosen, strict=False)):
        if a != b:
            return k
    return min(len(proposed), len(chosen))


def write_thought(engine: Engine, prompt: Sequence[int], features: Any, begun: Sequence[int],
                  draft: Sequence[int], done: Done) -> tuple[list[int], Any, SpeculativeStats]:
    """Write a thought after ``prompt`` and the tokens ``begun``, until ``done(tokens)``.

    ``draft``: any tokens that the thought might consist of, or none. ``done`` is asked after
    every token. Returns the tokens, the cache, which holds all of them but the last, and what
    became of the draft.
    """
    # The last draft token need not be run: nobody asks here what follows it.
    proposal, run = list(draft), list(draft[:-1])
    chosen, cache = engine.prefill(prompt, features, [*begun, *run])
    answers = chosen[len(begun):].tolist()
    tokens: list[int] = []
    proposed, accepted, passes = 0, 0, 1
    ended = False

    def settled(written: list[int]) -> bool:
        nonlocal ended
        ended = done(written)
        return ended

    while True:
        right = agreement(proposal, answers)
        taken = 0
        for token in answers[:right + 1]:
            tokens.append(token)
            taken += 1
            if settled(tokens):
                break
        proposed, accepted = proposed + len(proposal), accepted + min(right, taken)
        cache = engine.crop(cache, len(run) + 1 - taken)
        if ended:
            return tokens, cache, SpeculativeStats(proposed, accepted, passes)
        # Twice as much as was right last time, so that a wrong guess costs little.
        proposal = run = list(continuation(draft, tokens))[:2 * right + 4]
        if not proposal:
            before = len(tokens)
            cache = engine.generate(cache, tokens, lambda written: (
                settled(written) or bool(continuation(draft, written))))
            passes += len(tokens) - before
            if ended:
                return tokens, cache, SpeculativeStats(proposed, accepted, passes)
            proposal = run = list(continuation(draft, tokens))[:4]
        chosen, cache = engine.verify(cache, [tokens[-1], *run])
        answers = chosen.tolist()
        passes += 1
