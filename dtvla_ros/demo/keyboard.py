"""Keys of the terminal as they are pressed, while the program prints and draws."""

from __future__ import annotations

import codecs
import os
import re
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable
from typing import Any

STOP_KEYS = {' ': 'SPACE', '\x1b': 'ESC'}
"""Keys that stop the arm, and their names."""
LOOK = 0.1  # longest wait for a key before a look whether the keyboard is still wanted [s]
_KEY = re.compile(r'\x1b[\[O][0-?]*[ -/]*[@-~]|.', re.DOTALL)  # arrows and others are one key


class Keyboard:
    """Hands on keys without Enter and without echo; Ctrl-C and Ctrl-Z remain what they are.

    ``on_key`` is called with a character, or the escape sequence of another key, in a thread of
    its own: it does not wait for drawing. Leaving the context gives the terminal back as it was.
    ``present``: whether there are keys; not where stdin is no terminal or another job has it.
    """

    def __init__(self, on_key: Callable[[str], None]) -> None:
        self._on_key = on_key
        self._fd = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else -1
        self.present = self._has_terminal()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, name='keyboard', daemon=True)

    def __enter__(self) -> Keyboard:
        if self.present:
            self._before = termios.tcgetattr(self._fd)
            self._continued = signal.signal(signal.SIGCONT, self._take)
            self._take()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.present:
            self._closing.set()
            self._thread.join()
            signal.signal(signal.SIGCONT, self._continued)
            if self._has_terminal():
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _take(self, *_: Any) -> None:
        if self._has_terminal():
            tty.setcbreak(self._fd, termios.TCSADRAIN)

    def _has_terminal(self) -> bool:
        """Whether stdin is a terminal that is this job's; a job in the background leaves it."""
        try:
            return self._fd >= 0 and os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # hung up
            return False

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder('utf-8')('replace')
        while not self._closing.is_set():
            if not self._has_terminal():
                self._closing.wait(LOOK)
            elif select.select([self._fd], [], [], LOOK)[0]:
                try:
                    data = os.read(self._fd, 4096)
                except OSError:
                    data = b''
                for key in _KEY.findall(decoder.decode(data)):
                    self._on_key(key)
                if not data:  # hung up
                    self._closing.wait(LOOK)
