"""The part of a node that looks at the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .graph import EndpointInfo, Kind, NamesAndTypes
from .names import expand

if TYPE_CHECKING:
    from .context import Context


class NodeGraph:
    """Methods of ``rclpy.node.Node`` over the context's Graph."""

    context: Context

    def get_name(self) -> str:
        """Return the node's name after remapping."""
        raise NotImplementedError

    def get_namespace(self) -> str:
        """Return the node's namespace after remapping."""
        raise NotImplementedError

    def resolve_topic_name(self, topic: str) -> str:
        """Return the absolute topic name after remapping."""
        raise NotImplementedError

    def _count(self, kind: Kind, name: str) -> int:
        """Count endpoints of a topic or service; like rclpy's, its name is not remapped."""
        full = expand(name, self.get_name(), self.get_namespace())
        return len(self.context.graph.named(kind, full))

    def count_publishers(self, topic_name: str) -> int:
        """Return how many publishers a topic has, this node's included."""
        return self._count('publishers', topic_name)

    def count_subscribers(self, topic_name: str) -> int:
        """Return how many subscriptions a topic has, this node's included."""
        return self._count('subscribers', topic_name)

    def count_services(self, service_name: str) -> int:
        """Return how many servers a service has, this node's included."""
        return self._count('services', service_name)

    def count_clients(self, service_name: str) -> int:
        """Return how many clients a service has, this node's included."""
        return self._count('clients', service_name)

    def get_publishers_info_by_topic(self, topic_name: str) -> list[EndpointInfo]:
        """Return a topic's publishers."""
        return self.context.graph.named('publishers', self.resolve_topic_name(topic_name))

    def get_subscriptions_info_by_topic(self, topic_name: str) -> list[EndpointInfo]:
        """Return a topic's subscriptions."""
        return self.context.graph.named('subscribers', self.resolve_topic_name(topic_name))

    def get_topic_names_and_types(self) -> NamesAndTypes:
        """Return every topic on the graph with its types."""
        return self.context.graph.names_and_types('publishers', 'subscribers')

    def get_service_names_and_types(self) -> NamesAndTypes:
        """Return every service on the graph with its types."""
        return self.context.graph.names_and_types('services', 'clients')

    def get_publisher_names_and_types_by_node(self, node_name: str,
                                              node_namespace: str) -> NamesAndTypes:
        """Return what a node publishes; raise NodeNameNonExistentError if it is not there."""
        return self.context.graph.names_and_types('publishers', node=(node_name, node_namespace))

    def get_subscriber_names_and_types_by_node(self, node_name: str,
                                               node_namespace: str) -> NamesAndTypes:
        """Return what a node listens to; raise NodeNameNonExistentError if it is not there."""
        return self.context.graph.names_and_types('subscribers', node=(node_name, node_namespace))

    def get_service_names_and_types_by_node(self, node_name: str,
                                            node_namespace: str) -> NamesAndTypes:
        """Return what a node serves; raise NodeNameNonExistentError if it is not there."""
        return self.context.graph.names_and_types('services', node=(node_name, node_namespace))

    def get_client_names_and_types_by_node(self, node_name: str,
                                           node_namespace: str) -> NamesAndTypes:
        """Return what a node calls; raise NodeNameNonExistentError if it is not there."""
        return self.context.graph.names_and_types('clients', node=(node_name, node_namespace))

    def get_node_names_and_namespaces(self) -> list[tuple[str, str]]:
        """Return every node heard of; the first call only starts listening."""
        return self.context.graph.node_names()

    def get_node_names(self) -> list[str]:
        """Return the name of every node heard of; the first call only starts listening."""
        return [name for name, _ in self.context.graph.node_names()]
