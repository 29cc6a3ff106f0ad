"""A policy that does not prove itself is refused when the node is configured."""

from rclpy.lifecycle import TransitionCallbackReturn
from support.policies import tamper, write_proven

from dtvla_ros.nodes import vla_node


def test_configure(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(vla_node, 'LOAD_TIMEOUT', 60.0)  # however busy the machine is
    folder = tmp_path / 'policy'
    write_proven(folder)
    node = graph.join(vla_node.VlaNode, '--ros-args', '-p', f'policy:={folder}')
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    node.trigger_cleanup()
    tamper(folder)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert 'does not compute the exported policy' in node._monitor.refusal
    graph.wait(0.1)  # what was left for the executor would keep the node
