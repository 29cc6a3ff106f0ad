"""What Ctrl-C and SIGTERM do to a long command: it finishes what it says, the second drops it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 2.0  # seconds that a dropped command has to leave in an orderly way


class Stop:
    """True once the command has been asked to stop; ``count``: how often."""

    def __init__(self) -> None:
        self.count = 0
        self._dropping = False

    def __bool__(self) -> bool:
        return self.count > 0

    def ask(self) -> None:
        """Note a signal; raise KeyboardInterrupt if what is at hand is to be dropped."""
        self.count += 1
        if self.count > 1 or self._dropping:
            raise KeyboardInterrupt

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Let the first signal raise KeyboardInterrupt, too, where nothing is lost by it."""
        if self:
            raise KeyboardInterrupt
        self._dropping = True
        try:
            yield
        finally:
            self._dropping = False


@contextmanager
def finishing(what: str) -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM only be noted, and say at once that ``what`` is finished.

    The second raises KeyboardInterrupt, and ends the process ``GRACE`` seconds later if it has not
    left by then: Python's handlers wait for a long call into a library. Only in the main thread;
    elsewhere nothing is ever asked.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    left = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former = {number: signal.signal(number, lambda *_: stop.ask()) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_tell, args=(reader, what, left), daemon=True).start()
    try:
        yield stop
    finally:
        left.set()
        signal.set_wakeup_fd(wakeup)
        for number, handler in former.items():
            signal.signal(number, handler)
        writer.close()


def _tell(reader: socket.socket, what: str, left: threading.Event) -> None:
    """Answer signals, whatever the main thread is at."""
    asked = 0
    with reader:
        while number := reader.recv(1):
            if number[0] not in SIGNALS:
                continue
            asked += 1
            if asked == 1:
                say(f'stopping: finishing {what}; Ctrl-C again drops it')
            elif not left.wait(GRACE):
                os._exit(130)


def say(text: str) -> None:
    """Print what became of an interrupted command on stderr, below a progress bar."""
    print(f'\n{text or "interrupted"}', file=sys.stderr, flush=True)


@contextmanager
def resumable(tell: Callable[[], str]) -> Iterator[None]:
    """Let a KeyboardInterrupt without a message of its own say what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or tell()) from None


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that what is open is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
