"""The engine protocol, and the types of a decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import OutOfMemory
from dtvla_ros.policy.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class SpeculativeStats:
    """Statistics of one thought's speculative decoding.

    ``proposed`` and ``accepted`` count draft tokens put to the network and found right;
    ``passes`` counts the decoder's passes from the prefill to the last thought token.
    """

    proposed: int = 0
    accepted: int = 0
    passes: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """One thought and the chunk that follows from it.

    ``reasoning``: text between the think tags. ``outcome``: ``'complete'`` or ``'truncated'``
    (a cap was hit before ``</think>``). ``chunk`` [T, D]: actions in the robot's units.
    ``action_tokens`` [T*D] ids, ``thought_tokens`` ids with tags. ``timings`` [s] by phase
    (prepare, see, prefill, think, act). ``forced``: fields of the thought that a correction gave,
    ``decoded``: those with words that were neither given nor in the draft.
    ``thought_log_probs``: natural logarithms of the probabilities with which the policy chose
    ``thought_tokens``, not a number where it did not choose; () where it wrote no thought or the
    engine does not tell. ``action_log_probs`` [T*D]: those of ``action_tokens``. ``certainty``:
    features of both (`policy.confidence`); ``confidence``: the probability of success that a
    calibrated policy makes of them, else None.
    """

    reasoning: str
    outcome: str
    chunk: NDArray[np.float32]
    thought_tokens: tuple[int, ...]
    action_tokens: NDArray[np.int64]
    timings: Mapping[str, float] = field(default_factory=dict)
    drafting: SpeculativeStats = SpeculativeStats()
    forced: Mapping[str, Any] = field(default_factory=dict)
    decoded: tuple[str, ...] = ()
    thought_log_probs: tuple[float, ...] = ()
    action_log_probs: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    certainty: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None


class Choices(NamedTuple):
    """The likeliest permitted ids after some rows, int64 [r].

    ``log_probs`` float32 [r]: their log softmax over the permitted ids, not a number from graphs
    that were exported before they told it.
    """

    ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prefix:
    """The part of the engine's cache in use: rows computed, and where the prompt ended."""

    count: int
    prompt_end: int


class Engine(Protocol):
    """Runs the phases of the hybrid decoder for one observation (batch 1).

    One sequence slot: ``prefill`` invalidates every earlier ``Prefix``, and extending one
    invalidates its other extensions. A prefix may be extended any number of times, one after the
    other. Phases raise ``OutOfMemory`` where the memory of their device is used up.
    """

    name: str
    where: str  # provider or device, and the type it calculates in
    config: DecoderConfig
    ready: str = ''  # what getting ready took in time and memory, if it took any
    tells_log_probs: bool = True  # of the ids it chooses

    def suppress_tokens(self, banned: NDArray[np.bool_],
                        margins: Mapping[int, float] | None = None) -> None:
        """Never choose the ids marked in ``banned`` [V] from now on.

        An id in ``margins`` is chosen only where its logit leads all others by more than that.
        """

    def encode_images(self, pixel_values: NDArray[np.float32]) -> Any:
        """[C, 3, H, W] in -1..1 -> image features, kept where the engine runs."""

    def prefill(self, prompt_ids: Sequence[int], features: Any,
                thought: Sequence[int] = ()) -> tuple[Choices, Prefix]:
        """Run the bidirectional prompt and, causally, the thought begun so far.

        Returns the choices after the prompt and after each thought token [1 + len(thought)], and
        the prefix they make.
        """

    def verify(self, cache: Prefix, tokens: Sequence[int]) -> tuple[Choices, Prefix]:
        """Append thought tokens causally; return the choices [len(tokens)] and the prefix."""

    def generate(self, cache: Prefix, tokens: list[int],
                 done: Callable[[list[int]], bool]) -> tuple[list[float], Prefix]:
        """Append at least one more to ``tokens``, the last of which has not been run.

        They grow in place, one likeliest permitted id at a time, until ``done(tokens)``, asked
        after each. Returns the log probabilities of those appended, and the prefix, which holds
        all but the last token.
        """
        log_probs: list[float] = []
        while True:
            chosen, cache = self.verify(cache, tokens[-1:])
            tokens.append(int(chosen.ids[0]))
            log_probs.append(float(chosen.log_probs[0]))
            if done(tokens):
                return log_probs, cache

    def crop(self, cache: Prefix, count: int) -> Prefix:
        """Return the prefix without its last ``count`` rows."""
        return Prefix(cache.count - count, cache.prompt_end)

    def decode_actions(self, cache: Prefix, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run the thought's last tokens, ``<action>`` the very last, the slots and the tail.

        Returns logits [T*D, bins] over the action ids.
        """

    def logits(self, prompt_ids: Sequence[int], features: Any,
               thought: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits [1 + len(thought), V] that ``prefill`` chooses from.

        For comparing engines: nothing is suppressed here, and every prefix is invalidated.
        """


def penalty(config: DecoderConfig, banned: NDArray[np.bool_],
            margins: Mapping[int, float] | None = None) -> NDArray[np.float32]:
    """Return what is added to the scores of ids that are no bins [V - bins].

    That is -inf for what is banned, minus its margin for what has one, else 0.
    """
    added = np.where(banned, np.float32('-inf'), np.float32(0))  # [V]
    for token, margin in (margins or {}).items():
        added[token] -= margin
    return np.delete(added, slice(config.ids.bins_first, config.ids.bins_last + 1))


@contextmanager
def memory_guard() -> Iterator[None]:
    """Raise a runtime's own error for used-up memory as ``OutOfMemory``.

    torch has a class for that on a GPU only; on the CPU it raises RuntimeError, ONNX Runtime its
    RuntimeException, both with a sentence of the allocator.
    """
    try:
        yield
    except Exception as error:
        said = str(error).lower()
        if isinstance(error, MemoryError) or any(sign in said for sign in (
                'out of memory', 'bad_alloc', 'failed to allocate', "can't allocate memory",
                'not enough memory')):
            raise OutOfMemory(str(error)) from error
        raise
