"""Parameter files name only what the nodes really have, and the joints of the arm they are for."""

from difflib import get_close_matches

import pytest
import yaml
from support.graph import ROOT

from dtvla_ros.nodes.command_gate import CommandGate
from dtvla_ros.nodes.operator import Operator
from dtvla_ros.nodes.overlay import Overlay
from dtvla_ros.nodes.record_server import RecordServer
from dtvla_ros.nodes.sim_bridge import SimBridge
from dtvla_ros.nodes.task_server import TaskServer
from dtvla_ros.nodes.vla_node import VlaNode
from dtvla_ros.ros.bringup import OPTIONAL, SECTION
from dtvla_ros.ros.parameters import MISSPELT, TWINS, require_known
from dtvla_ros.safety.gate import GateState

PRESET = {'crisp': 'crisp', 'servo': 'servo', 'fzi': 'fzi', 'jtc': 'joint_trajectory',
          'so101': 'joint_trajectory'}  # of the gate, by the end of a file's name
SHARED = ('arm_joints', 'finger_joints', 'base_frame', 'pose_source', 'ee_frame', 'gripper_width',
          'finger_open_position', 'finger_closed_position', 'action_space',
          'chunk_rate')  # of policy and gate
FR3_ARM = [f'fr3_joint{k}' for k in range(1, 8)]
FR3_FINGERS = ['fr3_finger_joint1', 'fr3_finger_joint2']
NODES = {'vla_node': VlaNode, 'command_gate': CommandGate, 'sim_bridge': SimBridge,
         'overlay': Overlay, 'operator': Operator, 'task_server': TaskServer,
         'record_server': RecordServer}
FILES = sorted(path for stem in ('sim*', 'gazebo', 'robots/*')
               for path in ROOT.glob(f'config/{stem}.yaml'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_every_parameter_in_a_file_exists_and_a_robot_does_not_move_by_itself(graph, path):
    given = {key.split('/')[-1]: section['ros__parameters']
             for key, section in yaml.safe_load(path.read_text()).items() if key != SECTION}
    graph.listen('--ros-args', '--params-file', str(path))
    # Not '/**': in rcl it would win over, or lose against, -p and launch files unexpectedly.
    nodes = {name: graph.join(NODES[name]) for name in given}
    for name, values in given.items():
        assert {'use_sim_time', 'lockstep'} <= values.keys() or name in OPTIONAL
        assert not [key for key in values if not nodes[name].has_parameter(key)], name
    if path.parent.name == 'robots':
        vla, gate, made = given['vla_node'], given['command_gate'], nodes['command_gate']
        shared = {*SHARED} & vla.keys()
        assert {'arm_joints', 'finger_joints', 'base_frame'} <= shared
        assert [vla[name] for name in shared] == [gate[name] for name in shared]
        assert not given['task_server']['start_gate']
        assert made._gate.state is GateState.STOP and not made._lockstep
        assert made._gate._config.heartbeat_stop_s == 0.0, 'a silent policy stops at once'
        if 'sim_bridge' not in given:
            assert 'ntested against hardware' in path.read_text().split('/bringup')[0]
            assert not given['operator']['allow_control']
            assert made.get_parameter('preset').value == PRESET[path.stem.rpartition('_')[2]]


LEGAL = [  # whom a file is for, and what it says
    (NODES, '/**: {ros__parameters: {use_sim_time: true, arm_joints: [a], rate: 20.0}}'),
    (NODES, '/**: {ros__parameters: {autostart: true, auto_start: true, robot_description: x}}'),
    (NODES, '/**: {ros__parameters: {qos_overrides: {/tf: {publisher: {depth: 3}}}}}'),
    (['vla_node'], '/*/vla_node: {ros__parameters: {mode: full}}'),
    (['vla_node'], '/vla/*: {ros__parameters: {mode: full}}'),
    (['vla_node'], '/**/vla_node: {ros__parameters: {start_type_description_service: true}}'),
    (['vla_node'], 'vla: {vla_node: {ros__parameters: {mode: full}}}'),
    (['command_gate'], 'command_gate: {ros__parameters: {rate: 20.0}}'),
    (['command_gate', 'overlay', 'operator'], '/*: {ros__parameters: {rate: 20.0}}'),
    (['command_gate'], '{/a: {ros__parameters: {x: 1}}, /command_gate: {ros__parameters: {}}}')]


def test_files_with_wildcards_and_for_several_nodes_are_legal(graph, tmp_path):
    graph.listen('--ros-args', '-r', 'vla_node:__ns:=/vla')
    nodes, path = {name: graph.join(kind) for name, kind in NODES.items()}, tmp_path / 'cell.yaml'
    texts = [text for text in (file.read_text() for file in FILES)
             if 'action_space:' not in text]  # a gate of joints has other parameters
    for names, text in (*LEGAL, *((yaml.safe_load(text), text) for text in texts)):
        path.write_text(text)
        for name in {*names} - {SECTION}:
            require_known(nodes[name.split('/')[-1]], ['--ros-args', '--params-file', str(path)])
    had = {name: {*node._parameters} for name, node in nodes.items()}
    assert not [(one, near) for mine in had.values() for others in had.values()
                for one in others - mine
                if (near := get_close_matches(one, mine, 1, MISSPELT)) and one not in TWINS], (
        "nearly another node's name would be refused in a section for all nodes")


def test_former_parameters_are_declared_without_effect_and_warned_of_once(graph):
    assert graph.start('vla_node', seed=3, keep_thought=4, policy='nowhere').wait(60) == 2
    [said] = [line for line in graph.log('vla_node').splitlines() if 'without effect' in line]
    assert 'seed and keep_thought' in said and 'dtvla eval --mode' in said
