"""Publishers, subscriptions, services and clients."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from cyclonedds.core import Qos
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from . import types
from .message import Message
from .qos import QoSProfile, cyclone_qos
from .transport import RawReader, RawWriter, guid, matched_count

if TYPE_CHECKING:
    from .node import Node

_IDENTITY = struct.Struct('<Qq')  # who asked, and which of their questions
_REPLY_GRACE = 0.1  # s; rmw_cyclonedds waits as long for a client's reply reader to appear


class Publisher:
    """Offers one topic."""

    def __init__(self, node: Node, msg_type: type[Message], topic: str,
                 profile: QoSProfile) -> None:
        """Create the writer; ``topic`` is absolute."""
        self.msg_type, self.topic_name, self.qos_profile = msg_type, topic, profile
        name = msg_type.__msgtype__
        entity = Topic(node.context.participant, f'rt{topic}', types.idl_struct(name))
        self.writer = DataWriter(node.context.participant, entity,
                                 qos=cyclone_qos(profile, types.type_hash(name)))
        self._raw = RawWriter(self.writer)
        self._tail = types.ends_with_bytes(name)

    def publish(self, message: Message) -> None:
        """Send a message; safe from any thread. Raise TypeError for another type."""
        if not isinstance(message, self.msg_type):
            raise TypeError(f'{self.topic_name} carries {self.msg_type.__msgtype__}, '
                            f'not {type(message).__name__}')
        if self._tail is None:
            self._raw.write(types.serialize(message))
        else:
            self._write_picture(message, self._tail)

    def _write_picture(self, message: Message, field: str) -> None:
        """Send bulk bytes straight from the caller's array: only the head is serialised."""
        bulk = getattr(message, field)
        head_message = self.msg_type.__new__(self.msg_type)
        for name in message._fields:
            object.__setattr__(head_message, name, getattr(message, name))
        object.__setattr__(head_message, field, _NO_BYTES)
        head = bytearray(types.serialize(head_message))
        struct.pack_into('<I', head, len(head) - 4, bulk.size)
        self._raw.write(head, bulk)

    def get_subscription_count(self) -> int:
        """Return how many subscriptions receive this."""
        return matched_count(self.writer, 'subscriptions')


_NO_BYTES = np.zeros(0, np.uint8)


class Subscription:
    """Receives one topic."""

    def __init__(self, node: Node, msg_type: type[Message], topic: str,
                 callback: Callable[[Any], Any], profile: QoSProfile, raw: bool = False) -> None:
        """Create the reader; ``topic`` is absolute."""
        self.msg_type, self.topic_name, self.qos_profile = msg_type, topic, profile
        self.callback = callback
        self._node, self._raw = node, raw
        name = msg_type.__msgtype__
        entity = Topic(node.context.participant, f'rt{topic}', types.idl_struct(name))
        reader = DataReader(node.context.participant, entity,
                            qos=cyclone_qos(profile, types.type_hash(name)))
        self.source = RawReader(reader)
        self.condition = self.source.condition

    def get_publisher_count(self) -> int:
        """Return how many publishers feed this."""
        return matched_count(self.source.reader, 'publications')

    def execute(self) -> bool:
        """Take one message and call back; return whether there was one."""
        sample = self.source.take()
        if sample is None:
            return False
        if self._raw:
            self.callback(bytes(sample[0]))
            return True
        try:
            message = types.deserialize(sample[0], self.msg_type)
        except types.MalformedMessage as error:
            self._node.get_logger().error(f'{self.topic_name}: dropped a message: {error}',
                                          throttle_duration_sec=1.0)
            return True
        self.callback(message)
        return True


class _ServiceEnd:
    """The two DDS endpoints of a service or client."""

    def __init__(self, node: Node, srv_type: Any, name: str, serves: bool) -> None:
        request, response = (f'{srv_type.__srvtype__}_{part}' for part in ('Request', 'Response'))
        participant = node.context.participant
        identity = node.context.next_endpoint_identity('serviceid' if serves else 'clientid')
        asks = Topic(participant, f'rq{name}Request', types.idl_struct(request, True))
        answers = Topic(participant, f'rr{name}Reply', types.idl_struct(response, True))
        profile = QoSProfile(depth=10)

        def qos(kind: str) -> Qos:
            return cyclone_qos(profile, identity + types.type_hash(kind))
        if serves:
            self.reader = DataReader(participant, asks, qos=qos(request))
            self.writer = DataWriter(participant, answers, qos=qos(response))
        else:
            self.reader = DataReader(participant, answers, qos=qos(response))
            self.writer = DataWriter(participant, asks, qos=qos(request))
        self.source = RawReader(self.reader)
        self._out = RawWriter(self.writer)

    def send(self, identity: bytes, message: Message) -> None:
        """Send a request or response with the caller's 16 identity bytes in front."""
        body = types.serialize(message)
        self._out.write(bytes(body[:4]) + identity + bytes(body[4:]))

    def take(self, cls: type[Message]) -> tuple[bytes, Message, int] | None:
        """Return the identity, message and writer handle of the next sample, if any."""
        sample = self.source.take()
        if sample is None:
            return None
        data, handle = sample
        if len(data) < 20:
            raise types.MalformedMessage(f'{cls.__msgtype__}: no caller identity')
        # The identity is 16 bytes long, so alignment inside the body is unchanged.
        return bytes(data[4:20]), types.deserialize(bytes(data[:4]) + data[20:], cls), handle


