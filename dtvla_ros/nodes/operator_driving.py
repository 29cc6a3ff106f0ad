"""A browser as the one who drives: takes over, publishes twists, is missed when it is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from std_msgs.msg import Float64
from std_srvs.srv import SetBool, Trigger

from dtvla_ros import conventions as names
from dtvla_ros.conventions import PERSON, POLICY, relative
from dtvla_ros.operator.homing import Pose, way_home
from dtvla_ros.ros import conversions, qos

ASK_AGAIN = 0.2  # until the gate knows of the publisher [s]
PATIENCE = 2.0  # after which its refusal counts [s]


class Driving:
    """Lets one page drive at a time; ``say(text, level)`` is called with what became of it.

    ``page``: the name by which the page that drives calls itself, '' without one. The topic has a
    publisher only then, so that others may drive otherwise. ``home``: where the arm can go back
    to, ``at``: where it is; None where nobody told.
    """

    def __init__(self, node: Node, say: Callable[[str, str], None]) -> None:
        self._node, self._say = node, say
        self._frame: str = node.get_parameter('base_frame').value
        self._takeover = node.create_client(SetBool, 'takeover')
        self._stop = node.create_client(Trigger, 'stop')
        self._publishers: tuple[Any, Any] | None = None
        self._socket = 0  # over which the page is connected
        self._wanted_since = self._asked = -float('inf')
        self._driver = POLICY
        self.page = ''
        self.home: Pose | None = None
        self.at: Pose | None = None

    def able(self) -> bool:
        """Return whether a gate is there that lets a person drive."""
        return self._takeover.service_is_ready()

    def take_over(self, page: str, socket: int) -> None:
        """Let a page drive, connected over a socket of that number."""
        if self.page:
            return self._say('a page drives already', 'bad')
        node, profile = self._node, qos.LATEST
        self._publishers = (
            node.create_publisher(TwistStamped, relative(names.HUMAN_TWIST), profile),
            node.create_publisher(Float64, relative(names.HUMAN_GRIPPER), profile))
        self.page, self._socket, self._wanted_since = page, socket, time.monotonic()
        self._ask()

    def hand_back(self) -> None:
        """Let the policy go on, whoever drives."""
        self._wanted_since, publishers = -float('inf'), self._publishers

        def ended(future: Any) -> None:
            answer = future.result()
            self._say('the policy drives' if answer.success else f'takeover: {answer.message}',
                      'good' if answer.success else 'bad')
            if publishers is self._publishers:  # else a page took over again meanwhile
                self._release()
        self._takeover.call_async(SetBool.Request(data=False)).add_done_callback(ended)

    def drive(self, twist: str, socket: int) -> None:
        """Publish a twist, six numbers in m/s and rad/s."""
        v = _numbers(twist)
        if len(v) == 6:
            self._publish(v, socket)

    def go_home(self, speed: str, socket: int) -> None:
        """Publish a twist that leads home, no faster than a speed in m/s."""
        v = _numbers(speed)
        if len(v) == 1 and self.home is not None and self.at is not None:
            self._publish(way_home(self.home, self.at, abs(v[0])).tolist(), socket)

    def _publish(self, twist: Sequence[float], socket: int) -> None:
        if self._publishers is None or socket != self._socket:
            return
        message = TwistStamped(header=conversions.header(
            self._node.get_clock().now().nanoseconds * 1e-9, self._frame))
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = twist
        self._publishers[0].publish(message)

    def grip(self, closed: bool, socket: int) -> None:
        """Close the gripper, or open it."""
        if self._publishers is not None and socket == self._socket:
            self._publishers[1].publish(Float64(data=0.0 if closed else 1.0))

    def gone(self, socket: int) -> None:
        """Stop the task if the page of this socket drove."""
        if self.page and socket == self._socket:
            self._release()
            self._stop.call_async(Trigger.Request())
            self._say('the page that drove is gone: task ended', 'bad')

    def follow(self, driver: str) -> None:
        """Take who drives, as the gate says."""
        before, self._driver = self._driver, driver
        if (before, driver) == (PERSON, POLICY) and self.page:
            self._release()

    def tick(self) -> None:
        """Go on asking the gate until it lets the page drive, or for good does not."""
        if self.page and time.monotonic() - self._asked > ASK_AGAIN and self._waits:
            self._ask()

    @property
    def _waits(self) -> bool:
        return self._wanted_since > -float('inf')

    def _ask(self) -> None:
        self._asked = time.monotonic()
        self._takeover.call_async(SetBool.Request(data=True)).add_done_callback(
            lambda future: self._answered(future.result()))

    def _answered(self, answer: Any) -> None:
        if not (self.page and self._waits):
            return
        if answer.success:
            self._wanted_since = -float('inf')
            self._say('a page drives', 'good')
        elif time.monotonic() - self._wanted_since > PATIENCE:
            self._release()
            self._say(f'takeover refused: {answer.message}', 'bad')

    def _release(self) -> None:
        publishers, self._publishers = self._publishers, None
        self.page, self._socket, self._wanted_since = '', 0, -float('inf')
        for publisher in publishers or ():
            self._node.destroy_publisher(publisher)


def _numbers(text: str) -> list[float]:
    """Return the finite numbers that a text lists, none if anything else is in it."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return []
    return numbers if np.isfinite(numbers).all() else []
