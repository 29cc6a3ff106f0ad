"""Executors: guard conditions, threads, endpoints that come and go, errors, the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import Float64, Log, String

Spin = Callable[..., bool]


def test_other_threads_publish_and_trigger(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    got: list[Any] = []
    node.create_subscription(Float64, 'count', lambda m: got.append(threading.get_ident()), 100)
    publisher = node.create_publisher(Float64, 'count', 100)
    guard = node.create_guard_condition(lambda: got.append('triggered'))
    assert spin_until(publisher.get_subscription_count, node)

    def work() -> None:
        for _ in range(50):
            publisher.publish(Float64(data=1.0))
        guard.trigger()
    thread = threading.Thread(target=work)
    thread.start()
    assert spin_until(lambda: len(got) == 51, node)
    thread.join()
    assert got.count('triggered') == 1
    assert got.count(threading.get_ident()) == 50


def test_guard_condition_wakes_a_waiting_spin(make_node: Any) -> None:
    node = make_node()
    woken: list[float] = []
    guard = node.create_guard_condition(lambda: woken.append(time.monotonic()))
    ros.spin_once(node, timeout_sec=0.0)
    pulled: list[float] = []

    def pull() -> None:
        time.sleep(0.1)
        pulled.append(time.monotonic())
        guard.trigger()
    thread = threading.Thread(target=pull)
    thread.start()
    ros.spin_once(node, timeout_sec=5.0)
    thread.join()
    assert woken[0] - pulled[0] < 0.5


def test_endpoints_made_while_spinning_are_served(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    publisher = node.create_publisher(String, 'late', 5)
    got: list[str] = []
    made: list[Any] = []
    node.create_timer(0.01, lambda: made or made.append(
        node.create_subscription(String, 'late', lambda m: got.append(m.data), 5)))
    assert spin_until(publisher.get_subscription_count, node)
    publisher.publish(String(data='x'))
    assert spin_until(lambda: got == ['x'], node)
    node.destroy_subscription(made[0])
    assert spin_until(lambda: publisher.get_subscription_count() == 0, node)


def test_a_source_destroyed_while_due_is_left_alone(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    got: list[str] = []
    guards: list[Any] = []
    subscriptions: list[Any] = []

    def only_once(name: str) -> Callable[[Any], None]:
        def callback(*_: Any) -> None:
            got.append(name)
            for subscription in subscriptions:
                node.destroy_subscription(subscription)
            for guard in guards:
                node.destroy_guard_condition(guard)
        return callback
    publishers = [node.create_publisher(String, name, 5) for name in 'ab']
    subscriptions += [node.create_subscription(String, name, only_once(name), 5) for name in 'ab']
    guards += [node.create_guard_condition(only_once(name)) for name in 'cd']
    assert spin_until(lambda: all(p.get_subscription_count() for p in publishers), node)
    for publisher in publishers:
        publisher.publish(String(data='x'))
    time.sleep(0.2)
    for guard in guards:
        guard.trigger()
    assert not spin_until(lambda: len(got) > 1, node, timeout=0.2)
    assert len(got) == 1


def test_log_lines_reach_rosout(make_node: Any, spin_until: Spin) -> None:
    node, listener = make_node('gate'), make_node('listener')
    got: list[Any] = []
    listener.create_subscription(Log, '/rosout', got.append, ros.QoSProfile(
        depth=10, durability=ros.DurabilityPolicy.TRANSIENT_LOCAL))
    node.get_logger().warning('too late')
    assert spin_until(lambda: got, listener)
    assert (got[0].level, got[0].name, got[0].msg) == (30, 'gate', 'too late')
    assert got[0].function == 'test_log_lines_reach_rosout'


def test_an_error_in_a_callback_ends_the_spin(make_node: Any) -> None:
    node = make_node()

    def fail() -> None:
        raise ZeroDivisionError
    node.create_timer(0.01, fail)
    with pytest.raises(ZeroDivisionError):
        ros.spin(node)


def test_shutdown_in_a_callback_ends_the_spin(make_node: Any) -> None:
    node = make_node()
    node.create_timer(0.01, ros.shutdown)
    ros.spin(node)
    assert not ros.ok()
