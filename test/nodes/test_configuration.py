"""Parameter files name only what the nodes really have, and the joints of the arm they are for."""

import pytest
import yaml
from support.graph import ROOT

from dtvla_ros.nodes.command_gate import CommandGate
from dtvla_ros.nodes.overlay import Overlay
from dtvla_ros.nodes.sim_bridge import SimBridge
from dtvla_ros.nodes.vla_node import VlaNode
from dtvla_ros.safety.gate import GateState

FR3_ARM = [f'fr3_joint{k}' for k in range(1, 8)]
FR3_FINGERS = ['fr3_finger_joint1', 'fr3_finger_joint2']
NODES = {'vla_node': VlaNode, 'command_gate': CommandGate, 'sim_bridge': SimBridge,
         'overlay': Overlay}
FILES = sorted(path for stem in ('sim*', 'robot_*', 'gazebo')
               for path in ROOT.glob(f'config/{stem}.yaml'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_every_parameter_in_a_file_exists_and_a_robot_does_not_move_by_itself(graph, path):
    given = {key.split('/')[-1]: section['ros__parameters']
             for key, section in yaml.safe_load(path.read_text()).items()}
    graph.listen('--ros-args', '--params-file', str(path))
    # Not '/**': in rcl it would win over, or lose against, -p and launch files unexpectedly.
    nodes = {name: graph.join(NODES[name]) for name in given}
    for name, values in given.items():
        assert {'use_sim_time', 'lockstep'} <= values.keys() or path.stem == 'gazebo'
        assert not [key for key in values if not nodes[name].has_parameter(key)], name
    if path.stem.startswith('robot'):
        vla, gate, made = given['vla_node'], given['command_gate'], nodes['command_gate']
        assert (vla['arm_joints'], vla['finger_joints'], gate['finger_joints']) == (
            FR3_ARM, FR3_FINGERS, FR3_FINGERS)
        assert made.get_parameter('preset').value == path.stem.removeprefix('robot_')
        assert made._gate.state is GateState.STOP and not made._lockstep
        assert made._gate._config.heartbeat_stop_s == 0.0, 'a silent policy stops at once'


def test_former_parameters_are_declared_without_effect_and_warned_of_once(graph):
    assert graph.start('vla_node', seed=3, keep_thought=4, policy='nowhere').wait(60) == 2
    [said] = [line for line in graph.log('vla_node').splitlines() if 'without effect' in line]
    assert 'seed and keep_thought' in said and 'dtvla eval --mode' in said
