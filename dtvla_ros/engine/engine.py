"""The seam between a decision and whatever runs the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.policy.config import DecoderConfig

# Where the thought that is acted on comes from; see ``Policy``.
MODES = ('full', 'masked', 'random', 'swapped', 'frozen')


@dataclass(frozen=True, slots=True)
class Drafting:
    """What became of the draft of a thought.

    ``proposed`` and ``accepted`` count draft tokens put to the network and found right;
    ``passes`` counts the decoder's passes from the prefill to the last thought token.
    """

    proposed: int = 0
    accepted: int = 0
    passes: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """One thought and the chunk that follows from it.

    ``reasoning``: text between the think tags. ``outcome``: ``'complete'`` or ``'cut'`` (token
    or time cap hit before ``</think>``). ``chunk`` [T, D]: actions in the robot's units.
    ``action_tokens`` [T*D] ids, ``thought_tokens`` ids with tags. ``timings`` [s] by phase
    (prepare, see, prefill, think, act).
    """

    reasoning: str
    outcome: str
    chunk: NDArray[np.float32]
    thought_tokens: tuple[int, ...]
    action_tokens: NDArray[np.int64]
    timings: Mapping[str, float] = field(default_factory=dict)
    drafting: Drafting = Drafting()


class Engine(Protocol):
    """Runs the phases of the hybrid decoder for one observation (batch 1).

    A *cache* stands for the rows computed so far. An engine has room for one sequence: a new
    ``prefill`` ends all earlier caches, and going on from a cache ends those that went on from
    it before. A cache itself may be continued any number of times, one after the other.
    """

    name: str
    config: DecoderConfig

    def forbid(self, banned: NDArray[np.bool_]) -> None:
        """Never choose the ids marked in ``banned`` [V] from now on."""

    def see(self, pixel_values: NDArray[np.float32]) -> Any:
        """[C, 3, H, W] in -1..1 -> image features, kept where the engine runs."""

    def prefill(self, prompt_ids: Sequence[int], features: Any,
                thought: Sequence[int] = ()) -> tuple[NDArray[np.int64], Any]:
        """Run the bidirectional prompt and, causally, the thought begun so far.

        Returns the likeliest permitted id after the prompt and after each thought token
        [1 + len(thought)], and the cache.
        """

    def think(self, cache: Any, tokens: Sequence[int]) -> tuple[NDArray[np.int64], Any]:
        """Append thought tokens causally; return the id after each [len(tokens)] and the cache."""

    def write(self, cache: Any, tokens: list[int], done: Callable[[list[int]], bool]) -> Any:
        """Write at least one more of ``tokens``, the last of which has not been run.

        They grow in place, one likeliest permitted id at a time, until ``done(tokens)``, asked
        after each. Returns the cache, which holds all but the last token.
        """

    def rewind(self, cache: Any, count: int) -> Any:
        """Return the cache without its last ``count`` rows."""

    def act(self, cache: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run the thought's last tokens, ``<action>`` the very last, the slots and the tail.

        Returns logits [T*D, bins] over the action ids.
        """

    def logits(self, prompt_ids: Sequence[int], features: Any,
               thought: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits [1 + len(thought), V] that ``prefill`` chooses from; ends all caches.

        For comparing engines: nothing is forbidden here.
        """


def write_by_thinking(engine: Engine, cache: Any, tokens: list[int],
                      done: Callable[[list[int]], bool]) -> Any:
    """``Engine.write`` by one ``think`` for each token."""
    while True:
        chosen, cache = engine.think(cache, tokens[-1:])
        tokens.append(int(chosen[0]))
        if done(tokens):
            return cache
