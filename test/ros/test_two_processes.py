"""Two real processes on one graph."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import SetBool

from dtvla_ros.ros import images

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
Spin = Callable[..., bool]


def test_images_cross_unchanged(make_node: Any, spin_until: Spin, start_peer: Any) -> None:
    node = make_node()
    received: list[Any] = []
    node.create_subscription(Image, 'echoed', received.append, 5)
    publisher = node.create_publisher(Image, 'sent', 5)
    start_peer()
    assert spin_until(lambda: publisher.get_subscription_count()
                      and node.count_publishers('echoed'), node)
    random = np.random.default_rng(0)
    for height, width in ((480, 640), (1, 1), (224, 225)):
        frame = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        stamp = node.get_clock().now().to_msg()
        picture = images.numpy_to_image(frame, stamp, 'camera')
        # The first one is lost while the other side has not seen both of our ends yet.
        assert any(publisher.publish(picture) or spin_until(lambda: received, node, timeout=2.0)
                   for _ in range(5))
        message = received.pop()
        assert message.header.stamp == stamp
        assert message.header.frame_id == 'camera'
        np.testing.assert_array_equal(images.image_to_numpy(message), frame)


def test_camera_frames_arrive_in_milliseconds(make_node: Any, spin_until: Spin,
                                              start_peer: Any) -> None:
    node = make_node()
    received: list[float] = []
    node.create_subscription(
        Image, 'echoed', lambda m: (images.image_to_numpy(m),
                                    received.append(time.perf_counter())), 5)
    publisher = node.create_publisher(Image, 'sent', 5)
    start_peer()
    assert spin_until(lambda: publisher.get_subscription_count()
                      and node.count_publishers('echoed'), node)
    frame = np.zeros((480, 640, 3), np.uint8)
    first = images.numpy_to_image(frame[:1], node.get_clock().now().to_msg())
    assert any(publisher.publish(first) or spin_until(lambda: received, node, timeout=2.0)
               for _ in range(5))
    trips = []
    for _ in range(30):
        start = time.perf_counter()
        publisher.publish(images.numpy_to_image(frame, node.get_clock().now().to_msg()))
        count = len(received)
        assert spin_until(lambda: len(received) > count, node)  # noqa: B023
        trips.append(received[-1] - start)
    one_way = 1e3 * statistics.median(trips) / 2
    print(f'480x640 one way, half of a round trip: p50 {one_way:.2f} ms')
    # A loaded two-core machine is slow; the goal of 1.5 ms is for an idle one.
    assert one_way < 15


def test_latched_word_reaches_who_comes_late(make_node: Any, spin_until: Spin,
                                             start_peer: Any) -> None:
    peer = start_peer()
    assert peer.stdout.readline() == 'ready\n'
    node = make_node()
    words: list[str] = []
    node.create_subscription(String, 'word', lambda m: words.append(m.data), LATCHED)
    assert spin_until(lambda: words, node)
    assert words == ['latched before you came']


def _ask(node: Any, client: Any, request: Any) -> Any:
    """Call a service; the first reply is lost when the server has not seen all of us yet."""
    for _ in range(5):
        future = client.call_async(request)
        rclpy.spin_until_future_complete(node, future, timeout_sec=2.0)
        if future.result() is not None:
            return future.result()
    raise AssertionError(f'{client.srv_name} did not answer')


def test_service_across_processes(make_node: Any, start_peer: Any) -> None:
    node = make_node()
    start_peer()
    client = node.create_client(SetBool, 'invert')
    assert client.wait_for_service(timeout_sec=10.0)
    for value in (True, False):
        answer = _ask(node, client, SetBool.Request(data=value))
        assert answer.success is not value
        assert answer.message == 'inverted'


def test_remote_parameters(make_node: Any, start_peer: Any) -> None:
    node = make_node()
    start_peer()
    set_parameters = SetParameters
    client = node.create_client(set_parameters, '/peer/set_parameters')
    assert client.wait_for_service(timeout_sec=10.0)

    def ask(parameter: Parameter) -> Any:
        request = set_parameters.Request(parameters=[parameter.to_parameter_msg()])
        return _ask(node, client, request).results[0]
    assert ask(Parameter('rate', value=7.5)).successful
    refused = ask(Parameter('rate', value='fast'))
    assert not refused.successful
    assert refused.reason
    assert not ask(Parameter('unheard_of', value=1)).successful

    get_parameters = GetParameters
    reader = node.create_client(get_parameters, '/peer/get_parameters')
    assert reader.wait_for_service(timeout_sec=10.0)
    value, = _ask(node, reader, get_parameters.Request(names=['rate'])).values
    assert (value.type, value.double_value) == (3, 7.5)


def test_managed_node_in_another_process(make_node: Any, spin_until: Spin,
                                         start_peer: Any) -> None:
    peer = start_peer(PEER='managed')
    assert peer.stdout.readline() == 'ready\n'
    node = make_node()
    heard: list[str] = []
    node.create_subscription(String, 'managed_word', lambda m: heard.append(m.data), 5)
    change = node.create_client(ChangeState, '/managed_peer/change_state')
    state = node.create_client(GetState, '/managed_peer/get_state')
    assert change.wait_for_service(timeout_sec=10.0)
    assert state.wait_for_service(timeout_sec=10.0)

    def now() -> str:
        return _ask(node, state, GetState.Request()).current_state.label

    def go(label: str) -> bool:
        return _ask(node, change, ChangeState.Request(
            transition=Transition(label=label))).success
    assert now() == 'unconfigured'
    assert not spin_until(lambda: heard, node, timeout=0.3)
    for label, reached in (('activate', 'unconfigured'), ('configure', 'inactive'),
                           ('activate', 'active')):
        go(label)
        assert now() == reached
    assert spin_until(lambda: heard, node)
    assert go('deactivate')
    spin_until(lambda: False, node, timeout=0.3)
    heard.clear()
    assert not spin_until(lambda: heard, node, timeout=0.3)
    os.kill(peer.pid, signal.SIGTERM)
    assert peer.wait(timeout=20) == 0


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_waiting_node_at_once(make_node: Any, spin_until: Spin, start_peer: Any,
                                            number: int) -> None:
    node = make_node()
    last: list[str] = []
    farewell = node.create_subscription(String, 'farewell', lambda m: last.append(m.data), 5)
    peer = start_peer()
    assert peer.stdout.readline() == 'ready\n'
    assert spin_until(farewell.get_publisher_count, node)
    time.sleep(0.2)  # let the peer's side match too, or nobody hears it
    start = time.monotonic()
    os.kill(peer.pid, number)
    assert spin_until(lambda: last, node)
    assert peer.wait(timeout=20) == 0
    assert time.monotonic() - start < 5.0
    assert last == ['stop commands go out last']
    assert peer.stderr.read() == ''


def test_graph_shows_the_peer(make_node: Any, spin_until: Spin, start_peer: Any) -> None:
    node = make_node()
    assert spin_until(lambda: ('tested', '/') in node.get_node_names_and_namespaces(), node)
    peer = start_peer()
    assert spin_until(lambda: ('peer', '/') in node.get_node_names_and_namespaces(), node)
    assert spin_until(lambda: node.count_publishers('echoed') == 1, node)
    assert ('/echoed', ['sensor_msgs/msg/Image']) in node.get_topic_names_and_types()
    peer.terminate()
    assert spin_until(lambda: ('peer', '/') not in node.get_node_names_and_namespaces(), node)
    assert spin_until(lambda: node.count_publishers('echoed') == 0, node)


def test_bad_parameter_is_one_line_and_exit_code_2(start_peer: Any) -> None:
    peer = start_peer('--ros-args', '-p', 'rate:=fast')
    out, err = peer.communicate(timeout=20)
    assert peer.returncode == 2
    if start_peer.backend == 'dds':
        assert err == ("error: -p rate:=fast: parameter rate = 'fast' of node peer: "
                       'double expected, got string\n')
    assert (err.startswith('error: '), err.count('\n'), "'fast'" in err) == (True, 1, True)
    assert out == ''


def test_importing_the_middleware_imports_no_torch() -> None:
    code = ('import sys; from dtvla_ros.middleware import images, messages, ros; '
            'print([m for m in ("torch", "transformers", "onnxruntime", "cv2") '
            'if m in sys.modules])')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout == '[]\n', done.stderr
