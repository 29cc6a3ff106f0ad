"""Nodes that wait say for what: the real nodes in real processes, and why a topic is silent."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from dtvla_ros.ros import conversions, images, qos, waiting


@pytest.fixture
def stranger(graph: Any) -> Iterator[Node]:
    """Return a node of another participant: one may not give a topic two types."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node('stranger', context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize(('kind', 'name', 'profile', 'said'), [
    (None, '', None, '/front: nobody publishes it'),
    (Image, '/cell/front/image_raw', qos_profile_sensor_data,
     '/front: nobody publishes it; similar: /cell/front/image_raw'),
    (CompressedImage, '/front/compressed', qos_profile_sensor_data,
     '/front: nobody publishes it; similar: /front/compressed'),
    (String, '/cell/front', 10, '/front: nobody publishes it'),
    (Image, '/image_primary', 10, '/front: nobody publishes it'),  # another one of ours
    (CompressedImage, '/front', 10, '/front: /stranger publishes sensor_msgs/msg/CompressedImage, '
                                    'sensor_msgs/msg/Image is wanted'),
    (Image, '/front', qos_profile_sensor_data, '/stranger publishes it with an incompatible QoS'),
    (Image, '/front', 10, '/front: /stranger publishes it, but nothing of use has come')])
def test_why_a_topic_is_silent(
        graph: Any, stranger: Any, kind: Any, name: str, profile: Any, said: str) -> None:
    node = graph.listen()
    subscription = node.create_subscription(Image, '/front', lambda _: None, qos.LATEST)
    if kind is not None:
        stranger.create_publisher(kind, name, profile)
        graph.spin(lambda: any(end.node_name == 'stranger' for end in
                               node.get_publishers_info_by_topic(name)))
    why = waiting.why_silent(node, subscription)
    assert said in why and (said == why or 'QoS' in said)


def test_it_is_said_until_nothing_lacks_and_never_without_need(
        graph: Any, stranger: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, 'PERIOD', 0.05)
    node, lacks, said = graph.listen(), [], []
    graph.spin(lambda: '/stranger' in waiting.present(node))
    logger = type('Logger', (), {'warning': said.append, 'info': said.append})
    monkeypatch.setattr(node, 'get_logger', lambda: logger)
    waiting.tell_what_lacks(node, lambda: iter(lacks))
    graph.wait(0.3)
    assert not said
    lacks += ['a cable', '/a: nobody publishes it', '/b: nobody publishes it']
    graph.spin(lambda: len(said) > 3)
    assert said[0] == 'waiting for a cable' and said[2] == 'waiting for /b: nobody publishes it'
    head, nodes = said[1].split(' (nodes here: ')
    assert head == 'waiting for /a: nobody publishes it' and '; ROS_DOMAIN_ID=' in nodes
    assert '/stranger' in nodes and '/listener' not in nodes  # one that never closed may be there
    lacks.clear()
    graph.wait(0.3)
    assert said[-1] == 'waiting for nothing any more' and said.count(said[-1]) == 1


def test_a_simulated_clock_without_time_comes_first(
        graph: Any, stranger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, 'PERIOD', 0.05)
    node, said = graph.listen('--ros-args', '-p', 'use_sim_time:=true'), []
    logger = type('Logger', (), {'warning': said.append, 'info': said.append})
    monkeypatch.setattr(node, 'get_logger', lambda: logger)
    waiting.tell_what_lacks(node, lambda: iter(['a cable']))
    graph.spin(lambda: said and said[-1].startswith('waiting for /clock: nobody publishes it'))
    clock = stranger.create_publisher(Clock, '/clock', 1)
    graph.spin(lambda: said[-1] == 'waiting for /clock: /stranger has not begun')
    graph.every(0.1, lambda: clock.publish(Clock(clock=conversions.time_message(3.0))))
    graph.spin(lambda: said[-1] == 'waiting for a cable')


@pytest.mark.slow
def test_real_nodes_say_what_they_wait_for_until_it_is_there(graph: Any) -> None:
    """Policy and gate on a robot whose camera has another name and whose arm is silent."""
    def said(name: str, words: str) -> bool:
        return f'waiting for {words}' in graph.log(name)
    node = graph.listen()
    node.create_publisher(Image, '/front/image_raw', qos_profile_sensor_data)
    joints = node.create_publisher(JointState, '/joint_states', 10)
    graph.start('vla_node', 'robots/fr3_crisp')
    graph.start('command_gate', 'robots/fr3_crisp')
    for name, words in (
            ('vla_node', '/image_primary: nobody publishes it; similar: /front/image_raw'),
            ('vla_node', '/joint_states: /listener publishes it, but nothing of use has come'),
            ('command_gate', '/ee_pose: nobody publishes it')):
        graph.spin(partial(said, name, words), 60, words)
    stamp = node.get_clock().now().to_msg
    arm = [f'fr3_joint{k}' for k in range(1, 8)]
    graph.every(0.05, lambda: joints.publish(JointState(
        header=images.Header(stamp=stamp()), name=[
            *arm, 'fr3_finger_joint1', 'fr3_finger_joint2'], position=[0.01] * 9)))
    graph.wait(6.0)
    before = len(graph.log('command_gate'))
    graph.wait(6.0)
    later = graph.log('command_gate')[before:]
    assert '/ee_pose: nobody' in later and '/joint_states' not in later


@pytest.mark.parametrize('node', ['vla_node', 'command_gate', 'overlay', 'operator'])
def test_help_explains_how_a_node_is_started(start_peer: Any, graph: Any, node: str) -> None:
    graph.launch(node, '-m', f'dtvla_ros.nodes.{node}', '--help')
    assert graph.processes[node].wait(60) == 0
    said = graph.log(node)
    assert said.startswith(f'usage: {node} [--ros-args')
    assert f'\n  {node} --ros-args -r ' in said and 'dtvla run' in said and 'Traceback' not in said
