"""What a node waits for, said again and again: why nothing comes, and what is near by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible
from rclpy.subscription import Subscription

from dtvla_ros.conventions import RECORDED
from dtvla_ros.ros import environment
from dtvla_ros.ros.run import STEADY

PERIOD = 5.0  # between two looks [s]; what is there by then was never waited for
CLOCK = '/clock'
NOBODY = 'nobody publishes it'
UNKNOWN = '_NODE_NAME_UNKNOWN_'
MOST_NEAR, MOST_NODES = 3, 8  # names told


def tell_what_lacks(node: Node, lacking: Callable[[], Iterable[str]]) -> None:
    """Let a node ask ``lacking`` every `PERIOD` seconds and log each answer as a warning.

    A simulated clock without a time comes before all else.
    Once nothing lacks any more that is logged, too; without a complaint before nothing is.
    """
    complained = False

    def look() -> None:
        nonlocal complained
        lacks = list(_time_that_lacks(node) or lacking())
        alone = next((what for what in lacks if what.endswith(NOBODY)), None)
        for what in lacks:
            node.get_logger().warning(f'waiting for {what}' + (
                f' (nodes here: {present(node)})' if what is alone else ''))
        if complained and not lacks:
            node.get_logger().info('waiting for nothing any more')
        complained = bool(lacks)
    node.create_timer(PERIOD, look, clock=STEADY)


def _time_that_lacks(node: Node) -> list[str]:
    """Return why a simulated clock has no time yet, which all else waits for."""
    if not node.get_parameter('use_sim_time').value or node.get_clock().now().nanoseconds:
        return []
    clocks = node.get_publishers_info_by_topic(CLOCK)
    if any((end.node_name, end.node_namespace) == (node.get_name(), node.get_namespace())
           for end in clocks):
        return []
    return [f'{CLOCK}: {full_name(clocks[0])} has not begun' if clocks else f'{CLOCK}: {NOBODY}']


def why_silent(node: Node, subscription: Subscription) -> str:
    """Return a topic's name, and why nothing has come from it as far as the graph shows."""
    topic = subscription.topic_name
    publishers = node.get_publishers_info_by_topic(topic)
    if not publishers:
        similar = near(node, topic, type_name(subscription.msg_type))
        return f'{topic}: {NOBODY}' + (
            f'; similar: {", ".join(similar)}' if similar else '')
    return f'{topic}: ' + '; '.join(dict.fromkeys(
        f'{full_name(end)} {_why(end, subscription)}' for end in publishers))


def _why(publisher: Any, subscription: Subscription) -> str:
    if publisher.topic_type != (wanted := type_name(subscription.msg_type)):
        return f'publishes {publisher.topic_type}, {wanted} is wanted'
    compatible, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
    if compatible == QoSCompatibility.ERROR:
        return f'publishes it with an incompatible QoS: {reason}'
    return 'publishes it, but nothing of use has come'


def near(node: Node, topic: str, kind: str) -> list[str]:
    """Return published topics that may be meant: below it, or of its type and not our own."""
    there = [(name, kinds) for name, kinds in node.get_topic_names_and_types()
             if name not in (topic, *RECORDED) and node.count_publishers(name)]
    typed = [name for name, kinds in there if kind in kinds]
    below = [name for name, _ in there if name.startswith(f'{topic}/')]
    return list(dict.fromkeys([*below, *by_likeness(topic, typed)]))[:MOST_NEAR]


def by_likeness(name: str, names: Sequence[str]) -> list[str]:
    """Return names, the likest first."""
    return sorted(names, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())


def present(node: Node) -> str:
    """Return which other nodes are there, and where they are looked for."""
    names = sorted(
        f'{space.rstrip("/")}/{name}' for name, space in node.get_node_names_and_namespaces()
        if not name.startswith('_') and (name, space) != (node.get_name(), node.get_namespace()))
    more = [f'{len(names) - MOST_NODES} more'] if len(names) > MOST_NODES else []
    return f'{", ".join([*names[:MOST_NODES], *more]) or "none"}; {environment.scope()}'


def type_name(kind: Any) -> str:
    """Return a message's type as the graph has it, 'pkg/msg/Type'."""
    return f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'


def full_name(end: Any) -> str:
    """Return the full name of a TopicEndpointInfo's node, which comes later than the endpoint."""
    if end.node_name == UNKNOWN:
        return 'a node'
    return f'{end.node_namespace.rstrip("/")}/{end.node_name}'
