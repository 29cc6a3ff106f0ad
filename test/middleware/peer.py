"""The other process: echoes images, latches a word, or answers a service until it is stopped."""

from __future__ import annotations

import sys

from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import Image, SetBool, String

LATCHED = ros.QoSProfile(depth=1, durability=ros.DurabilityPolicy.TRANSIENT_LOCAL)


class Peer(ros.Node):
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


if __name__ == '__main__':
    raise SystemExit(ros.run(Peer, sys.argv[1:]))
