"""Simulated time during a person's stop."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from dtvla_ros.ros.graph import Seen


class SceneHalt:
    """Lets simulated time stand still during a fault; then the episode begins anew."""

    def __init__(self, node: Node) -> None:
        self._pause = node.create_client(SetBool, '/sim/pause')
        self._reset = node.create_client(Trigger, '/sim/reset')
        self._order: Any = None  # the future of one that is not answered yet
        self._halted = self._anew = False

    def tick(self, reason: str, seen: Seen) -> None:
        """Order what is next, one thing at a time; ``reason``: of the fault, '' without one."""
        if self._order is not None and not self._order.done():
            return
        if reason and not self._halted:
            self._send(self._pause, SetBool.Request(data=True))
            self._halted, self._anew = self._order is not None, False
        elif not reason and self._halted and seen.vla_state != 'FAULT':
            if not self._anew:
                self._send(self._reset, Trigger.Request())
                self._anew = self._order is not None
            else:
                self._send(self._pause, SetBool.Request(data=False))
                self._halted = self._order is None

    def _send(self, client: Any, request: Any) -> None:
        self._order = client.call_async(request) if client.service_is_ready() else None
