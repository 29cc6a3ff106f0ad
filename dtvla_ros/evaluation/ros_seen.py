"""What the demonstration has seen of the running graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Seen:
    """What has been seen so far. ``episodes``: one row per finished episode."""

    thought: str = ''
    writing: bool = False
    thoughts: int = 0
    commands: int = 0
    vla_state: str = 'starting'
    gate_state: str = 'starting'
    gate_reason: str = ''
    episode: dict[str, Any] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    latency: dict[str, list[float]] = field(default_factory=dict)
