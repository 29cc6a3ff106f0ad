"""The seam between a decision and whatever runs the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.policy.config import DecoderConfig


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


class Engine(Protocol):
    """Runs the three phases of the hybrid decoder for one observation (batch 1).

    A *cache* is whatever the engine keeps of the rows computed so far; engines never mutate a
    cache handed to them in a way that invalidates it for the caller.
    """

    name: str
    config: DecoderConfig

    def see(self, pixel_values: NDArray[np.float32]) -> Any:
        """[C, 3, H, W] in -1..1 -> image features, kept where the engine runs."""

    def prefill(self, prompt_ids: Sequence[int], features: Any,
                thought: Sequence[int] = ()) -> tuple[NDArray[np.float32], Any]:
        """Run the bidirectional prompt and, causally, the thought begun so far.

        Returns next-token logits [1 + len(thought), V], the first row after the prompt alone,
        and the cache.
        """

    def think(self, cache: Any, tokens: Sequence[int]) -> tuple[NDArray[np.float32], Any]:
        """Append thought tokens causally; return logits [len(tokens), V] and the cache."""

    def act(self, cache: Any, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run the thought's last tokens, ``<action>`` the very last, the slots and the tail.

        Returns logits [T*D, bins] over the action ids.
        """