class Service:
    """Answers requests with ``callback(request, response) -> response``."""

    def __init__(self, node: Node, srv_type: Any, name: str,
                 callback: Callable[[Any, Any], Any]) -> None:
        """Create both endpoints; ``name`` is absolute."""
        self.srv_type, self.srv_name, self.callback = srv_type, name, callback
        self._node = node
        self.end = _ServiceEnd(node, srv_type, name, serves=True)
        self.source = self.end.source
        self.condition = self.source.condition

    def execute(self) -> bool:
        """Answer one request; return whether there was one."""
        try:
            taken = self.end.take(self.srv_type.Request)
        except types.MalformedMessage as error:
            self._node.get_logger().error(f'{self.srv_name}: dropped a request: {error}')
            return True
        if taken is None:
            return False
        identity, request, handle = taken
        response = self.callback(request, self.srv_type.Response())
        if not isinstance(response, self.srv_type.Response):
            raise TypeError(f'service {self.srv_name} must return its Response, '
                            f'not {type(response).__name__}')
        self._await_reply_reader(handle)
        self.end.send(identity, response)
        return True

    def _await_reply_reader(self, handle: int) -> None:
        """Give discovery a moment to show the caller's reply reader, or the reply is lost."""
        asked_by = self.end.reader.get_matched_publication_data(handle)
        if asked_by is None:
            return
        deadline = time.monotonic() + _REPLY_GRACE
        while time.monotonic() < deadline:
            for reader in self.end.writer.get_matched_subscriptions():
                data = self.end.writer.get_matched_subscription_data(reader)
                if data is not None and data.participant_key == asked_by.participant_key:
                    return
            time.sleep(0.001)


class Future:
    """A response to come."""

    def __init__(self) -> None:
        """Start without a result."""
        self._event = threading.Event()
        self._result: Any = None
        self._callbacks: list[Callable[[Future], Any]] = []
        self._lock = threading.Lock()

    def done(self) -> bool:
        """Return whether the response is here or the call was given up."""
        return self._event.is_set()

    def result(self) -> Any:
        """Return the response, None if it is not here."""
        return self._result

    def set_result(self, result: Any) -> None:
        """Deliver the response."""
        with self._lock:
            self._result = result
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def cancel(self) -> None:
        """Give up waiting."""
        self.set_result(None)

    def add_done_callback(self, callback: Callable[[Future], Any]) -> None:
        """Call back once done, at once if it is already."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def wait(self, timeout: float | None) -> bool:
        """Block this thread; only useful when another one spins."""
        return self._event.wait(timeout)


class Client:
    """Calls one service."""

    def __init__(self, node: Node, srv_type: Any, name: str) -> None:
        """Create both endpoints; ``name`` is absolute."""
        self.srv_type, self.srv_name = srv_type, name
        self._node = node
        self.end = _ServiceEnd(node, srv_type, name, serves=False)
        self.source = self.end.source
        self.condition = self.source.condition
        self._guid = struct.unpack('<Q', guid(self.end.writer)[8:])[0]
        self._sequence = 0
        self._pending: dict[int, Future] = {}
        self._lock = threading.Lock()

    def service_is_ready(self) -> bool:
        """Return whether a server is there with both of its ends."""
        return bool(matched_count(self.end.writer, 'subscriptions')
                    and matched_count(self.end.reader, 'publications'))

    def wait_for_service(self, timeout_sec: float | None = None) -> bool:
        """Block until a server is there; return whether it is."""
        deadline = None if timeout_sec is None else time.monotonic() + timeout_sec
        while self._node.context.ok() and not self.service_is_ready():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        return self.service_is_ready()

    def call_async(self, request: Message) -> Future:
        """Send a request; the future is completed while the node is spun."""
        if not isinstance(request, self.srv_type.Request):
            raise TypeError(f'{self.srv_name} takes {self.srv_type.__name__}.Request')
        future = Future()
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
            self._pending[sequence] = future
        self.end.send(_IDENTITY.pack(self._guid, sequence), request)
        return future

    def call(self, request: Message, timeout_sec: float | None = None) -> Any:
        """Send a request and block; another thread must spin the node. None after a time-out."""
        future = self.call_async(request)
        return future.result() if future.wait(timeout_sec) else None

    def execute(self) -> bool:
        """Complete the future of one response; return whether there was one."""
        try:
            taken = self.end.take(self.srv_type.Response)
        except types.MalformedMessage as error:
            self._node.get_logger().error(f'{self.srv_name}: dropped a response: {error}')
            return True
        if taken is None:
            return False
        caller, sequence = _IDENTITY.unpack(taken[0])
        if caller == self._guid:
            with self._lock:
                future = self._pending.pop(sequence, None)
            if future is not None:
                future.set_result(taken[1])
        return True
