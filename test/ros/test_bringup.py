"""What the description of processes says is what rcl makes of its words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import rclpy
from rclpy.node import Node

from dtvla_ros.conventions import RECORDED
from dtvla_ros.data.robot_names import parse_topics
from dtvla_ros.errors import UserError
from dtvla_ros.ros import bringup


def made(process: bringup.NodeProcess, *files: str) -> tuple[str, dict[str, Any]]:
    """Return the full name and the parameters of a node with a process' arguments."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node(process.name, context=context, cli_args=process.ros_arguments(*files),
                automatically_declare_parameters_from_overrides=True, enable_rosout=False,
                start_parameter_services=False)
    try:
        return node.get_fully_qualified_name(), {
            name: parameter.value for name, parameter in node._parameters.items()}
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_values_keep_their_types_and_the_file_counts_where_nothing_is_given(
        graph: Any, tmp_path: Path) -> None:
    file = tmp_path / 'a file.yaml'
    file.write_text('/mind/vla_node: {ros__parameters: {mode: masked, engine: torch}}')
    nodes = bringup.node_processes({
        'namespace': 'mind', 'policy': '123', 'mode': 'full', 'use_sim_time': 'true',
        'tasks': "['a', 'no']", 'episodes': '3', 'result_file': 'a "b".json'}, simulated=True)
    assert set(nodes) == {'vla_node', 'command_gate', 'sim_bridge'}
    name, values = made(nodes['vla_node'], str(file))
    assert name == '/mind/vla_node'
    assert values.items() >= {'policy': '123', 'mode': 'full', 'engine': 'torch',
                              'use_sim_time': True}.items()
    name, values = made(nodes['sim_bridge'].given({'seed': 5, 'out': Path('x'), 'few': (1.5,)}))
    assert name == '/sim_bridge'
    assert values.items() >= {
        'tasks': ['a', 'no'], 'episodes': 3, 'result_file': 'a "b".json', 'seed': 5,
        'out': 'x', 'few': [1.5], 'use_sim_time': True}.items()


def test_tasks_may_be_written_as_in_other_commands() -> None:
    for text in ('a,b', 'a, b', "['a', 'b']", '[a, b]'):
        bridge = bringup.node_processes({'tasks': text}, simulated=True)['sim_bridge']
        assert bridge.parameters['tasks'] == ['a', 'b']


def test_topics_reach_every_node_that_uses_them() -> None:
    nodes = bringup.node_processes({
        'image_wrist': '/hand', 'transport': 'compressed', 'gate_state': '/g', 'overlay': 'true',
        'operator': 'true', 'record_server': 'true', 'command_topic': '/arm',
        'namespace': 'mind'})
    rules = {name: dict(node.remappings) for name, node in nodes.items()}
    assert set(rules) == {'vla_node', 'command_gate', 'overlay', 'operator', 'record_server'}
    for name in ('vla_node', 'overlay', 'operator'):
        assert rules[name].items() >= {
            'image_primary': '/image_primary/compressed', 'image_wrist': '/hand/compressed',
            'gate_state': '/g'}.items()
    assert rules['command_gate'].items() >= {
        'gate_state': '/g', 'twist_cmd': '/arm', 'target_pose': '/arm',
        'vla/state': '/mind/state'}.items()
    assert rules['operator'].items() >= {
        'vla/reset_episode': '/mind/reset_episode', 'vla/tasks': '/mind/tasks',
        'twist_cmd': '/arm', 'estop': '/estop', 'instruction': '/instruction'}.items()
    assert set(bringup.viewer_commands({}, nodes, '')) == set()
    words = bringup.viewer_commands({'record': 'a b', 'viz': 'rerun'}, nodes, 'robot.yaml')
    renamed = {
        'image_primary': '/image_primary/compressed', 'image_wrist': '/hand/compressed',
        'gate_state': '/g', **dict.fromkeys(bringup.COMMAND_NAMES, '/arm'),
        'vla/action_chunk': '/mind/action_chunk', 'vla/state': '/mind/state',
        **{f'vla/{name}': f'/mind/{name}'
           for name in ('reasoning', 'tasks', 'thought_override', 'question')
           if f'/vla/{name}' in RECORDED}}
    assert rules['record_server'] == renamed
    assert words['view'][:2] == ['view', '--spawn']
    assert parse_topics(words['view'][3::2]) == renamed
    assert words['record'][:3] == ['record', '--out', 'a b']
    assert words['record'][-2:] == ['--params-file', 'robot.yaml']
    assert parse_topics(words['record'][4:-2:2]) == renamed


@pytest.mark.parametrize(('name', 'text'), [
    ('episodes', 'many'), ('episodes', '2.5'), ('use_sim_time', '1'), ('tasks', '3'),
    ('tasks', '[a')])
def test_what_is_no_value_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(UserError, match=f'^{name} .*{re.escape(text)}'):
        bringup.node_processes({name: text}, simulated=True)
