"""Nodes, timers, clocks, services and QoS inside one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import Clock, Float64, Log, String, Time, Trigger

Spin = Callable[..., bool]
STEADY = ros.ClockType.STEADY_TIME


def _publish_clock(publisher: Any, seconds: float) -> None:
    sec, nanosec = divmod(round(seconds * 1e9), 10**9)
    publisher.publish(Clock(clock=Time(sec=sec, nanosec=nanosec)))


def test_names_namespaces_and_remapping(make_node: Any, spin_until: Spin) -> None:
    node = make_node('vla_node', (
        '--ros-args', '-r', '__node:=brain', '-r', '__ns:=/robot', '-r', 'image:=/camera/rgb',
        '-r', 'vla_node:state:=mind', '-r', 'other:reasoning:=nowhere', '-r', '~/go:=/start'))
    assert node.get_fully_qualified_name() == '/robot/brain'
    assert node.create_publisher(String, 'image', 1).topic_name == '/camera/rgb'
    assert node.create_publisher(String, 'state', 1).topic_name == '/robot/mind'
    assert node.create_publisher(String, 'reasoning', 1).topic_name == '/robot/reasoning'
    assert node.create_publisher(String, '~/own', 1).topic_name == '/robot/brain/own'
    assert node.create_service(Trigger, '~/go', lambda q, r: r).srv_name == '/start'


@pytest.mark.skipif(ros.BACKEND != 'dds', reason='rclpy raises errors of its own')
@pytest.mark.parametrize('topic', ['', 'a b', '/a//b', 'a/', '1a', 'ä', '~x'])
def test_bad_names_are_refused(make_node: Any, topic: str) -> None:
    with pytest.raises(UserError):
        make_node().create_publisher(String, topic, 1)
    with pytest.raises(UserError):
        make_node('bad name')


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


def test_wall_timer_keeps_its_rate(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    calls: list[float] = []
    timer = node.create_timer(0.02, lambda: calls.append(time.monotonic()),
                              clock=ros.Clock(clock_type=STEADY))
    start = time.monotonic()
    assert spin_until(lambda: len(calls) == 20, node)
    # Never early; late only as far as a busy machine makes it.
    assert 0.39 < calls[-1] - start < 2.0
    timer.cancel()
    assert timer.is_canceled()
    assert not spin_until(lambda: len(calls) > 20, node, timeout=0.1)
    timer.reset()
    assert spin_until(lambda: len(calls) > 20, node)


def test_missed_periods_are_skipped_not_caught_up(make_node: Any, spin_until: Spin) -> None:
    node = make_node()
    calls: list[float] = []
    node.create_timer(0.05, lambda: calls.append(time.monotonic()),
                      clock=ros.Clock(clock_type=STEADY))
    time.sleep(0.5)
    assert spin_until(lambda: len(calls) >= 3, node)
    assert calls[2] - calls[1] > 0.02


def test_timer_follows_the_simulated_clock(make_node: Any, spin_until: Spin) -> None:
    node = make_node(parameter_overrides=[ros.Parameter('use_sim_time', value=True)])
    source = make_node('sim')
    clock = source.create_publisher(Clock, '/clock', 10)
    ticks: list[int] = []
    wall: list[int] = []
    node.create_timer(0.05, lambda: ticks.append(node.get_clock().now().nanoseconds))
    node.create_timer(0.02, lambda: wall.append(1), clock=ros.Clock(clock_type=STEADY))
    assert node.get_clock().now().nanoseconds == 0
    assert spin_until(clock.get_subscription_count, node, source)
    assert spin_until(lambda: len(wall) >= 5, node)
    assert ticks == []

    def advance(seconds: float) -> None:
        _publish_clock(clock, seconds)
        assert spin_until(
            lambda: node.get_clock().now().nanoseconds == round(seconds * 1e9), node)
        for _ in range(3):
            ros.spin_once(node, timeout_sec=0.002)
    advance(100.0)
    first = len(ticks)
    for step in range(1, 11):
        advance(100.0 + 0.05 * step)
    assert len(ticks) - first == 10
    paused = len(ticks)
    assert not spin_until(lambda: len(ticks) > paused, node, timeout=0.2)
    advance(50.0)  # backwards
    advance(50.04)
    assert len(ticks) == paused
    advance(50.06)
    assert len(ticks) == paused + 1
    result, = node.set_parameters([ros.Parameter('use_sim_time', value=False)])
    assert result.successful
    assert abs(node.get_clock().now().nanoseconds - time.time_ns()) < 10**9


def test_service_in_one_process(make_node: Any) -> None:
    server, caller = make_node('server'), make_node('caller')

    def answer(request: Any, response: Any) -> Any:
        response.success = True
        response.message = 'done'
        return response
    server.create_service(Trigger, 'go', answer)
    client = caller.create_client(Trigger, 'go')
    assert client.wait_for_service(timeout_sec=5.0)
    executor = ros.SingleThreadedExecutor()
    executor.add_node(server)
    executor.add_node(caller)
    future = client.call_async(Trigger.Request())
    done: list[Any] = []
    future.add_done_callback(lambda f: done.append(f.result().message))
    executor.spin_until_future_complete(future, timeout_sec=5.0)
    assert future.done()
    assert done == ['done']
    executor.shutdown()
    assert not make_node('third').create_client(Trigger, 'nobody').wait_for_service(0.05)


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


def test_log_lines(make_node: Any, capfd: pytest.CaptureFixture[str]) -> None:
    logger = make_node('gate', namespace='/vla').get_logger()
    logger.debug('hidden')
    for index in range(3):
        logger.warning(f'late {index}', throttle_duration_sec=10.0)
        logger.info('once', once=True)
    logger.error('bad')
    lines = capfd.readouterr().err.splitlines()
    assert [line.split('] ', 2)[0] + '] ' + line.split('] ', 2)[2] for line in lines] == [
        '[WARN] [vla.gate]: late 0', '[INFO] [vla.gate]: once', '[ERROR] [vla.gate]: bad']


@pytest.mark.skipif(ros.BACKEND != 'dds', reason="the DDS client's own settings")
@pytest.mark.parametrize(('environment', 'present', 'absent'), [
    ({}, ['name="lo', '>false</AllowMulticast>', '127.0.0.1'], []),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'subnet'}, [], ['name="lo', 'Peer ', 'AllowMulticast']),
    ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}, ['>false</AllowMulticast>'], ['127.0.0.1']),
    ({'ROS_STATIC_PEERS': '10.0.0.7;robot'}, ['"10.0.0.7"', '"robot"', '127.0.0.1'], ['"lo']),
    ({'CYCLONEDDS_URI': 'file:///mine.xml'}, [',file:///mine.xml'], [])])
def test_discovery_follows_ros_variables(environment: dict[str, str], present: list[str],
                                         absent: list[str]) -> None:
    from dtvla_ros.middleware.dds.discovery import cyclone_config
    config = cyclone_config(environment)
    assert all(text in config for text in present), config
    assert not any(text in config for text in absent), config


@pytest.mark.skipif(ros.BACKEND != 'dds', reason="the DDS client's own settings")
@pytest.mark.parametrize('environment', [
    {'ROS_DOMAIN_ID': 'x'}, {'ROS_DOMAIN_ID': '233'}, {'ROS_DOMAIN_ID': '-1'}])
def test_bad_domains_are_named(environment: dict[str, str]) -> None:
    from dtvla_ros.middleware.dds.discovery import domain_id
    with pytest.raises(UserError, match='ROS_DOMAIN_ID'):
        domain_id(environment)
