"""Each arm that starts as shipped: doctor has nothing to say, and the policy's chunk moves it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from std_msgs.msg import String
from std_srvs.srv import Trigger
from support.robots import DRIVERS, DrivenArm, moved

from dtvla_ros.ros import conversions, qos
from dtvla_ros.ros.params_file import ParameterFile, find_robot, robots
from dtvla_ros.ros.runner import plan
from test.faults.rig import PATIENT, TASK

SIMULATED = 'panda_sim'


def test_every_robot_is_played_by_a_test() -> None:
    assert robots().keys() == DRIVERS.keys() | {SIMULATED}


def lacking(graph: Any, folder: Any, *words: str) -> list[dict[str, Any]]:
    """Run ``dtvla doctor`` beside the robot; return the rows that lack."""
    report = folder / 'doctor.json'
    process = subprocess.Popen(
        [sys.executable, '-m', 'dtvla_ros.cli', 'doctor', *words, '--json', str(report)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    graph.spin(lambda: process.poll() is not None, 120, 'dtvla doctor')
    assert report.exists(), process.communicate()[0]
    return [row for row in json.loads(report.read_text())['rows'] if row['ok'] is False]


def begun(graph: Any) -> None:
    """Tell the policy its task, and start the gate once there is a chunk."""
    instruction = graph.node.create_publisher(String, '/instruction', qos.LATCHED)
    graph.spin(lambda: graph.said('vla')[0] == 'IDLE', 240, 'IDLE')
    instruction.publish(String(data=TASK))
    graph.spin(lambda: graph.said('vla')[0] == 'ACTING', 90, 'ACTING')
    assert graph.call(Trigger, '/start').success


@pytest.mark.slow
@pytest.mark.parametrize('robot', DRIVERS)
def test_from_doctor_to_a_moving_chunk(graph: Any, tmp_path: Any, robot: str) -> None:
    node = graph.listen(vla=(DiagnosticStatus, '/vla/state'),
                        gate=(DiagnosticStatus, '/gate_state'))
    arm = DrivenArm(node, DRIVERS[robot])
    assert lacking(graph, tmp_path, '--robot', robot) == []
    file = ParameterFile.read(find_robot(robot))
    for name, process in plan(file, {}).items():
        own = process.given({**PATIENT[name], **(
            {'on_cut': 'act', 'threads': 1} if name == 'vla_node' else {'priority': 0})})
        graph.launch(name, '-m', f'dtvla_ros.nodes.{name}', *own.ros_arguments(str(file.path)))
    begun(graph)
    graph.spin(moved(arm), 60, 'motion')
    graph.spin(lambda: arm.goals, 30, 'a goal of the gripper')
    assert not arm.refused
    told = conversions.status_values(graph.last('gate'))['on_silence']
    assert told.startswith('MoveIt Servo halts' if 'servo' in robot else 'keeps the last target')
    assert graph.call(Trigger, '/stop').success
    arm.server.destroy()


@pytest.mark.slow
def test_the_simulated_arm_is_started_told_and_moves(graph: Any, tmp_path: Any) -> None:
    graph.listen(vla=(DiagnosticStatus, '/vla/state'), gate=(DiagnosticStatus, '/gate_state'),
                 pose=(PoseStamped, '/ee_pose'))
    graph.launch('run', '-m', 'dtvla_ros.cli', 'run', '--robot', SIMULATED)
    graph.spin(lambda: graph.said('vla')[0] == 'IDLE' and graph.last('pose'), 240, 'IDLE')
    assert lacking(graph, tmp_path) == []
    assert graph.said('gate') == ('STOP', 'not started')
    begun(graph)

    def place() -> Any:
        return conversions.pose_arrays(graph.last('pose').pose)[0]
    home = place()
    graph.spin(lambda: abs(place() - home).max() > 0.01, 60, 'motion')
    assert graph.interrupt('run') == 0
