"""A command on a terminal of its own: what it shows, and keys pressed there."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .graph import ROOT

ESCAPE = re.compile(r'\x1b\[[0-?]*[ -/]*[@-~]|\r')


class Terminal:
    """Runs Python with these words on a pseudo-terminal; ``environment`` is added to ours."""

    def __init__(self, *words: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(self._ours)
        self.process = subprocess.Popen(
            [sys.executable, '-c', 'import fcntl, os, sys, termios; '
             'fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, '
             '[sys.executable, *sys.argv[1:]])', *words],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=ROOT,
            env={**os.environ, 'TERM': 'xterm', 'COLUMNS': '160', **environment})
        os.close(theirs)
        self._shown = b''
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 4096):
                self._shown += data
        except OSError:  # nobody has the other end any more
            pass

    @property
    def shown(self) -> str:
        """What has been written on the terminal, without colours and movements."""
        return ESCAPE.sub('', self._shown.decode(errors='replace'))

    @property
    def modes(self) -> list:
        """The terminal's settings."""
        return termios.tcgetattr(self._ours)

    def press(self, keys: str) -> float:
        """Press keys; return the time just before."""
        now = time.monotonic()
        os.write(self._ours, keys.encode())
        return now

    def wait(self, text: str, seconds: float = 60.0) -> str:
        """Wait until a pattern is on the terminal; return what it matched."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(text, self.shown)):
            assert time.monotonic() < deadline and self.process.poll() is None, (
                f'no {text!r} on the terminal:\n{self.shown[-3000:]}')
            time.sleep(0.02)
        return found[0]

    def close(self) -> None:
        """End the command."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        os.close(self._ours)


@contextmanager
def terminal(*words: str, **environment: str) -> Iterator[Terminal]:
    """Return a command on a terminal; it is gone afterwards."""
    made = Terminal(*words, **environment)
    try:
        yield made
    finally:
        made.close()
