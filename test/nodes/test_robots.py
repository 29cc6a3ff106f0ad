"""Each arm that starts as shipped: doctor has nothing to say, and the policy's chunk moves it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from std_msgs.msg import String
from std_srvs.srv import Trigger
from support.graph import NANO
from support.robots import DRIVERS, DrivenArm, moved
from trajectory_msgs.msg import JointTrajectory

from benchmarks.arm import HOME
from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.actions.contract import ActionContract
from dtvla_ros.actions.normalize import ActionStatistics
from dtvla_ros.conventions import CHANNELS
from dtvla_ros.policy.manifest import MANIFEST, PolicyManifest
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
    graph.spin(lambda: graph.call(Trigger, '/start').success, 60, 'the start')  # it hears us


def of_joints(folder: Path, joints: Sequence[str]) -> Path:
    """Write the manifest of a policy of joint positions; return its folder."""
    read = PolicyManifest.read(NANO)
    contract = ActionContract.of_joints(joints)
    manifest = replace(
        read, action=contract, config=replace(read.config, action_dim=contract.dim),
        statistics=ActionStatistics((-1.0,) * contract.dim, (1.0,) * contract.dim,
                                    contract.gripper_index))
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def ready(graph: Any, folder: Path, robot: str) -> Path:
    """Return the robot's file, doctor having nothing to say; of joints with a policy of them."""
    if not DRIVERS[robot].by_joints:
        assert lacking(graph, folder, '--robot', robot) == []
        return find_robot(robot)
    own = folder / 'cell.yaml'
    own.write_text(find_robot(robot).read_text().replace(
        'policy: models/nano', f'policy: {of_joints(folder, DRIVERS[robot].arm)}'))
    assert lacking(graph, folder, str(own)) == []
    return own


@pytest.mark.slow
@pytest.mark.parametrize('robot', DRIVERS)
def test_from_doctor_to_a_moving_chunk(graph: Any, tmp_path: Any, robot: str) -> None:
    """The chunk is the test's: what a policy sees of such an arm is in test_fr3."""
    node = graph.listen(gate=(DiagnosticStatus, '/gate_state'))
    driver = DRIVERS[robot]
    arm = DrivenArm(node, driver)
    file = ready(graph, tmp_path, robot)
    gate = plan(ParameterFile.read(file), {})['command_gate'].given(
        {**PATIENT['command_gate'], 'priority': 0})
    chunks = node.create_publisher(JointTrajectory, '/vla/action_chunk', qos.LATEST)
    state = node.create_publisher(DiagnosticStatus, '/vla/state', qos.LATCHED)
    graph.every(0.05, lambda: state.publish(
        conversions.status_message('vla', 'ACTING', {'task': '1', 'reason': ''})))

    def decided() -> None:
        """Send a chunk that goes up, or turns every joint, and closes the gripper."""
        if arm.controller is not None:
            ahead, channels = arm.controller.at + 0.02 * np.arange(1, 17)[:, None], (
                *driver.arm, 'gripper')
        else:
            ahead, channels = np.tile([0.0, 0, 0.4, 0, 0, 0], (16, 1)), CHANNELS
        rows = np.column_stack((ahead, np.ones(16))).astype(np.float32)
        chunks.publish(conversions.chunk_message(Chunk(
            node.get_clock().now().nanoseconds * 1e-9, 0.05, rows, channels)))
    graph.every(0.2, decided)
    graph.launch('command_gate', '-m', 'dtvla_ros.nodes.command_gate',
                 *gate.ros_arguments(str(file)))
    graph.spin(lambda: graph.said('gate')[1] == 'not started', 120, 'the gate')
    graph.spin(lambda: graph.call(Trigger, '/start').success, 60, 'the start')  # it hears us
    graph.spin(moved(arm), 60, 'motion')
    graph.spin(lambda: arm.goals, 30, 'a goal of the gripper')
    assert arm.goals[0] == pytest.approx(driver.closes[1]) and not arm.refused
    assert driver.by_joints or arm.position[2] > HOME[2], 'up, as the base frame has it'
    told = conversions.status_values(graph.last('gate'))['on_silence']
    assert told.startswith('MoveIt Servo halts') if driver.kind is TwistStamped else (
        'last target' in told)
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
