"""Camera pictures at full size and rate between two processes: none is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from dtvla_ros.ros import images
from dtvla_ros.ros.environment import prepare
from dtvla_ros.ros.run import STEADY, end, make_executor, run

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH, RATE, SECONDS = 480, 640, 30.0, 10.0
COUNT = round(RATE * SECONDS)


class NumberedCamera(Node):
    """Publishes `COUNT` pictures, their number in the stamp and in every pixel, once it is heard.

    The last one, number 0, says that it is over, again and again: it may be repeated, so it may
    be lost.
    """

    def __init__(self) -> None:
        super().__init__('numbered_camera')
        self._out = self.create_publisher(Image, 'image', qos_profile_sensor_data)
        self._number = 0
        self.create_timer(1.0 / RATE, self._shoot, clock=STEADY)

    def _shoot(self) -> None:
        if not self._out.get_subscription_count():
            if self._number > COUNT:
                end()
            return
        self._number += 1
        number = self._number if self._number <= COUNT else 0
        picture = np.full((HEIGHT, WIDTH, 3), number % 251, np.uint8)
        self._out.publish(images.serialize_image(picture, Time(sec=number), 'camera'))


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """Start a camera in a domain of its own."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(random.SystemRandom().randint(101, 220)))
    prepare()
    process = subprocess.Popen([sys.executable, str(Path(__file__))], text=True,
                               stderr=subprocess.PIPE, cwd=ROOT,
                               env={**os.environ, 'PYTHONPATH': os.pathsep.join(
                                   [str(ROOT), os.environ.get('PYTHONPATH', '')])})
    yield process
    process.kill()
    process.communicate()


def test_no_picture_is_lost_in_ten_seconds(camera: subprocess.Popen[str]) -> None:
    rclpy.init()
    numbers: list[int] = []
    try:
        node = Node('viewer')

        def look(data: bytes) -> None:
            message = images.parse_image(data)
            number = round(message.stamp)
            picture = images.image_to_numpy(message)
            assert picture.shape == (HEIGHT, WIDTH, 3)
            assert picture[0, 0, 0] == picture[-1, -1, -1] == number % 251
            numbers.append(number)
        node.create_subscription(Image, 'image', look, qos_profile_sensor_data, raw=True)
        executor = make_executor()
        executor.add_node(node)
        patience = time.monotonic() + 6 * SECONDS
        while 0 not in numbers and time.monotonic() < patience:
            executor.spin_once(timeout_sec=0.1)
            assert camera.poll() is None, camera.communicate()[1]
        executor.shutdown()
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
    seen = [number for number in numbers if number]
    # Until the two have found each other, the camera may hear of us before we hear of it.
    missing = sorted(set(range(seen[0], COUNT + 1)) - set(seen))
    assert not missing, f'{len(missing)} of {COUNT} lost: {missing}'
    assert seen == sorted(seen) and seen[0] < COUNT / 3


if __name__ == '__main__':
    raise SystemExit(run(NumberedCamera))
