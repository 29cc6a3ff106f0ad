"""tf2_msgs, apt's or built by tools/build_interfaces, is ROS's own.

Actions of control_msgs and transforms between nodes: test/nodes/test_command_adapters.py and
test_sim_bridge.py.
"""

from __future__ import annotations

from typing import Any

import pytest

TF = pytest.importorskip('tf2_msgs.msg', reason='tf2_msgs is not there: make interfaces')


def test_the_definitions_are_those_of_ros(graph: Any) -> None:
    """Hashes of the definitions are what peers compare."""
    node = graph.listen()
    node.create_publisher(TF.TFMessage, '/hash', 1)
    [info] = node.get_publishers_info_by_topic('/hash')
    if not hasattr(info, 'topic_type_hash'):
        pytest.skip('this ROS has no hashes of types')
    assert str(info.topic_type_hash) == (
        'RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087')
