"""Quality-of-service profiles of the package's topics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy


def profile(depth: int, reliable: bool, latched: bool) -> QoSProfile:
    """Return a profile; latched: the last ``depth`` messages reach late subscribers too."""
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


LATEST = profile(1, reliable=True, latched=False)
LATCHED = profile(1, reliable=True, latched=True)
# Deep: what got lost is sent again only while its publisher still holds it.
LATCHED_10 = profile(10, reliable=True, latched=True)
LATCHED_100 = profile(100, reliable=True, latched=True)
NEWEST = profile(1, reliable=False, latched=False)
ECHO = 0.1  # the same message within this time came over two subscriptions [s]


def offered(publishers: Sequence[Any]) -> list[tuple[bool, bool]]:
    """Return whether each publisher is reliable and whether it is latched."""
    return [(end.qos_profile.reliability == ReliabilityPolicy.RELIABLE,
             end.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL)
            for end in publishers]


def common(publishers: Sequence[Any]) -> tuple[bool, bool]:
    """Return whether all of some publishers are reliable, and whether all are latched."""
    reliable, latched = (all(column) for column in zip(*offered(publishers)))
    return reliable, latched


def listen_to_anyone(node: Node, kind: Any, name: str, on_message: Callable[[Any], None]) -> None:
    """Subscribe so that no publisher's QoS, latched or not, is incompatible."""
    last: list[tuple[float, Any]] = []

    def receive(message: Any) -> None:
        now = time.monotonic()
        if not (last and now - last[0][0] < ECHO and last[0][1] == message):
            on_message(message)
        last[:] = [(now, message)]
    for qos in (LATCHED, LATEST, NEWEST):
        node.create_subscription(kind, name, receive, qos)
