"""Log lines in rclpy's format on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from types import CodeType


class LoggingSeverity(IntEnum):
    """As in rcutils."""

    UNSET = 0
    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    FATAL = 50


_COLORS = {LoggingSeverity.DEBUG: '32', LoggingSeverity.WARN: '33', LoggingSeverity.ERROR: '31',
           LoggingSeverity.FATAL: '31'}
_lock = threading.Lock()
_default_level = LoggingSeverity.INFO


def set_default_level(name: str) -> None:
    """Set the level of loggers that have none ('debug' ... 'fatal')."""
    global _default_level
    _default_level = LoggingSeverity[name.upper()]


class Logger:
    """Writes lines for one node; ``throttle_duration_sec`` and ``once`` hold per call site."""

    def __init__(self, name: str) -> None:
        """Log under ``name`` (dots between namespace and node)."""
        self.name = name
        self._level = LoggingSeverity.UNSET
        self.sink: Callable[[LoggingSeverity, int, str, CodeType, int], None] | None = None
        self._last: dict[tuple[CodeType, int], float] = {}

    def set_level(self, level: LoggingSeverity) -> None:
        """Show only this level and above."""
        self._level = level

    def get_effective_level(self) -> LoggingSeverity:
        """Return the level in force."""
        return self._level or _default_level

    def _log(self, level: LoggingSeverity, text: object, *, once: bool = False,
             throttle_duration_sec: float = 0.0) -> bool:
        if level < self.get_effective_level():
            return False
        message = str(text)
        caller = sys._getframe(2)
        if once or throttle_duration_sec > 0.0:
            key = (caller.f_code, caller.f_lineno)
            now = time.monotonic()
            last = self._last.get(key)
            if last is not None and (once or now - last < throttle_duration_sec):
                return False
            self._last[key] = now
        stamp = time.time_ns()
        line = (f'[{level.name}] [{stamp // 10**9}.{stamp % 10**9:09d}] '
                f'[{self.name}]: {message}')
        if level in _COLORS and sys.stderr.isatty():
            line = f'\033[{_COLORS[level]}m{line}\033[0m'
        with _lock:
            print(line, file=sys.stderr, flush=True)
        if self.sink is not None:
            self.sink(level, stamp, message, caller.f_code, caller.f_lineno)
        return True

    def debug(self, text: object, *, once: bool = False,
              throttle_duration_sec: float = 0.0) -> bool:
        """Log a detail."""
        return self._log(LoggingSeverity.DEBUG, text, once=once,
                         throttle_duration_sec=throttle_duration_sec)

    def info(self, text: object, *, once: bool = False,
             throttle_duration_sec: float = 0.0) -> bool:
        """Log what happens."""
        return self._log(LoggingSeverity.INFO, text, once=once,
                         throttle_duration_sec=throttle_duration_sec)

    def warning(self, text: object, *, once: bool = False,
                throttle_duration_sec: float = 0.0) -> bool:
        """Log what may be wrong."""
        return self._log(LoggingSeverity.WARN, text, once=once,
                         throttle_duration_sec=throttle_duration_sec)

    warn = warning

    def error(self, text: object, *, once: bool = False,
              throttle_duration_sec: float = 0.0) -> bool:
        """Log what is wrong."""
        return self._log(LoggingSeverity.ERROR, text, once=once,
                         throttle_duration_sec=throttle_duration_sec)

    def fatal(self, text: object, *, once: bool = False,
              throttle_duration_sec: float = 0.0) -> bool:
        """Log what ends the process."""
        return self._log(LoggingSeverity.FATAL, text, once=once,
                         throttle_duration_sec=throttle_duration_sec)


def get_logger(name: str) -> Logger:
    """Return a logger outside a node."""
    return Logger(name)
