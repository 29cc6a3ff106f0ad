"""Publishes 1 MB images on a camera's topic, a thousand times a second, as fast as it can."""

import sys
import time

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from dtvla_ros.ros import images
from dtvla_ros.ros.run import joined

RATE, SIDE = 1000, 577  # 577 x 577 x 3 bytes are 1 MB

with joined(lambda: Node('flood')) as (node, _):
    publisher = node.create_publisher(Image, sys.argv[1], qos_profile_sensor_data)
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    begun, sent = time.monotonic(), 0
    while (now := time.monotonic()) - begun < float(sys.argv[2]):
        image[0, 0] = sent % 256
        publisher.publish(images.serialize_image(image, node.get_clock().now().to_msg()))
        sent += 1
        time.sleep(max(0.0, begun + sent / RATE - now))
    print(sent / (time.monotonic() - begun))
