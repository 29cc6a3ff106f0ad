"""``dtvla run``: which processes a file starts, their lines on a terminal, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.beside import wait_for

from dtvla_ros.data.robot_names import names_in_params
from dtvla_ros.errors import UserError
from dtvla_ros.ros.bringup import told_by
from dtvla_ros.ros.params_file import (
    ParameterFile,
    configurations,
    find_configuration,
    find_robot,
)
from dtvla_ros.ros.runner import plan

SERVO = '/servo_node/delta_twist_cmds'


def written(folder: Path, text: str) -> ParameterFile:
    path = folder / 'cell.yaml'
    path.write_text(text)
    return ParameterFile.read(path)


def test_a_file_gives_each_node_what_rcl_gives_it(tmp_path: Path) -> None:
    file = written(tmp_path, (
        '/mind/vla_node: {ros__parameters: {mode: masked}}\n'
        '/**: {ros__parameters: {use_sim_time: true, mode: full}}\n'
        '/*/vla_node: {ros__parameters: {threads: 3}}\n'
        'mind: {deep: {vla_node: {ros__parameters: {threads: 5}}}}\n'
        'command_gate: {ros__parameters: {preset: fzi}}\n'))
    assert file.of('/mind/vla_node') == {'use_sim_time': True, 'mode': 'full', 'threads': 3}
    assert file.of('/mind/deep/vla_node') == {'use_sim_time': True, 'mode': 'full', 'threads': 5}
    assert file.of('/command_gate')['preset'] == 'fzi'
    assert file.named('vla_node') == ['/mind/vla_node', '/mind/deep/vla_node']


@pytest.mark.parametrize(('text', 'said'), [
    ('', 'no parameters of a node'), ('a: [', 'no YAML'), ('- 1', 'no parameters'),
    ('a: {b: 3}', 'no parameters'), ('a: &a {b: *a}', 'holds itself'), ('{a: ' * 3000, 'no YAML'),
    ('/a: {ros__parameters: {}}\n/a: {ros__parameters: {}}', '/a stands twice'),
    ('/a:\n  ros__parameters: {b: 1, b: 2}', 'b stands twice'),
    ('/a:\n  ros__parameters:\n    <<: {b: 1}', '<< is not read'),
    (None, 'no such file')])
def test_what_is_no_parameter_file_is_one_line(
        tmp_path: Path, text: str | None, said: str) -> None:
    with pytest.raises(UserError, match=r'cell\.yaml: ') as refused:
        if text is None:
            ParameterFile.read(tmp_path / 'cell.yaml')
        else:
            written(tmp_path, text)
    assert said in str(refused.value) and '\n' not in str(refused.value)


@pytest.mark.parametrize('name', configurations())
def test_every_configuration_starts_what_its_launch_file_starts(name: str) -> None:
    nodes = plan(ParameterFile.read(find_configuration(name)), {})
    simulated = {'sim_bridge'} if 'sim' in name else set()
    assert nodes.keys() == {'vla_node', 'command_gate'} | simulated
    assert nodes['vla_node'].namespace == 'vla' and configurations()[name]
    rules = dict(nodes['command_gate'].remappings)
    assert rules.get('twist_cmd') == {
        'servo': SERVO, 'crisp': '/target_pose',
        'fzi': '/cartesian_compliance_controller/target_frame',
        'jtc': '/scaled_joint_trajectory_controller/joint_trajectory',
        'so101': '/follower/arm_trajectory_controller/joint_trajectory',
    }.get(name.rpartition('_')[2])
    assert find_configuration(name) == find_configuration(f'{name}.yaml')


def test_a_robots_file_names_its_topics_and_what_is_given_counts_more(tmp_path: Path) -> None:
    file = ParameterFile.read(find_robot('ur5e_servo'))
    nodes = plan(file, {'image_wrist': '/hand'})
    policy, gate = (dict(nodes[name].remappings) for name in ('vla_node', 'command_gate'))
    assert policy['image_primary'] == '/camera/primary/color/image_raw'
    assert policy['image_wrist'] == '/hand'
    assert gate['gripper_action/_action/send_goal'] == (
        '/robotiq_gripper_controller/gripper_cmd/_action/send_goal')
    assert dict(plan(file, {'gripper_topic': '/mine'})['command_gate'].remappings)[
        'gripper_cmd'] == '/mine'
    told = names_in_params(file)
    assert told.topics['image_wrist'] == '/camera/wrist/color/image_raw'
    assert told.topics['twist_cmd'] == SERVO and told.opening.metres([0.4]) == 0.0425
    wrong = written(tmp_path, '/bringup: {ros__parameters: {image_wirst: /hand}}\n')
    with pytest.raises(UserError, match='no argument image_wirst; did you mean image_wrist'):
        told_by(wrong)


def test_namespace_transport_and_preset_come_from_the_file_unless_given(tmp_path: Path) -> None:
    file = written(tmp_path, (
        '/mind/vla_node: {ros__parameters: {transport: compressed}}\n'
        '/command_gate: {ros__parameters: {preset: servo}}\n'))
    nodes = plan(file, {})
    assert nodes['vla_node'].namespace == 'mind'
    policy, gate = (dict(nodes[name].remappings) for name in ('vla_node', 'command_gate'))
    assert policy['image_wrist'] == '/image_wrist/compressed'
    assert (gate['vla/state'], gate['twist_cmd']) == ('/mind/state', SERVO)
    nodes = plan(file, {'transport': 'raw', 'command_topic': '/mine', 'image_wrist': '/hand'})
    assert dict(nodes['vla_node'].remappings)['image_wrist'] == '/hand'
    assert dict(nodes['command_gate'].remappings)['twist_cmd'] == '/mine'


@pytest.mark.parametrize(('words', 'said'), [
    ('fr3_serv', 'did you mean fr3_servo?'), ('nowhere', 'choose from sim, '),
    ('robot_servo', 'dtvla run --robot fr3_servo'), ('--robot crisp', 'did you mean fr3_crisp?'),
    ('config/robot_fzi.yaml', 'dtvla run --robot fr3_fzi'),
    ('--robot abb', 'choose from fr3_crisp'), ('sim --robot fr3_crisp', 'name one of them'),
    ('--robot panda_sim --gripper-topic /x', '--gripper-topic is for an arm'),
    ('sim --command-topic /x', '--command-topic is for an arm'),
    ('fr3_servo --episodes 3', '--episodes is for a simulated arm'),
    ('config/gz_bridge.yaml', 'gz_bridge.yaml: no parameters'),
    ('config/gazebo_controllers.yaml', 'no parameters for /vla/vla_node, only for '),
    ('fr3_crisp --namespace mind', 'no parameters for /mind/vla_node, only for /vla/vla_node'),
    ('sim --engine steam', '--engine steam: choose from onnx, torch'),
    ('sim --episodes many', 'episodes many: a whole number'),
    ('sim --viz rviz', 'rviz2 -d')])
def test_what_does_not_fit_is_one_line(dtvla: Any, words: str, said: str) -> None:
    code, out, err = dtvla('run', *words.split())
    assert (code, out, err.count('\n')) == (2, '', 1) and err.startswith('error: ')
    assert said in err


def test_without_a_configuration_they_are_listed(dtvla: Any) -> None:
    code, out, err = dtvla('run')
    assert (code, err) == (0, '')
    for name, meaning in configurations().items():
        assert any(line.startswith(name) and meaning in line for line in out.splitlines())


class Run:
    """``dtvla run`` as a process whose lines go to a file."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.log = folder / 'said'
        with self.log.open('w') as log:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'dtvla_ros.cli', 'run', *words], stdout=log,
                stderr=subprocess.STDOUT, env={**os.environ, 'TMPDIR': str(folder)})

    def said(self) -> str:
        return self.log.read_text()

    def child(self, name: str) -> int:
        """Return the process that runs a node of ours."""
        for path in Path('/proc').glob('[0-9]*'):
            try:
                words = (path / 'cmdline').read_text()
                parent = int((path / 'stat').read_text().rsplit(')', 1)[1].split()[1])
            except OSError:
                continue
            if parent == self.process.pid and f'nodes.{name}' in words:
                return int(path.name)
        raise AssertionError(f'{name} does not run; {self.said()}')


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
@pytest.mark.slow
def test_ctrl_c_ends_all_and_a_death_ends_the_rest(graph: Any, tmp_path: Path) -> None:
    run = Run(tmp_path, 'fr3_crisp')
    wait_for(lambda: all(f'\n{name} ' in run.said() for name in ('vla_node    ', 'command_gate')))
    children = [run.child(name) for name in ('vla_node', 'command_gate')]
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(30) == 0, run.said()
    assert 'stopping' in run.said() and not [c for c in children if Path(f'/proc/{c}').exists()]
    assert not list(tmp_path.glob('dtvla-run-*'))

    run = Run(tmp_path, 'fr3_crisp')
    wait_for(lambda: '\ncommand_gate ' in run.said())
    policy, gate = (run.child(name) for name in ('vla_node', 'command_gate'))
    os.kill(gate, signal.SIGKILL)
    assert run.process.wait(30) == 1
    assert 'error: command_gate ended with SIGKILL' in run.said()
    assert not Path(f'/proc/{policy}').exists()
    assert [path.name for path in tmp_path.glob('dtvla-run-*/*')], 'logs are kept'


@pytest.mark.slow
def test_what_a_node_refuses_ends_the_run_with_its_name(graph: Any, tmp_path: Path) -> None:
    run = Run(tmp_path, 'fr3_crisp', '--policy', 'no/such/folder')
    assert run.process.wait(60) == 2
    last = run.said().splitlines()[-1]
    assert last.startswith('error: vla_node ended with exit code 2: no/such/folder'), run.said()


@pytest.mark.slow
def test_a_simulated_arm_ends_after_its_episodes(graph: Any, tmp_path: Path) -> None:
    result = tmp_path / 'result.json'
    run = Run(tmp_path, 'sim', '--tasks', 'put_the_can_in_the_wooden_bin', '--result-file',
              str(result), '--record', str(tmp_path / 'bag'))
    assert run.process.wait(180) == 0, run.said()
    assert 'sim_bridge   put_the_can_in_the_wooden_bin: 1 of 1' in run.said()
    assert result.exists() and (tmp_path / 'bag' / 'metadata.yaml').exists()
