"""What is seen of a graph: plain data, which `look` fills and `checks` judges."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from dtvla_ros.ros.frames import FrameTree

T = TypeVar('T')


@dataclass(frozen=True, slots=True)
class End:
    """A publisher or subscription: its node's full name, type 'pkg/msg/Type', QoSProfile."""

    node: str
    kind: str
    qos: Any = None


@dataclass(slots=True)
class Stream:
    """What came on one topic.

    ``arrivals``: steady time [s]; ``stamps``: of the headers [s]; ``latencies``: the clock of the
    nodes minus the stamp, at each arrival [s]. ``last``: the last message, of an image its bytes.
    """

    name: str
    publishers: list[End] = field(default_factory=list)
    subscribers: list[End] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    last: Any = None

    @property
    def rate(self) -> float:
        """Messages per second [Hz]; 0 where fewer than two came."""
        if len(self.arrivals) < 2 or self.arrivals[-1] == self.arrivals[0]:
            return 0.0
        return (len(self.arrivals) - 1) / (self.arrivals[-1] - self.arrivals[0])

    @property
    def latency(self) -> float:
        """Median of the latencies [s], 0 without one."""
        return statistics.median(self.latencies) if self.latencies else 0.0


@dataclass(slots=True)
class NodeView:
    """One of our nodes, as it runs or as a configuration would start it.

    ``topics``: full names by the names that `ros.bringup` has, and 'command', 'state', 'gripper',
    'gripper_action'.
    """

    name: str
    running: bool
    parameters: Mapping[str, Any]
    topics: dict[str, str] = field(default_factory=dict)

    def settings(self, kind: type[T]) -> T:
        """Return a dataclass of parameters as they are here, of those not known the defaults."""
        names: Any = kind
        return kind(**{entry.name: self.parameters[entry.name] for entry in fields(names)
                       if entry.name in self.parameters})


@dataclass(slots=True)
class Seen:
    """All that is judged.

    ``source``: where ``policy`` and ``gate`` are known from. ``ours``: full names of the running
    nodes of this package, by their kind. ``status``: state and values that policy and gate told
    last. ``clocks``: time on /clock by steady arrival [s]. ``joints``: positions by name;
    ``complete``: whether the policy's reader got all it wants. ``controllers``: state by name, or
    why it is not known. ``nearby``: topics of a silent topic's type, the likest first.
    ``actions``: those of dtvla_interfaces that are offered; ``grippers``: types of the grippers'
    by name.
    """

    source: str
    scope: str
    policy: NodeView
    gate: NodeView
    seconds: float = 0.0
    nodes: list[str] = field(default_factory=list)
    ours: dict[str, list[str]] = field(default_factory=dict)
    sim_time: dict[str, bool] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    status: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    clocks: list[tuple[float, float]] = field(default_factory=list)
    joints: dict[str, float] = field(default_factory=dict)
    joints_lack: str = ''
    frames: FrameTree | None = None
    controllers: dict[str, str] | str = ''
    told: str = ''
    actions: list[str] = field(default_factory=list)
    grippers: dict[str, str] = field(default_factory=dict)
    nearby: dict[str, list[str]] = field(default_factory=dict)

    def stream(self, node: NodeView, topic: str) -> Stream:
        """Return what came on one of a node's topics."""
        name = node.topics[topic]
        return self.streams.setdefault(name, Stream(name))
