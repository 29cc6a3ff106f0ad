"""Parameter files and messages with one thing wrong: used or refused in one line by the nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, String
from support.beside import fresh_domain
from support.graph import ROOT, noise
from trajectory_msgs.msg import JointTrajectory

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import ARM_JOINTS, CAMERAS, FINGER_JOINTS
from dtvla_ros.data.robot_names import names_in_params
from dtvla_ros.nodes.command_gate import CommandGate
from dtvla_ros.nodes.overlay import Overlay
from dtvla_ros.nodes.vla_node import VlaNode
from dtvla_ros.ros import conversions, images, run, runner
from dtvla_ros.ros.params_file import ParameterFile
from dtvla_ros.safety.gate import Gate, GateConfig
from dtvla_ros.safety.limits import PROFILES
from test.fuzz.mutations import LONGEST, mutate_folder, mutated, one_line_of, seeds

NODES = {'/command_gate': CommandGate, '/vla/vla_node': VlaNode, '/overlay': Overlay}
FILES = [ROOT / f'config/{name}.yaml' for name in ('robots/ur5e_servo', 'sim_realtime', 'gazebo')]
RATES = 20.0  # of control [Hz]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be on a graph of one's own; looking for garbage takes longer than a node lives here."""
    monkeypatch.setenv('ROS_DOMAIN_ID', fresh_domain())
    monkeypatch.setattr(run, '_settle', lambda: None)


def damaged_file(folder: Path, seed: int) -> tuple[Path, str]:
    """Write a parameter file with one thing changed, most often a key or value; say what."""
    random, path = Random(seed), folder / 'cell.yaml'
    text = random.choice(FILES).read_text()
    path.write_text(text)
    if random.random() < 0.2:
        return path, mutate_folder(folder, random)
    tree, what = mutated(yaml.safe_load(text), random)
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    return path, what


def test_a_node_takes_a_parameter_file_or_says_in_one_line_why_not(
        tmp_path: Path, total: int, capfd: Any) -> None:
    for seed in seeds('parameters', total, 3):
        name = Random(seed).choice([*NODES])
        (folder := tmp_path / str(seed)).mkdir()
        path, what = damaged_file(folder, seed)

        def build(kind: Any = NODES[name]) -> Any:
            node = kind()
            run.end(0)
            return node
        words = ['--ros-args', '-r', f'__ns:={name.rpartition("/")[0] or "/"}',
                 '--params-file', str(path)]
        code = run.run(build, words)
        error = [line for line in capfd.readouterr().err.splitlines() if '[WARN]' not in line]
        assert (code, len(error)) in ((0, 0), (2, 1)), (seed, name, what, error)
        assert all(line.startswith('error: ') and len(line) < LONGEST + len(' '.join(words))
                   for line in error), (seed, what, error)


def test_what_else_reads_a_parameter_file_refuses_it_in_one_line(
        tmp_path: Path, total: int) -> None:
    for seed in seeds('parameters', 2 * total, 3):
        (folder := tmp_path / str(seed)).mkdir()
        path, what = damaged_file(folder, seed)
        told = f'seed {seed}: {what}'
        file = one_line_of(ParameterFile.read, path, what=told)
        if file is not None:
            one_line_of(names_in_params, file, what=told)
            one_line_of(runner.plan, file, {}, what=told)


def sound_messages(now: float) -> dict[Any, Any]:
    """Return a message of every type the nodes listen to, as they are on a good day."""
    head, pixels = conversions.header(now, 'base'), noise(6, 8)
    rows = np.full((8, 7), 0.3, np.float32)
    return {
        JointState: JointState(header=head, name=[*ARM_JOINTS, *FINGER_JOINTS],
                               position=[0.1] * 7 + [0.02] * 2),
        PoseStamped: conversions.pose_message(head, [0.5, 0.0, 0.2], [1.0, 0.0, 0.0, 0.0]),
        Image: deserialize_message(images.serialize_image(pixels, head.stamp), Image),
        CompressedImage: deserialize_message(
            images.serialize_compressed(pixels, head.stamp), CompressedImage),
        String: String(data='put the lemon in the blue bin'), Bool: Bool(data=False),
        DiagnosticStatus: conversions.status_message(
            'vla', 'ACTING', {'reason': '', 'task': 1, 'stamp': now, 'latency_think': 0.1}),
        JointTrajectory: conversions.chunk_message(Chunk(now, 1 / RATES, rows))}


def damaged_message(sound: Any, random: Random) -> tuple[Any, str]:
    """Return a message with one thing changed that can still be sent, and what."""
    plain = conversions.to_plain(sound)
    while True:
        tree, what = mutated(plain, random)
        try:
            return conversions.from_plain(type(sound)(), tree), what
        except ValueError:  # nobody can send this
            continue


@pytest.fixture
def listening() -> Iterator[list[Any]]:
    """Return a gate, a policy node with each kind of image and an overlay; nobody spins them."""
    rclpy.init(args=['test'])
    nodes = [CommandGate(), VlaNode(), Overlay()]
    nodes[1]._inputs.open(nodes[1]._settings)
    yield nodes
    for node in nodes:
        node.destroy_node()
    rclpy.try_shutdown()


def deliver(nodes: list[Any], message: Any) -> None:
    """Call every subscription of the message's type as rclpy does."""
    for subscription in [s for node in nodes for s in node.subscriptions]:
        if subscription.msg_type is type(message):
            subscription.callback(serialize_message(message) if subscription.raw else message)


def test_a_message_is_used_or_refused_and_commands_stay_finite(
        listening: list[Any], total: int) -> None:
    gate, vla, overlay = listening
    cameras = overlay._cameras
    for seed in seeds('messages', total):
        random, now = Random(seed), time.time()
        sound = sound_messages(now)
        kind = random.choice([*sound])
        message, what = damaged_message(sound[kind], random)
        told = f'seed {seed}: {kind.__name__}: {what}'
        gate._gate = Gate(GateConfig(auto_start=True), PROFILES['default'])
        vla._inputs.clear()
        try:
            for each in random.sample([*sound.values(), message, message], len(sound) + 2):
                deliver(listening, each)
            if kind in (Image, CompressedImage):
                data = serialize_message(message)
                _, cameras._parse, cameras._decode = images.TRANSPORTS[
                    'raw' if kind is Image else 'compressed']
                cameras._frames.update(dict.fromkeys(CAMERAS, data))
            overlay._draw()
            overlay._caption()
            [cameras.newest(camera) for camera in CAMERAS]
            gate._watch_graph()
            actions = [gate._gate.tick(now + k / RATES, time.monotonic()).action
                       for k in range(3)]
            seen = vla._inputs.poll('put the lemon in the blue bin')
        except Exception as error:
            raise AssertionError(told) from error
        assert np.abs(actions).max() <= 1.0, told
        assert seen is None or (
            np.isfinite([*seen.ee_position, *seen.ee_quaternion, seen.gripper_opening,
                         *seen.joint_positions.values(), seen.stamp]).all()
            and len(seen.joint_positions) == 9), told
