"""What policy node and gate say of other units, frames and clocks, and of another arm's joints."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from support.graph import NANO

from dtvla_ros.conventions import ARM_JOINTS, FINGER_JOINTS
from dtvla_ros.nodes.command_gate import CommandGate
from dtvla_ros.nodes.vla_node import VlaNode
from dtvla_ros.policy.manifest import ImageContract, PolicyManifest
from dtvla_ros.ros import conversions

ARM, HAND = dict.fromkeys(ARM_JOINTS, 0.1), dict.fromkeys(FINGER_JOINTS, 0.02)
GATES = {JointState: 'joint states', PoseStamped: 'end-effector pose'}
NO_STAMP, USE_SIM_TIME = 'its stamp is 0', 'is use_sim_time the same everywhere?'


@pytest.fixture
def nodes(graph):
    graph.listen()
    vla, gate = graph.join(VlaNode), graph.join(CommandGate)
    vla._inputs.open(vla._settings)
    gate._gate.tick(time.time(), time.monotonic())
    return vla, gate


def joints(positions, stamp=None):
    return JointState(header=conversions.header(time.time() if stamp is None else stamp),
                      name=list(positions), position=[float(p) for p in positions.values()])


def pose(frame='base', stamp=None, quaternion=(1.0, 0.0, 0.0, 0.0)):
    return conversions.pose_message(conversions.header(
        time.time() if stamp is None else stamp, frame), [0.5, 0.0, 0.2], quaternion)


def image(stamp=None, encoding='rgb8', width=2, height=2):
    return Image(header=conversions.header(time.time() if stamp is None else stamp), height=height,
                 width=width, encoding=encoding, step=3 * width,
                 data=np.arange(3 * width * height, dtype=np.uint8).tobytes())


def judged(nodes, message):
    """Give a message to both; return why the policy, and why the gate, does not take it."""
    vla, gate = nodes
    for node in nodes:
        for subscription in node.subscriptions:
            if subscription.msg_type is type(message):
                subscription.callback(serialize_message(message) if subscription.raw else message)
    return (vla._inputs.wrong() or '',
            gate._gate._refused.get(GATES.get(type(message)), ''))


@pytest.mark.parametrize('message', [
    joints({**ARM, **HAND}), joints({'wheel': 1.0, **ARM, **HAND}), pose(), pose(''),
    pose('/base'), image()])
def test_what_is_right_is_taken(nodes, message):
    message.header.stamp = conversions.time_message(time.time())
    assert judged(nodes, message) == ('', '')


@pytest.mark.parametrize(('make', 'words'), [
    *((lambda make=make, stamp=stamp: make(stamp), [said]) for make in (
        lambda stamp: joints({**ARM, **HAND}, stamp()), lambda stamp: pose(stamp=stamp()))
      for stamp, said in ((lambda: 0.0, NO_STAMP), (lambda: 12.5, USE_SIM_TIME),
                          (lambda: time.time() + 7.0, 'away from this clock'))),
    (lambda: pose('world'), ['"world"', 'base_frame = "base"']),
    (lambda: pose(quaternion=(0.0, 0.0, 0.0, 0.0)), ['unit length']),
    (lambda: pose(quaternion=(np.nan, 0.0, 0.0, 1.0)), ['finite']),
    (lambda: joints({'wheel': 1.0}), ['it has wheel, none of panda_joint1']),
    (lambda: joints({}), ['no joints']),
    (lambda: joints({**ARM, **HAND, 'panda_joint3': np.inf}), ['panda_joint3 is inf'])])
def test_both_say_the_same_of_what_is_wrong(nodes, make, words):
    for said in judged(nodes, make()):
        assert all(word in said for word in words), said


@pytest.mark.parametrize(('message', 'words'), [
    (lambda: image(0.0), [NO_STAMP]), (lambda: image(12.5), [USE_SIM_TIME]),
    (lambda: image(encoding='16UC1'), ["'16UC1'", 'depths']),
    (lambda: joints({**ARM, **dict.fromkeys(HAND, 40.0)}), ['80 m open', 'millimetres']),
    (lambda: joints({**ARM, **dict.fromkeys(HAND, 0.4)}), ['angles']),
    (lambda: joints(ARM), ['lacks panda_finger_joint1'])])
def test_the_policy_says_what_is_wrong(nodes, message, words):
    said, gates = judged(nodes, message())
    assert all(word in said for word in words) and not gates, said


def test_compressed_depths_are_refused_as_raw_ones(graph):
    graph.listen('--ros-args', '-p', 'transport:=compressed')
    vla = graph.join(VlaNode)
    vla._inputs.open(vla._settings)
    said, _ = judged((vla, graph.join(CommandGate)), CompressedImage(
        header=conversions.header(time.time()), format='16UC1; png compressed '))
    assert "'16UC1'" in said and 'depths' in said


def test_a_camera_of_another_shape_is_refused_and_taken_once_it_has_the_right_one(nodes):
    vla, _ = nodes
    vla._inputs.expect({'primary': (16, 12), 'wrist': (2, 2)})
    said, _ = judged(nodes, image(width=32, height=24))  # both cameras get it
    assert said == 'image_wrist: the image is 32x24, the policy was trained on 2x2: set the ' \
        'camera to that shape, or train on images of this one'
    vla._inputs.expect({'primary': (16, 12)})
    assert judged(nodes, image(width=8, height=6))[0] == ''
    said, _ = judged(nodes, image(width=16, height=9))
    assert said.startswith('image_primary: the image is 16x9, the policy was trained on 16x12:')
    assert vla._inputs.refused == {'image_wrist': 2, 'image_primary': 1}


def test_the_node_is_not_activated_with_a_camera_of_another_shape(nodes):
    vla, _ = nodes
    loaded = threading.Event()
    loaded.set()
    vla._worker = SimpleNamespace(
        loaded=loaded, load_error=None, busy_since=None, take=lambda: None, stop=lambda _: None,
        manifest=PolicyManifest.read(NANO))
    assert judged(nodes, image(width=16, height=9))[0] == ''  # of which nothing is known
    vla._worker.manifest = replace(vla._worker.manifest, images=ImageContract(
        sizes={'primary': (640, 480), 'wrist': (320, 180)}))
    assert vla.on_activate(None) == TransitionCallbackReturn.FAILURE
    assert vla._monitor.refusal.startswith(
        'image_primary: the image is 16x9, the policy was trained on 640x480:')
    assert vla._inputs.poll('') is None and vla._inputs.missing == 'primary image'
