"""A person's stop: an e-stop pressed and released in the process that shows the arm."""

from __future__ import annotations

import time

from rclpy.node import Node
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from dtvla_ros import conventions as names
from dtvla_ros.conventions import relative
from dtvla_ros.ros import qos
from dtvla_ros.ros.graph import Seen

ASK_AGAIN = 0.3  # between attempts to clear a fault [s]
CLEARED = 3.0  # longest wait for a fault to be cleared [s]
HEARD = 0.3  # longest wait for the gate to stop before it is said that it has not [s]


class EStop:
    """Presses the e-stop at once, from any thread; clears it in `tick`."""

    def __init__(self, node: Node) -> None:
        self._pressed = node.create_publisher(Bool, relative(names.ESTOP), qos.LATCHED)
        self._clear = node.create_client(Trigger, 'clear_fault')
        self._by = self._since = ''
        self._asked = self._clearing = self._pressed_at = -float('inf')
        self._unsaid = ''  # what a person has to know beside the fault

    def press(self, by: str) -> None:
        """Stop the arm; ``by``: what was pressed."""
        self._pressed.publish(Bool(data=True))
        self._clearing = -float('inf')
        if not self._since:
            if not self._by:
                self._pressed_at = time.monotonic()
            self._by = f'{by} at {time.strftime("%H:%M:%S")}'

    @property
    def pending(self) -> bool:
        """Whether it is pressed and neither gate nor policy has said so yet."""
        return bool(self._by and not self._since)

    def clear(self) -> bool:
        """Release the e-stop, and ask for the fault to be cleared until it is.

        Return False where there is neither a fault nor a press of ours.
        """
        stopped = bool(self._since or self._by)
        if stopped:
            self._pressed.publish(Bool(data=False))
            self._clearing = time.monotonic()
            if self.pending:
                self._by, self._unsaid = '', 'e-stop released'
        return stopped

    def tick(self, seen: Seen) -> str:
        """Go on clearing; return why gate or policy are in FAULT, who pressed and when, or ''."""
        now = time.monotonic()
        if 'FAULT' not in (seen.gate_state, seen.vla_state):
            if self._since:
                self._by = self._since = self._unsaid = ''
            elif self._by and now - self._pressed_at > HEARD:
                self._pressed_at = float('inf')
                self._unsaid = (f'e-stop pressed ({self._by}): the gate stops as soon as it '
                                f'hears it, it is {seen.gate_state}')
            return ''
        if now - self._clearing < CLEARED and now - self._asked > ASK_AGAIN:
            self._asked = now
            self._clear.call_async(Trigger.Request()).add_done_callback(
                lambda future: self._answered(future.result()))
        self._since = self._since or f'at {time.strftime("%H:%M:%S")}'
        reason = seen.gate_reason if seen.gate_state == 'FAULT' else seen.vla_reason
        return f'{reason} ({self._by or self._since})'

    def _answered(self, response: Trigger.Response) -> None:
        if not response.success and time.monotonic() - self._clearing >= CLEARED - ASK_AGAIN:
            self._unsaid = f'not cleared: {response.message}'

    def take_unsaid(self) -> str:
        """Return once that nobody has stopped yet, or why a fault was not cleared, else ''."""
        unsaid, self._unsaid = self._unsaid, ''
        return unsaid
