"""The other process, one of several: see `KINDS`, chosen by the environment variable PEER."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial

from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import SetBool

from dtvla_ros.errors import UserError
from dtvla_ros.ros import qos, run

CAMERA = qos.profile(10, reliable=False, latched=False)


say = partial(print, flush=True)


class Peer(Node):
    """Echoes images, latches a word, answers a service, says a last word."""

    def __init__(self) -> None:
        super().__init__('peer')
        self.echo = self.create_publisher(Image, 'echoed', CAMERA)
        self.create_subscription(Image, 'sent', self.echo.publish, CAMERA, raw=True)
        self.word = self.create_publisher(String, 'word', qos.LATCHED)
        self.word.publish(String(data='latched before you came'))
        self.create_service(SetBool, 'invert', self.invert)
        self.last_word = self.create_publisher(String, 'last_word', 5)
        self.declare_parameter('rate', 5.0)
        say('ready')
        self.waiting = self.create_timer(0.05, self.wait, clock=run.STEADY)

    def wait(self) -> None:
        if self.last_word.get_subscription_count():
            say('heard')
            self.waiting.cancel()  # nothing wakes the node from here on

    def invert(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = not request.data, 'inverted'
        return response

    def destroy_node(self) -> None:
        self.last_word.publish(String(data='stop commands go out last'))
        run.wait_until_heard(self.last_word)
        super().destroy_node()


def talker() -> Node:
    """Return a node that says its own name over and over, and prints the names it hears."""
    node = Node(os.environ['NAME'])
    heard = {node.get_name()}

    def hear(message: String) -> None:
        if message.data not in heard:
            heard.add(message.data)
            say(message.data)
    node.create_subscription(String, 'talk', hear, 5)
    publisher = node.create_publisher(String, 'talk', 5)
    node.create_timer(0.1, lambda: publisher.publish(String(data=node.get_name())))
    say('ready')
    return node


def ending() -> Node:
    """Return a node that ends by `run.end` with the exit code 3."""
    node = Node('ending')
    node.create_timer(0.05, lambda: run.end(3))
    return node


def threaded(error: Exception) -> Node:
    """Return a node with a thread that calls into the executor, where an error awaits."""
    node = Node('threaded')

    def fail() -> None:
        assert threading.current_thread() is threading.main_thread()
        raise error

    def work() -> None:
        while node.executor is None:
            time.sleep(0.01)
        run.call_soon(node, fail)
    threading.Thread(target=work).start()
    return node


def join() -> int:
    """Spin in a loop of our own until interrupted."""
    try:
        with run.joined(lambda: Node('joined')) as (_, executor):
            executor.spin_once(timeout_sec=0.1)
            say('ready')
            while True:
                executor.spin_once(timeout_sec=0.1)
    except KeyboardInterrupt:
        say('interrupted')
    return 0


KINDS = {'': Peer, 'talker': talker, 'ending': ending,
         'threaded': lambda: threaded(RuntimeError('from a task')),
         'threaded user': lambda: threaded(UserError('no such\nthing'))}

if __name__ == '__main__':
    kind = os.environ.get('PEER', '')
    raise SystemExit(join() if kind == 'joined' else run.run(KINDS[kind], sys.argv[1:]))
