"""The process on the graph: one participant, its nodes, and whether it should go on."""

from __future__ import annotations

import atexit
import os
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import Domain, DomainParticipant

from ..signals import SignalWatch
from .arguments import Arguments, parse_arguments
from .discovery import cyclone_config, domain_id
from .graph import Graph, NodeAnnouncer
from .logging import set_default_level
from .security import security_config
from .transport import close_entity, guid, join_domain


class SignalHandlerOptions(IntEnum):
    """Which signals ``init`` handles."""

    NO = 0
    ALL = 3


class ExternalShutdownException(Exception):
    """A signal ended the context while somebody was spinning."""


class NotInitializedException(RuntimeError):
    """``init`` was not called, or ``shutdown`` was."""


class Context:
    """What ``init`` sets up and ``shutdown`` takes down."""

    def __init__(self) -> None:
        """Start uninitialised."""
        self._ok = False
        self._lock = threading.RLock()
        self._watch: SignalWatch | None = None
        self._domain: Domain | None = None
        self._participant: DomainParticipant | None = None
        self._identities = 0
        self.by_signal = False
        self.arguments = Arguments()
        self.wakers: list[Callable[[], None]] = []

    def init(self, args: Sequence[str] | None,
             signal_handler_options: SignalHandlerOptions) -> None:
        """Read the arguments (``sys.argv`` if None) and handle signals."""
        if self._ok:
            raise RuntimeError('init was called twice without shutdown')
        self.wakers.clear()
        self.close()
        self.arguments = parse_arguments(sys.argv[1:] if args is None else args)
        set_default_level(self.arguments.log_level)
        self.domain_id = domain_id(os.environ)
        self._config = cyclone_config(
            os.environ, security_config(os.environ, self.arguments.enclave))
        self.by_signal = False
        self._ok = True
        if signal_handler_options == SignalHandlerOptions.ALL:
            self._watch = SignalWatch(self._on_signal, quiet=False)

    def ok(self) -> bool:
        """Return whether to go on."""
        return self._ok

    @property
    def participant(self) -> DomainParticipant:
        """Return the DDS participant; the first use joins the domain."""
        with self._lock:
            if self._participant is None:
                if not self._ok:
                    raise NotInitializedException('call init() before creating nodes')
                self._domain, self._participant = join_domain(
                    self.domain_id, self._config,
                    Qos(Policy.Userdata(f'enclave={self.arguments.enclave};'.encode())))
                self.announcer = NodeAnnouncer(self._participant)
                self.graph = Graph(self._participant)
            return self._participant

    def next_endpoint_identity(self, kind: str) -> bytes:
        """Return the USER_DATA that ties the two endpoints of a service or client together."""
        with self._lock:
            self._identities += 1
            raw = guid(self.participant)[:12] + struct.pack('>I', self._identities)
        return f'{kind}={".".join(format(byte, "x") for byte in raw)};'.encode()

    def wake(self) -> None:
        """Make every executor look again."""
        for waker in list(self.wakers):
            waker()

    def _on_signal(self, number: int) -> None:
        self.by_signal = True
        self._ok = False
        self.wake()

    def try_shutdown(self) -> None:
        """Stop; the graph is left once nobody spins any more."""
        self._ok = False
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self.wakers:
            self.wake()
        else:
            self.close()

    def forget_executor(self, waker: Callable[[], None]) -> None:
        """Note that an executor ended; the last one out after ``shutdown`` leaves the graph."""
        self.wakers.remove(waker)
        if not self._ok and not self.by_signal and not self.wakers:
            self.close()

    def close(self) -> None:
        """Leave the graph now."""
        with self._lock:
            if self._participant is None:
                return
            self.announcer.close()
            self.graph.close()
            close_entity(self._participant)
            close_entity(self._domain)
            self._participant = self._domain = None


_default = Context()
# Peers otherwise believe for ten seconds that the process is still there.
atexit.register(_default.close)


def get_default_context() -> Context:
    """Return the process's context."""
    return _default


def init(*, args: Sequence[str] | None = None,
         signal_handler_options: SignalHandlerOptions | None = None, **_: Any) -> None:
    """Set up the process, as ``rclpy.init``."""
    _default.init(args, SignalHandlerOptions.ALL if signal_handler_options is None
                  else signal_handler_options)


def ok() -> bool:
    """Return whether the process should go on."""
    return _default.ok()


def shutdown() -> None:
    """Leave the graph; raise RuntimeError when that was done before, as rclpy does."""
    if not _default.ok() and not _default.by_signal:
        raise RuntimeError('shutdown was called before init, or twice')
    _default.try_shutdown()


def try_shutdown() -> None:
    """Leave the graph if that was not done before."""
    _default.try_shutdown()
