"""Quality of service: rclpy's profile and its Cyclone DDS policies."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from cyclonedds.core import Policy, Qos
from cyclonedds.util import duration

from .clock import Duration


class ReliabilityPolicy(IntEnum):
    """Whether lost samples are sent again."""

    SYSTEM_DEFAULT = 0
    RELIABLE = 1
    BEST_EFFORT = 2


class DurabilityPolicy(IntEnum):
    """Whether a late subscriber gets the last samples."""

    SYSTEM_DEFAULT = 0
    TRANSIENT_LOCAL = 1
    VOLATILE = 2


class HistoryPolicy(IntEnum):
    """Whether the queue is bounded by ``depth``."""

    SYSTEM_DEFAULT = 0
    KEEP_LAST = 1
    KEEP_ALL = 2


@dataclass(slots=True)
class QoSProfile:
    """What a publisher offers or a subscription asks for."""

    history: HistoryPolicy = HistoryPolicy.KEEP_LAST
    depth: int = 10
    reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE
    durability: DurabilityPolicy = DurabilityPolicy.VOLATILE
    lifespan: Duration | None = None
    deadline: Duration | None = None

    def __init__(self, *, depth: int | None = None, history: HistoryPolicy | None = None,
                 reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE,
                 durability: DurabilityPolicy = DurabilityPolicy.VOLATILE,
                 lifespan: Duration | None = None, deadline: Duration | None = None) -> None:
        """As in rclpy: give ``depth`` or ``history``; the rest has defaults."""
        if depth is None and history is None:
            raise ValueError('QoSProfile needs depth or history')
        if history in (None, HistoryPolicy.KEEP_LAST) and (depth is None or depth < 1):
            raise ValueError(f'QoSProfile depth must be at least 1, not {depth}')
        self.history = HistoryPolicy.KEEP_LAST if history is None else history
        self.depth = depth or 0
        self.reliability = reliability
        self.durability = durability
        self.lifespan = lifespan
        self.deadline = deadline


qos_profile_sensor_data = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
qos_profile_services_default = QoSProfile(depth=10)
qos_profile_parameters = QoSProfile(depth=1000)


def as_profile(qos: QoSProfile | int) -> QoSProfile:
    """Return a profile; an int is a depth, as in rclpy."""
    return QoSProfile(depth=qos) if isinstance(qos, int) else qos


def cyclone_qos(profile: QoSProfile, user_data: bytes = b'') -> Qos:
    """Return the policies of ``profile`` as rmw_cyclonedds maps them."""
    keep_all = profile.history == HistoryPolicy.KEEP_ALL
    history = Policy.History.KeepAll if keep_all else Policy.History.KeepLast(profile.depth)
    reliable = profile.reliability != ReliabilityPolicy.BEST_EFFORT
    transient = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    policies = [
        Policy.Reliability.Reliable(duration(seconds=10)) if reliable
        else Policy.Reliability.BestEffort,
        history,
        Policy.Durability.TransientLocal if transient else Policy.Durability.Volatile,
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.WriterDataLifecycle(autodispose=False)]
    if transient:
        policies.append(Policy.DurabilityService(duration(seconds=0), history, -1, -1, -1))
    if profile.lifespan is not None:
        policies.append(Policy.Lifespan(profile.lifespan.nanoseconds))
    if profile.deadline is not None:
        policies.append(Policy.Deadline(profile.deadline.nanoseconds))
    if user_data:
        policies.append(Policy.Userdata(user_data))
    return Qos(*policies)
