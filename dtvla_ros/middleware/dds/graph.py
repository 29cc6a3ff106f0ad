"""Who else is there: node names told to peers, endpoints learnt from them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from cyclonedds.builtin import (
    BuiltinDataReader,
    BuiltinTopicDcpsParticipant,
    BuiltinTopicDcpsPublication,
    BuiltinTopicDcpsSubscription,
)
from cyclonedds.core import InstanceState, Policy
from cyclonedds.domain import DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from .qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy, cyclone_qos
from .transport import RawReader, RawWriter, close_entity, guid
from .types import (
    MalformedMessage,
    deserialize,
    idl_struct,
    message_class,
    ros_type_name,
    serialize,
    type_hash,
)

if TYPE_CHECKING:
    from .node import Node

_INFO = 'rmw_dds_common/msg/ParticipantEntitiesInfo'
_Info = message_class(_INFO)
_Entities = message_class('rmw_dds_common/msg/NodeEntitiesInfo')
_Gid = message_class('rmw_dds_common/msg/Gid')


def _info_topic(participant: DomainParticipant) -> Topic:
    return Topic(participant, 'ros_discovery_info', idl_struct(_INFO))


class NodeAnnouncer:
    """Tells the graph which nodes live in this participant and which endpoints are theirs."""

    def __init__(self, participant: DomainParticipant) -> None:
        """Start with no node."""
        self._participant = participant
        qos = cyclone_qos(QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
                          type_hash(_INFO))
        self._writer: DataWriter | None = DataWriter(
            participant, _info_topic(participant), qos=qos)
        self._raw = RawWriter(self._writer)
        self._nodes: list[Node] = []
        self._lock = threading.Lock()

    def add(self, node: Node) -> None:
        """Show a node."""
        self._nodes.append(node)
        self.publish()

    def remove(self, node: Node) -> None:
        """Hide a node."""
        if node in self._nodes:
            self._nodes.remove(node)
            self.publish()

    def publish(self) -> None:
        """Send the present state; call after every change."""
        with self._lock:
            if self._writer is None:
                return
            self._raw.write(serialize(_Info(
                gid=_gid(self._participant), node_entities_info_seq=[
                    _Entities(node_namespace=node.get_namespace(), node_name=node.get_name(),
                              reader_gid_seq=[_gid(entity) for entity in node.readers()],
                              writer_gid_seq=[_gid(entity) for entity in node.writers()])
                    for node in self._nodes])))

    def close(self) -> None:
        """Free the writer; later changes go unannounced."""
        with self._lock:
            close_entity(self._writer)
            self._writer = None


def _gid(entity: Any) -> Any:
    return _Gid(data=np.frombuffer(guid(entity), np.uint8))


Kind = Literal['publishers', 'subscribers', 'services', 'clients']
NamesAndTypes = list[tuple[str, list[str]]]
_SIDES: dict[str, dict[str, tuple[Kind, str]]] = {
    'writers': {'rt/': ('publishers', ''), 'rq/': ('clients', 'Request')},
    'readers': {'rt/': ('subscribers', ''), 'rq/': ('services', 'Request')}}
"""DDS endpoint, start of its topic -> what it is in ROS, what its topic and type end in."""


class NodeNameNonExistentError(RuntimeError):
    """No such node is known."""


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """One publisher or subscription on the graph."""

    topic: str
    topic_type: str
    endpoint_gid: bytes
    qos_profile: QoSProfile


@dataclass(frozen=True, slots=True)
class _NodeInfo:
    """A node as its participant tells of it; ``gids`` are those of its endpoints."""

    name: str
    namespace: str
    gids: frozenset[bytes]


class Graph:
    """Endpoints of every participant, kept up to date by discovery."""

    def __init__(self, participant: DomainParticipant) -> None:
        """Follow both kinds of endpoints; node names only once somebody asks."""
        self._participant = participant
        self._lock = threading.Lock()
        self._readers = {
            'writers': BuiltinDataReader(participant, BuiltinTopicDcpsPublication),
            'readers': BuiltinDataReader(participant, BuiltinTopicDcpsSubscription)}
        self._endpoints: dict[Kind, dict[bytes, EndpointInfo]] = {
            'publishers': {}, 'subscribers': {}, 'services': {}, 'clients': {}}
        self._names: DataReader | None = None
        self._alive: BuiltinDataReader | None = None
        self._nodes: dict[bytes, list[_NodeInfo]] = {}

    def endpoints(self, kind: Kind) -> list[EndpointInfo]:
        """Return all ROS endpoints of a kind, with absolute ROS names."""
        with self._lock:
            for side, reader in self._readers.items():
                while samples := reader.take(N=64):
                    for sample in samples:
                        self._note(side, sample)
            return list(self._endpoints[kind].values())

    def _note(self, side: str, sample: Any) -> None:
        key = sample.key.bytes
        if sample.sample_info.instance_state != InstanceState.Alive:
            for kind, _ in _SIDES[side].values():
                self._endpoints[kind].pop(key, None)
            return
        topic = sample.topic_name
        kind, suffix = _SIDES[side].get(topic[:3], ('publishers', None))
        if suffix is not None and topic.endswith(suffix):
            self._endpoints[kind][key] = EndpointInfo(
                topic[2:].removesuffix(suffix),
                ros_type_name(sample.type_name).removesuffix(f'_{suffix}'), key,
                _profile(sample.qos))

    def named(self, kind: Kind, name: str) -> list[EndpointInfo]:
        """Return the endpoints of one topic or service."""
        return [end for end in self.endpoints(kind) if end.topic == name]

    def names_and_types(self, *kinds: Kind, node: tuple[str, str] | None = None) -> NamesAndTypes:
        """Return names with their types, sorted, of one node (name, namespace) or of all.

        Raise NodeNameNonExistentError when the node was not heard of.
        """
        gids = None if node is None else self._gids(*node)
        found: dict[str, set[str]] = {}
        for kind in kinds:
            for end in self.endpoints(kind):
                if gids is None or end.endpoint_gid in gids:
                    found.setdefault(end.topic, set()).add(end.topic_type)
        return [(topic, sorted(types)) for topic, types in sorted(found.items())]

    def _gids(self, name: str, namespace: str) -> frozenset[bytes]:
        matching = [node.gids for node in self._node_infos()
                    if (node.name, node.namespace) == (name, namespace)]
        if not matching:
            raise NodeNameNonExistentError(f'no node {namespace.rstrip("/")}/{name} is known')
        return frozenset().union(*matching)

    def node_names(self) -> list[tuple[str, str]]:
        """Return (name, namespace) of every node heard of so far."""
        return sorted((node.name, node.namespace) for node in self._node_infos())

    def _node_infos(self) -> list[_NodeInfo]:
        with self._lock:
            if self._names is None or self._alive is None:
                self._alive = BuiltinDataReader(self._participant, BuiltinTopicDcpsParticipant)
                self._names = DataReader(
                    self._participant, _info_topic(self._participant), qos=cyclone_qos(QoSProfile(
                        history=HistoryPolicy.KEEP_ALL,
                        durability=DurabilityPolicy.TRANSIENT_LOCAL), type_hash(_INFO)))
                self._raw_names = RawReader(self._names)
            while sample := self._raw_names.take():
                heard = read_node_infos(sample[0])
                if heard is not None:
                    self._nodes[heard[0]] = heard[1]
            # A killed process never takes its names back; DDS notices that it is gone.
            while samples := self._alive.take(N=64):
                for sample in samples:
                    if sample.sample_info.instance_state != InstanceState.Alive:
                        self._nodes.pop(sample.key.bytes, None)
            return [node for nodes in self._nodes.values() for node in nodes]

    def close(self) -> None:
        """Free the readers."""
        for reader in [*self._readers.values(), self._names, self._alive]:
            if reader is not None:
                close_entity(reader)


def read_node_infos(data: bytes | memoryview) -> tuple[bytes, list[_NodeInfo]] | None:
    """Read a participant's GID and nodes; None when a peer sends something else."""
    try:
        info: Any = deserialize(data, _Info)
    except MalformedMessage:
        return None
    return info.gid.data.tobytes(), [
        _NodeInfo(node.node_name, node.node_namespace, frozenset(
            gid.data.tobytes() for gid in [*node.reader_gid_seq, *node.writer_gid_seq]))
        for node in info.node_entities_info_seq]


def _profile(qos: Any) -> QoSProfile:
    reliable = qos[Policy.Reliability]
    durable = qos[Policy.Durability]
    return QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.BEST_EFFORT if reliable == Policy.Reliability.BestEffort
        else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE if durable == Policy.Durability.Volatile
        else DurabilityPolicy.TRANSIENT_LOCAL)
