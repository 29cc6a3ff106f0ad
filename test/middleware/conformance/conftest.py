"""These tests know rclpy's names only; the same ones pass on rclpy and on the DDS client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dtvla_ros.middleware import ros


@pytest.fixture
def ask() -> Callable[..., Any]:
    """Call a service of any node and return the response."""
    def call(node: Any, srv_type: Any, name: str, request: Any, *others: Any) -> Any:
        client = node.create_client(srv_type, name)
        assert client.wait_for_service(timeout_sec=10.0)
        executor = ros.SingleThreadedExecutor()
        for each in (node, *others):
            executor.add_node(each)
        future = client.call_async(request)
        executor.spin_until_future_complete(future, timeout_sec=10.0)
        executor.shutdown()
        node.destroy_client(client)
        assert future.done(), f'{name} did not answer'
        return future.result()
    return call
