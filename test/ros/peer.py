"""The other process: echoes images, latches a word, answers a service; or is a managed node."""

from __future__ import annotations

import os
import sys

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import SetBool

from dtvla_ros.ros.lifecycle import LifecycleNode
from dtvla_ros.ros.run import run

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Peer(Node):
    def __init__(self) -> None:
        super().__init__('peer')
        self.echo = self.create_publisher(Image, 'echoed', 5)
        self.create_subscription(Image, 'sent', self.echo.publish, 5)
        self.word = self.create_publisher(String, 'word', LATCHED)
        self.word.publish(String(data='latched before you came'))
        self.create_service(SetBool, 'invert', self.invert)
        self.farewell = self.create_publisher(String, 'farewell', 5)
        self.declare_parameter('rate', 5.0)
        print('ready', flush=True)

    def invert(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success = not request.data
        response.message = 'inverted'
        return response

    def destroy_node(self) -> None:
        self.farewell.publish(String(data='stop commands go out last'))
        super().destroy_node()


class ManagedPeer(LifecycleNode):
    """Says a word over and over, which is heard while it is active only."""

    def __init__(self) -> None:
        super().__init__('managed_peer')
        word = self.create_lifecycle_publisher(String, 'managed_word', 5)
        self.create_timer(0.05, lambda: word.publish(String(data='active')))
        print('ready', flush=True)


if __name__ == '__main__':
    kind = ManagedPeer if os.environ.get('PEER') == 'managed' else Peer
    raise SystemExit(run(kind, sys.argv[1:]))
