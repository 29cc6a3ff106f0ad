"""What the operator's page may order: topics and services that the graph has anyway."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from dtvla_ros import conventions as names
from dtvla_ros.conventions import relative
from dtvla_ros.nodes.operator_driving import Driving
from dtvla_ros.ros import qos
from dtvla_ros.ros.estop import EStop
from dtvla_ros.ros.graph import Seen

PATIENCE = 5.0  # with a service that does not answer [s]
SERVICES: dict[str, tuple[Any, str]] = {
    'start': (Trigger, 'start'), 'end': (Trigger, 'stop'), 'pause': (SetBool, 'pause'),
    'again': (Trigger, 'vla/reset_episode'), 'sim_reset': (Trigger, 'sim/reset'),
    'sim_pause': (SetBool, 'sim/pause'), 'sim_knock': (Trigger, 'sim/knock'),
    'film': (SetBool, 'play/film'), 'record': (SetBool, 'record')}
"""Orders that are services of other nodes: their type and name."""


class Controls:
    """Carries orders out; ``say(text, level)`` is called with what became of each."""

    def __init__(self, node: Node, say: Callable[[str, str], None]) -> None:
        self._say = say
        self._estop = EStop(node)
        self.driving = Driving(node, say)
        self._instruction = node.create_publisher(
            String, relative(names.INSTRUCTION), qos.LATCHED)
        self._override = node.create_publisher(
            String, relative(names.THOUGHT_OVERRIDE), qos.LATEST)
        self._mark = node.create_publisher(String, relative(names.EPISODE_MARK), qos.LATEST)
        self._clients = {order: node.create_client(kind, name)
                         for order, (kind, name) in SERVICES.items()}
        self._asked: dict[Any, tuple[Any, float]] = {}  # by future: its client, until when [s]

    def stop(self) -> None:
        """Press the e-stop, from any thread."""
        self._estop.press('page')

    def obey(self, order: str, value: str | bool, socket: int) -> None:
        """Carry an order out that came over the socket of this number."""
        if order == 'clear':
            if not self._estop.clear():
                self._say('nothing is stopped', 'none')
        elif order == 'tell':
            self._instruction.publish(String(data=str(value)))
        elif order == 'override':
            self._override.publish(String(data=str(value)))
        elif order == 'mark' and value in names.MARKS:
            self._mark.publish(String(data=str(value)))
        elif order == 'takeover' and value:
            self.driving.take_over(str(value), socket)
        elif order == 'takeover':
            self.driving.hand_back()
        elif order == 'drive':
            self.driving.drive(str(value), socket)
        elif order == 'home':
            self.driving.go_home(str(value), socket)
        elif order == 'grip':
            self.driving.grip(bool(value), socket)
        elif order in self._clients:
            self._call(order, bool(value))
        else:
            self._say(f'there is no order "{order[:40]}"', 'bad')

    def tick(self, seen: Seen) -> str:
        """Go on clearing a stop; return why gate or policy are in FAULT, '' where none is."""
        self.driving.tick()
        fault = self._estop.tick(seen)
        for future, (client, until) in [*self._asked.items()]:
            if time.monotonic() > until and not future.done():
                del self._asked[future]
                client.remove_pending_request(future)
                self._say(f'{client.srv_name}: no answer for {PATIENCE:g} s; order it again',
                          'bad')
        if unsaid := self._estop.take_unsaid():
            self._say(unsaid, 'bad')
        return fault

    def able(self) -> dict[str, bool]:
        """Return of each order whether somebody is there to carry it out."""
        return {**{order: client.service_is_ready() for order, client in self._clients.items()},
                'tell': self._instruction.get_subscription_count() > 0,
                'override': self._override.get_subscription_count() > 0,
                'takeover': self.driving.able(), 'home': self.driving.home is not None,
                'mark': True, 'stop': True, 'clear': True}

    def _call(self, order: str, value: bool) -> None:
        kind, client = SERVICES[order][0], self._clients[order]
        name = client.srv_name
        if not client.service_is_ready():
            return self._say(f'{name}: no node offers it', 'bad')
        request = kind.Request(data=value) if kind is SetBool else kind.Request()

        def answered(future: Any) -> None:
            del self._asked[future]
            answer = future.result()
            on = f' {str(value).lower()}' if kind is SetBool else ''
            said = '' if answer.message.startswith('{') else f': {answer.message}'
            self._say(f'{name}{on}{said}' if answer.success else f'{name} refused{said}',
                      'good' if answer.success else 'bad')
        future = client.call_async(request)
        self._asked[future] = client, time.monotonic() + PATIENCE
        return future.add_done_callback(answered)
