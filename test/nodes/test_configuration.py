"""Parameter files name only what the nodes really have."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from dtvla_ros.nodes.settings import LIMITS, GateSettings, VlaSettings
from dtvla_ros.nodes.sim_bridge import SimSettings

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob('config/sim*.yaml'), *ROOT.glob('config/robot_*.yaml')])
NODES = {
    'vla_node': (VlaSettings, 'vla_node', 'pose_source'),
    'command_gate': (GateSettings, 'pose_source', 'command_adapters', 'arm_status'),
    'sim_bridge': (SimSettings,),
}


def declared(node):
    table, *files = NODES[node]
    names = {entry.name for entry in fields(table)}
    for file in files:
        source = (ROOT / 'dtvla_ros' / 'nodes' / f'{file}.py').read_text()
        names |= set(re.findall(r"declare\(\s*\w+, '(\w+)'", source))
    return names | set(LIMITS if node == 'command_gate' else ())


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_every_parameter_in_a_file_exists(path):
    for key, section in yaml.safe_load(path.read_text()).items():
        node = key.split('/')[-1]
        given = set(section['ros__parameters'])
        # Not '/**': in rcl it would win over, or lose against, -p and launch files unexpectedly.
        assert node in NODES
        assert {'use_sim_time', 'lockstep'} <= given
        assert given - {'use_sim_time'} <= declared(node), f'{path.name}: {key}'


@pytest.mark.parametrize('preset', ['servo', 'crisp', 'fzi'])
def test_a_robots_gate_starts_from_its_file_and_does_not_move_by_itself(graph, preset):
    from dtvla_ros.nodes.command_gate import CommandGate
    from dtvla_ros.safety.gate import GateState

    gate = graph.join(CommandGate, '--ros-args', '--params-file',
                      str(ROOT / 'config' / f'robot_{preset}.yaml'))
    assert gate.get_parameter('preset').value == preset
    assert gate._gate.state is GateState.STOP and not gate._lockstep
    assert gate._gate._config.heartbeat_stop == 0.0, 'a silent policy stops at once'


def test_former_parameters_are_declared_without_effect_and_warned_of_once(graph):
    process = graph.start('vla_node', '-p', 'seed:=3', '-p', 'keep_thought:=4', '-p',
                          'policy:=nowhere', '-p', 'autostart:=true')
    assert process.wait(60) == 2
    said = [line for line in graph.log('vla_node').splitlines() if 'without effect' in line]
    assert len(said) == 1 and 'seed and keep_thought' in said[0]
    assert 'dtvla eval --mode' in said[0]
