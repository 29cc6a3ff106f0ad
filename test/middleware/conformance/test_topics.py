"""Topics: order, queues, QoS matching, late joiners."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import Float64, String

Spin = Callable[..., bool]


def test_messages_keep_their_order(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    got: list[float] = []
    node.create_subscription(Float64, 'count', lambda m: got.append(m.data), 200)
    publisher = node.create_publisher(Float64, 'count', 200)
    assert spin_until(publisher.get_subscription_count, node)
    for index in range(200):
        publisher.publish(Float64(data=float(index)))
    assert spin_until(lambda: len(got) == 200, node)
    assert got == [float(index) for index in range(200)]


def test_depth_one_keeps_the_newest(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    got: list[float] = []
    node.create_subscription(Float64, 'count', lambda m: got.append(m.data), 1)
    publisher = node.create_publisher(Float64, 'count', 1)
    assert spin_until(publisher.get_subscription_count, node)
    for index in range(20):
        publisher.publish(Float64(data=float(index)))
    assert spin_until(lambda: got, node)
    assert got == [19.0]


@pytest.mark.parametrize(('offered', 'asked', 'match'), [
    ('RELIABLE', 'RELIABLE', True), ('RELIABLE', 'BEST_EFFORT', True),
    ('BEST_EFFORT', 'BEST_EFFORT', True), ('BEST_EFFORT', 'RELIABLE', False)])
def test_reliability_matching(make_node: Any, spin_until: Spin, offered: str, asked: str,
                              match: bool) -> None:
    node = make_node()

    def profile(name: str) -> ros.QoSProfile:
        return ros.QoSProfile(depth=1, reliability=ros.ReliabilityPolicy[name])
    publisher = node.create_publisher(String, 'word', profile(offered))
    subscription = node.create_subscription(String, 'word', print, profile(asked))
    control = node.create_publisher(String, 'control', 1)
    node.create_subscription(String, 'control', print, 1)
    assert spin_until(control.get_subscription_count, node)
    assert bool(publisher.get_subscription_count()) is match
    assert bool(subscription.get_publisher_count()) is match
    assert spin_until(lambda: node.get_publishers_info_by_topic('word'), node)
    offer, = node.get_publishers_info_by_topic('word')
    assert offer.qos_profile.reliability == ros.ReliabilityPolicy[offered]


def test_volatile_publisher_never_matches_latched_subscription(make_node: Any,
                                                               spin_until: Spin) -> None:
    node = make_node()
    publisher = node.create_publisher(String, 'word', 1)
    node.create_subscription(String, 'word', print, ros.QoSProfile(
        depth=1, durability=ros.DurabilityPolicy.TRANSIENT_LOCAL))
    assert not spin_until(publisher.get_subscription_count, node, timeout=0.3)


def test_lifespan_drops_old_commands(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    got: list[str] = []
    profile = ros.QoSProfile(depth=1, lifespan=ros.Duration(seconds=0.1))
    publisher = node.create_publisher(String, 'command', profile)
    node.create_subscription(String, 'command', lambda m: got.append(m.data), 1)
    assert spin_until(publisher.get_subscription_count, node)
    publisher.publish(String(data='stale'))
    time.sleep(0.3)
    assert not spin_until(lambda: got, node, timeout=0.2)
    publisher.publish(String(data='fresh'))
    assert spin_until(lambda: got == ['fresh'], node)


LATCHED = ros.QoSProfile(depth=2, durability=ros.DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.mark.parametrize(('asked', 'expected'), [
    (LATCHED, ['2', '3']), (ros.QoSProfile(depth=2), [])])
def test_late_joiners_get_the_latched(make_node: Any, spin_until: Spin, asked: Any,
                                      expected: list[str]) -> None:
    node, late = make_node(), make_node('late')
    publisher = node.create_publisher(String, 'word', LATCHED)
    for word in ('1', '2', '3'):
        publisher.publish(String(data=word))
    got: list[str] = []
    late.create_subscription(String, 'word', lambda m: got.append(m.data), asked)
    assert spin_until(publisher.get_subscription_count, node, late)
    spin_until(lambda: len(got) > len(expected), late, timeout=0.3)
    assert got == expected


def test_a_type_that_differs_does_not_match(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    publisher = node.create_publisher(String, 'word', 1)
    if ros.BACKEND == 'rclpy':
        pytest.skip('rmw refuses a second type in one process')
    node.create_subscription(Float64, 'word', print, 1)
    assert not spin_until(publisher.get_subscription_count, node, timeout=0.3)


def test_publishing_another_type_is_refused(make_node: Any) -> None:
    with pytest.raises(TypeError):
        make_node().create_publisher(String, 'word', 1).publish(Float64())
