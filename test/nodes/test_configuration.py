"""Parameter files name only what the nodes really have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dtvla_ros.nodes.command_adapters import PRESETS
from dtvla_ros.nodes.settings import LIMITS, SETTINGS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob('config/sim*.yaml'), *ROOT.glob('config/robot_*.yaml')])
NODES = {
    'vla_node': ('vla_node', 'pose_source'),
    'command_gate': ('command_gate', 'settings', 'pose_source', 'command_adapters', 'arm_status'),
    'sim_bridge': ('sim_bridge',),
}


def declared(node):
    names = set()
    for file in NODES[node]:
        source = (ROOT / 'dtvla_ros' / 'nodes' / f'{file}.py').read_text()
        names |= set(re.findall(r"(?:declare\(\s*\w+, |seconds\(\s*)'(\w+)'", source))
    return names | set({'vla_node': SETTINGS, 'command_gate': LIMITS}.get(node, ()))


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_every_parameter_in_a_file_exists(path):
    for key, section in yaml.safe_load(path.read_text()).items():
        node = key.split('/')[-1]
        given = set(section['ros__parameters'])
        # Not '/**': in rcl it would win over, or lose against, -p and launch files unexpectedly.
        assert node in NODES
        assert {'use_sim_time', 'lockstep'} <= given
        assert given - {'use_sim_time'} <= declared(node), f'{path.name}: {key}'


@pytest.mark.parametrize('preset', PRESETS[1:])
def test_a_robots_gate_starts_from_its_file_and_does_not_move_by_itself(graph, preset):
    from dtvla_ros.nodes.command_gate import CommandGate
    from dtvla_ros.safety.gate import GateState

    gate = graph.join(CommandGate, '--ros-args', '--params-file',
                      str(ROOT / 'config' / f'robot_{preset}.yaml'))
    assert gate.get_parameter('preset').value == preset
    assert gate._gate.state is GateState.STOP and not gate._lockstep
    assert gate._gate._config.heartbeat_stop == 0.0, 'a silent policy stops at once'
