"""Two real processes on one graph."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from dtvla_ros.ros import images

CAMERA = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
Spin = Callable[..., bool]


def test_images_cross_unchanged(make_node: Any, spin_until: Spin, start_peer: Any) -> None:
    node = make_node()
    received: list[bytes] = []
    node.create_subscription(Image, 'echoed', received.append, CAMERA, raw=True)
    publisher = node.create_publisher(Image, 'sent', CAMERA)
    start_peer()
    assert spin_until(lambda: publisher.get_subscription_count()
                      and node.count_publishers('echoed'))
    random = np.random.default_rng(0)
    for height, width in ((480, 640), (1, 1), (224, 225)):
        frame = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        stamp = node.get_clock().now().to_msg()
        sent = images.serialize_image(frame, stamp, 'camera')
        # The first one is lost while the other side has not seen both of our ends yet.
        assert any(publisher.publish(sent) or spin_until(lambda: received, timeout=3.0)
                   for _ in range(20))
        message = images.parse_image(received.pop())
        assert message.stamp == stamp.sec + stamp.nanosec * 1e-9
        assert message.frame_id == 'camera'
        np.testing.assert_array_equal(images.image_to_numpy(message), frame)
        received.clear()


def test_every_large_picture_in_a_burst_arrives(make_node: Any, spin_until: Spin,
                                                start_peer: Any) -> None:
    """More than Fast DDS's own segment of shared memory holds, published without a pause."""
    node = make_node()
    rows: list[int] = []
    node.create_subscription(
        Image, 'echoed', lambda m: rows.append(images.parse_image(m).height), CAMERA, raw=True)
    publisher = node.create_publisher(Image, 'sent', CAMERA)
    start_peer()
    assert spin_until(lambda: publisher.get_subscription_count()
                      and node.count_publishers('echoed'))
    stamp = node.get_clock().now().to_msg()
    first = images.serialize_image(np.zeros((1, 1, 3), np.uint8), stamp)
    assert any(publisher.publish(first) or spin_until(lambda: rows, timeout=3.0)
               for _ in range(20))
    heights = list(range(480, 485))
    for height in heights:
        publisher.publish(images.serialize_image(np.zeros((height, 640, 3), np.uint8), stamp))
    assert spin_until(lambda: set(heights) <= set(rows))



def _ask(spin_until: Spin, client: Any, request: Any) -> Any:
    """Call a service; the first reply is lost when the server has not seen all of us yet."""
    assert spin_until(client.service_is_ready)
    for _ in range(20):
        future = client.call_async(request)
        if spin_until(future.done, timeout=3.0):
            return future.result()
    raise AssertionError(f'{client.srv_name} did not answer')




def test_managed_node_in_another_process(make_node: Any, spin_until: Spin,
                                         start_peer: Any) -> None:
    peer = start_peer(PEER='managed')
    assert peer.stdout.readline() == 'ready\n'
    node = make_node()
    heard: list[str] = []
    node.create_subscription(String, 'managed_word', lambda m: heard.append(m.data), 5)
    change = node.create_client(ChangeState, '/managed_peer/change_state')
    state = node.create_client(GetState, '/managed_peer/get_state')

    def now() -> str:
        return _ask(spin_until, state, GetState.Request()).current_state.label

    def go(label: str) -> bool:
        return _ask(spin_until, change, ChangeState.Request(
            transition=Transition(label=label))).success
    assert now() == 'unconfigured'
    assert not spin_until(lambda: heard, timeout=0.3)
    for label, reached in (('activate', 'unconfigured'), ('configure', 'inactive'),
                           ('activate', 'active')):
        go(label)
        assert now() == reached
    assert spin_until(lambda: heard)
    assert go('deactivate')
    spin_until(lambda: False, timeout=0.3)
    heard.clear()
    assert not spin_until(lambda: heard, timeout=0.3)
    os.kill(peer.pid, signal.SIGTERM)
    assert peer.wait(timeout=60) == 0
