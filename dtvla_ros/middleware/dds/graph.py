"""Who else is there: node names told to peers, endpoints learnt from them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from .types import deserialize, idl_struct, message_class, ros_type_name, serialize

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
        # No type hash in USER_DATA: rosbags computes another one for this type than ROS does.
        qos = cyclone_qos(QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
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


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """One publisher or subscription on the graph."""

    topic: str
    topic_type: str
    endpoint_gid: bytes
    qos_profile: QoSProfile


class Graph:
    """Endpoints of every participant, kept up to date by discovery."""

    def __init__(self, participant: DomainParticipant) -> None:
        """Follow both kinds of endpoints; node names only once somebody asks."""
        self._participant = participant
        self._lock = threading.Lock()
        self._readers = {
            'publishers': BuiltinDataReader(participant, BuiltinTopicDcpsPublication),
            'subscribers': BuiltinDataReader(participant, BuiltinTopicDcpsSubscription)}
        self._endpoints: dict[str, dict[bytes, EndpointInfo]] = {kind: {} for kind in
                                                                 self._readers}
        self._names: DataReader | None = None
        self._alive: BuiltinDataReader | None = None
        self._nodes: dict[bytes, list[tuple[str, str]]] = {}

    def endpoints(self, kind: str) -> list[EndpointInfo]:
        """Return all ROS 'publishers' or 'subscribers', with absolute topic names."""
        with self._lock:
            known = self._endpoints[kind]
            while samples := self._readers[kind].take(N=64):
                for sample in samples:
                    key = sample.key.bytes
                    if sample.sample_info.instance_state != InstanceState.Alive:
                        known.pop(key, None)
                    elif sample.topic_name.startswith('rt/'):
                        known[key] = EndpointInfo(sample.topic_name[2:],
                                                  ros_type_name(sample.type_name), key,
                                                  _profile(sample.qos))
            return list(known.values())

    def topics(self) -> list[tuple[str, list[str]]]:
        """Return every topic with its types, sorted."""
        found: dict[str, set[str]] = {}
        for kind in self._endpoints:
            for endpoint in self.endpoints(kind):
                found.setdefault(endpoint.topic, set()).add(endpoint.topic_type)
        return [(topic, sorted(kinds)) for topic, kinds in sorted(found.items())]

    def node_names(self) -> list[tuple[str, str]]:
        """Return (name, namespace) of every node heard of so far."""
        with self._lock:
            if self._names is None or self._alive is None:
                self._alive = BuiltinDataReader(self._participant, BuiltinTopicDcpsParticipant)
                self._names = DataReader(
                    self._participant, _info_topic(self._participant), qos=cyclone_qos(QoSProfile(
                        history=HistoryPolicy.KEEP_ALL,
                        durability=DurabilityPolicy.TRANSIENT_LOCAL)))
                self._raw_names = RawReader(self._names)
            while sample := self._raw_names.take():
                info: Any = deserialize(sample[0], _Info)
                self._nodes[info.gid.data.tobytes()] = [
                    (node.node_name, node.node_namespace) for node in info.node_entities_info_seq]
            # A killed process never takes its names back; DDS notices that it is gone.
            while samples := self._alive.take(N=64):
                for sample in samples:
                    if sample.sample_info.instance_state != InstanceState.Alive:
                        self._nodes.pop(sample.key.bytes, None)
            return sorted(node for nodes in self._nodes.values() for node in nodes)

    def close(self) -> None:
        """Free the readers."""
        for reader in [*self._readers.values(), self._names, self._alive]:
            if reader is not None:
                close_entity(reader)


def _profile(qos: Any) -> QoSProfile:
    reliable = qos[Policy.Reliability]
    durable = qos[Policy.Durability]
    return QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.BEST_EFFORT if reliable == Policy.Reliability.BestEffort
        else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE if durable == Policy.Durability.Volatile
        else DurabilityPolicy.TRANSIENT_LOCAL)
