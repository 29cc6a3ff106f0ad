"""One thread that runs whatever is due: messages, requests, timers, guard conditions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cyclonedds.core import GuardCondition as DdsGuardCondition

from .context import ExternalShutdownException, get_default_context
from .transport import FOREVER, WaitSet, close_entity, trigger

if TYPE_CHECKING:
    from .endpoints import Future
    from .node import Node


class GuardCondition:
    """Runs ``callback`` in the spinning thread after ``trigger`` from any thread."""

    def __init__(self, participant: Any, callback: Callable[[], Any]) -> None:
        """Start untriggered."""
        self.condition = DdsGuardCondition(participant)
        self.callback = callback

    def trigger(self) -> None:
        """Ask for one call."""
        trigger(self.condition, True)

    def execute(self) -> bool:
        """Call back, unless it was destroyed after it was triggered."""
        if not hasattr(self.condition, '_ref'):
            return False
        trigger(self.condition, False)
        self.callback()
        return True


class SingleThreadedExecutor:
    """Runs callbacks one after another, each source in turn, none lost."""

    def __init__(self) -> None:
        """Serve the default context."""
        self._context = get_default_context()
        participant = self._context.participant
        self._wait_set = WaitSet(participant)
        self._guard = DdsGuardCondition(participant)
        self._wait_set.attach(self._guard)
        self._context.wakers.append(self.wake)
        self._nodes: dict[Node, int] = {}
        self._sources: dict[int, Any] = {}
        self._ready: deque[Callable[[], Any]] = deque()
        self._stopped = False

    def wake(self) -> None:
        """Make a waiting ``spin`` look again; safe from any thread."""
        if hasattr(self._guard, '_ref'):
            trigger(self._guard, True)

    def add_node(self, node: Node) -> bool:
        """Serve a node too; return whether it was new."""
        if node in self._nodes:
            return False
        self._nodes[node] = -1
        node.executor = self
        self.wake()
        return True

    def remove_node(self, node: Node) -> None:
        """Stop serving a node."""
        if self._nodes.pop(node, None) is not None:
            node.executor = None
            self._attach()

    def get_nodes(self) -> list[Node]:
        """Return the nodes served."""
        return list(self._nodes)

    def _attach(self) -> None:
        """Make the wait set match the nodes' sources."""
        wanted = {}
        for node in list(self._nodes):
            self._nodes[node] = node.version
            for source in node.sources():
                wanted[source.condition._ref] = source
        for ref in self._sources.keys() - wanted.keys():
            self._wait_set.detach(ref)
        for ref in wanted.keys() - self._sources.keys():
            self._wait_set.attach(wanted[ref].condition)
        self._sources = wanted

    def _collect(self, timeout_ns: int) -> None:
        """Queue everything that is due, waiting up to ``timeout_ns`` for the first."""
        if any(version != node.version for node, version in list(self._nodes.items())):
            self._attach()
        for node in list(self._nodes):
            for timer in node.timers():
                remaining = timer.wall_timeout_ns()
                if timer.is_ready():
                    self._ready.append(_Due(timer))
                elif remaining is not None:
                    timeout_ns = min(timeout_ns, remaining)
        for condition in self._wait_set.wait(0 if self._ready else max(0, timeout_ns)):
            if condition is self._guard:
                trigger(self._guard, False)
            elif condition._ref in self._sources:
                self._ready.append(self._sources[condition._ref].execute)

    def _run_one(self, timeout_sec: float | None, enough: Callable[[], bool]) -> None:
        """Run one callback unless ``enough`` or the time is up before there is one."""
        deadline = None if timeout_sec is None or timeout_sec < 0 else (
            time.monotonic_ns() + int(timeout_sec * 1e9))
        while self._context.ok() and not self._stopped and not enough():
            if self._ready:
                # A source may have been emptied or closed by an earlier callback.
                if self._ready.popleft()():
                    return
                continue
            self._collect(FOREVER if deadline is None else deadline - time.monotonic_ns())
            if not self._ready and deadline is not None and time.monotonic_ns() >= deadline:
                return
        if self._context.by_signal and not self._stopped:
            raise ExternalShutdownException

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Run one callback, waiting up to ``timeout_sec`` (for ever if None) for it."""
        self._run_one(timeout_sec, lambda: False)

    def spin(self) -> None:
        """Run callbacks until the context or this executor is shut down."""
        while self._context.ok() and not self._stopped:
            self.spin_once()

    def spin_until_future_complete(self, future: Future,
                                   timeout_sec: float | None = None) -> None:
        """Run callbacks until ``future`` is done or the time is up."""
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        future.add_done_callback(lambda _: self.wake())
        while self._context.ok() and not self._stopped and not future.done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._run_one(left, future.done)

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        """Stop spinning and let the nodes go."""
        if self._stopped:
            return True
        self._stopped = True
        for node in list(self._nodes):
            node.executor = None
        self._nodes.clear()
        self._attach()
        self._wait_set.close()
        close_entity(self._guard)
        self._context.forget_executor(self.wake)
        return True


class _Due:
    """A timer that was due when it was queued."""

    __slots__ = ('timer',)

    def __init__(self, timer: Any) -> None:
        self.timer = timer

    def __call__(self) -> bool:
        if not self.timer.is_ready():
            return False
        self.timer.call()
        return True


def spin(node: Node) -> None:
    """Run a node's callbacks until shutdown, as ``rclpy.spin``."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin()
    finally:
        executor.shutdown()


def spin_once(node: Node, *, timeout_sec: float | None = None) -> None:
    """Run one of a node's callbacks, as ``rclpy.spin_once``."""
    _keeper(node).spin_once(timeout_sec)


def spin_until_future_complete(node: Node, future: Future, *_: Any,
                               timeout_sec: float | None = None) -> None:
    """Run a node's callbacks until a future is done, as rclpy does."""
    _keeper(node).spin_until_future_complete(future, timeout_sec)


def _keeper(node: Node) -> SingleThreadedExecutor:
    """Return the node's executor, made once: building a wait set per call costs too much."""
    if node.executor is None:
        SingleThreadedExecutor().add_node(node)
    assert node.executor is not None
    return node.executor
