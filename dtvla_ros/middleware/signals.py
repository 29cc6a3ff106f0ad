"""Ctrl-C and SIGTERM seen at once, even while the main thread waits inside a C library."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class SignalWatch:
    """Calls ``on_signal(number)`` from its own thread as soon as SIGINT or SIGTERM arrives.

    Python runs signal handlers only between byte codes of the main thread; the wake-up socket
    does not have to wait for that. ``quiet`` also keeps the first Ctrl-C from raising
    KeyboardInterrupt; a second one does, unless they are ignored by then. Outside the main
    thread it does nothing.
    """

    def __init__(self, on_signal: Callable[[int], Any], quiet: bool) -> None:
        """Install the handlers."""
        self._previous: dict[int, Any] = {}
        self._ignoring = False
        if threading.current_thread() is not threading.main_thread():
            return
        self._on_signal = on_signal
        self._quiet = quiet
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in _HANDLED:
            self._previous[number] = signal.signal(number, self._handle)
        threading.Thread(target=self._listen, name='signals', daemon=True).start()

    def ignore(self) -> None:
        """Do nothing about further signals."""
        self._ignoring = True

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and not self._ignoring:
            if not self._quiet:
                signal.default_int_handler(number, frame)
            self._quiet = False

    def _listen(self) -> None:
        while data := self._receiver.recv(16):
            for number in data:
                if number in _HANDLED and not self._ignoring:
                    self._on_signal(number)
        self._receiver.close()

    def close(self) -> None:
        """Put the former handlers back."""
        if not self._previous or threading.current_thread() is not threading.main_thread():
            return
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        self._sender.close()
