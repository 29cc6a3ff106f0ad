"""All requirements, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dtvla_ros.doctor import inputs, nodes
from dtvla_ros.doctor.row import Row
from dtvla_ros.doctor.seen import Seen

CHECKS: tuple[Callable[[Seen], Iterator[Row]], ...] = (
    nodes.discovery, nodes.nodes, nodes.states, nodes.connected, nodes.clock, nodes.policy,
    inputs.published, inputs.rates, inputs.stamps, inputs.latencies, inputs.skew, inputs.pixels,
    inputs.joints, inputs.pose, nodes.command, nodes.gripper, nodes.controllers, nodes.actions,
    nodes.compatible)


def judge(seen: Seen) -> list[Row]:
    """Return all rows."""
    return [row for check in CHECKS for row in check(seen)]
