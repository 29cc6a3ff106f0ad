"""The seam between a decision and whatever runs the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


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

    def see(self, pixel_values: NDArray[np.float32]) -> Any:
        """[C, 3, H, W] in -1..1 -> image features [C * tokens, width]."""

    def prefill(self, prompt_ids: Sequence[int], features: Any) -> Any:
        """Run the bidirectional prompt (image ids included); return the cache."""

    def think(self, cache: Any, token: int) -> tuple[NDArray[np.float32], Any]:
        """Append one thought token causally; return its next-token logits [V] and the cache."""

    def act(self, cache: Any, token: int) -> NDArray[np.float32]:
        """Run ``<action>``, the zero slots and the tail once; return logits [T*D, bins]."""
