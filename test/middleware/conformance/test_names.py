"""Names, namespaces, remapping, and the graph that shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dtvla_ros.middleware.messages import String, Trigger

Spin = Callable[..., bool]


def test_names_namespaces_and_remapping(make_node: Any, spin_until: Spin) -> None:
    node = make_node('vla_node', (
        '--ros-args', '-r', '__node:=brain', '-r', '__ns:=/robot', '-r', 'image:=/camera/rgb',
        '-r', 'brain:state:=mind', '-r', 'other:reasoning:=nowhere', '-r', '~/go:=/start'))
    assert node.get_fully_qualified_name() == '/robot/brain'
    assert node.create_publisher(String, 'image', 1).topic_name == '/camera/rgb'
    assert node.create_publisher(String, 'state', 1).topic_name == '/robot/mind'
    assert node.create_publisher(String, 'reasoning', 1).topic_name == '/robot/reasoning'
    assert node.create_publisher(String, '~/own', 1).topic_name == '/robot/brain/own'
    assert node.resolve_service_name('~/go') == '/start'
    assert node.resolve_topic_name('~/other') == '/robot/brain/other'


@pytest.mark.parametrize(('rule', 'topics', 'services'), [
    ('chatter:=/a', '/a', '/a'), ('/ns/chatter:=b', '/ns/b', '/ns/b'),
    ('rostopic://chatter:=t', '/ns/t', '/ns/chatter'),
    ('rosservice://chatter:=s', '/ns/chatter', '/ns/s'),
    ('tested:chatter:=mine', '/ns/mine', '/ns/mine'),
    ('someone:chatter:=theirs', '/ns/chatter', '/ns/chatter'),
    ('chatter:=~/private', '/ns/tested/private', '/ns/tested/private'),
    ('/chatter:=/elsewhere', '/ns/chatter', '/ns/chatter')])
def test_one_rule_at_a_time(make_node: Any, rule: str, topics: str, services: str) -> None:
    node = make_node('tested', ('--ros-args', '-r', rule), namespace='/ns')
    assert node.resolve_topic_name('chatter') == topics
    assert node.resolve_service_name('chatter') == services


def test_the_first_rule_wins(make_node: Any) -> None:
    node = make_node('tested', ('--ros-args', '-r', 'a:=b', '-r', 'a:=c', '-r', 'b:=d'))
    assert node.resolve_topic_name('a') == '/b'


def test_a_node_may_ignore_the_command_line(make_node: Any) -> None:
    node = make_node('tested', ('--ros-args', '-r', '__ns:=/robot', '-p', 'p:=1'),
                     use_global_arguments=False)
    assert node.get_fully_qualified_name() == '/tested'
    assert node.declare_parameter('p', 2).value == 2


def test_the_graph_knows_who_does_what(make_node: Any, spin_until: Spin) -> None:
    node, other = make_node('tested'), make_node('other', namespace='/robot')
    node.create_publisher(String, 'word', 1)
    other.create_subscription(String, '/word', print, 1)
    other.create_service(Trigger, '~/go', lambda request, response: response)
    client = node.create_client(Trigger, '/robot/other/go')
    assert client.wait_for_service(timeout_sec=5.0)
    assert spin_until(lambda: {('tested', '/'), ('other', '/robot')} <= set(
        node.get_node_names_and_namespaces()), node)
    word, go = ('/word', ['std_msgs/msg/String']), ('/robot/other/go', ['std_srvs/srv/Trigger'])

    def known() -> bool:
        return (word in node.get_publisher_names_and_types_by_node('tested', '/')
                and word in node.get_subscriber_names_and_types_by_node('other', '/robot')
                and go in node.get_service_names_and_types_by_node('other', '/robot')
                and go in node.get_client_names_and_types_by_node('tested', '/'))
    assert spin_until(known, node)
    assert word not in node.get_publisher_names_and_types_by_node('other', '/robot')
    assert go not in node.get_service_names_and_types_by_node('tested', '/')
    assert word in node.get_topic_names_and_types()
    assert go in node.get_service_names_and_types()
    assert ('/tested/get_parameters', ['rcl_interfaces/srv/GetParameters']) in (
        node.get_service_names_and_types())
    assert spin_until(lambda: [node.count_publishers('word'),
                               node.count_subscribers('word')] == [1, 1], node)
    if hasattr(node, 'count_services'):  # not in Humble
        assert spin_until(lambda: [node.count_services('/robot/other/go'),
                                   node.count_clients('/robot/other/go')] == [1, 1], node)
    with pytest.raises(RuntimeError):
        node.get_publisher_names_and_types_by_node('nobody', '/')


def test_counting_does_not_remap(make_node: Any, spin_until: Spin) -> None:
    node = make_node('tested', ('--ros-args', '-r', 'word:=other'))
    node.create_publisher(String, 'word', 1)
    assert spin_until(lambda: node.count_publishers('/other') == 1, node)
    assert node.count_publishers('word') == 0
    assert len(node.get_publishers_info_by_topic('word')) == 1
