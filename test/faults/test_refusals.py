"""Rows 8, 10, 11, 23, 25 to 27: what the managed node refuses, with the reason."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import time

import numpy as np
import pytest
from geometry_msgs.msg import Transform, TransformStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.policy.manifest import MANIFEST, sha256
from dtvla_ros.ros import conversions, images
from dtvla_ros.ros.run import STEADY
from test.faults.inside import slow_loading
from test.faults.proxy import drop
from test.faults.rig import TASK

CONFIGURE, ACTIVATE = 1, 3
MANAGED = ['-p', 'autostart:=false']


def change(rig, transition):
    """Ask the policy node for a transition; return whether it succeeded and the reason told."""
    kind = ChangeState
    client = rig.node.create_client(kind, '/vla/vla_node/change_state')
    rig.spin(client.service_is_ready, 20, 'change_state')
    begun = time.monotonic()
    future = client.call_async(kind.Request(transition=Transition(id=transition)))
    rig.spin(future.done, 10, 'an answer')
    took = time.monotonic() - begun
    assert took < 5.0 or not rig.strict, 'longer than a lifecycle manager waits'
    rig.node.destroy_client(client)
    rig.spin(lambda: rig.vla_states and rig.vla_states[-1][0] > begun + took, 2, 'a state')
    return future.result().success, rig.vla[1]


@pytest.fixture
def managed(rig):
    """Return a function that starts the policy node unconfigured, instead of a former one."""
    def start(*arguments, **options):
        if 'vla_node' in rig.processes:
            rig.kill('vla_node', signal.SIGINT).wait(10)
        rig.proxy.faults.clear()
        rig.start('vla_node', *MANAGED, *arguments, **options)
        rig.spin(lambda: rig.vla[0] == 'UNCONFIGURED', 20, 'UNCONFIGURED')
        return rig
    return start


def configured(rig):
    done, reason = change(rig, CONFIGURE)
    assert done, reason
    rig.spin(lambda: rig.vla[0] == 'INACTIVE', 30, 'the policy loaded')
    return rig


def test_10_missing_joints_are_refused_by_name(managed, check):
    rig = managed()

    def lacking(message):
        message.name, message.position = list(message.name)[1:], list(message.position)[1:]
        return message
    rig.proxy.faults['joint_states'] = lacking
    configured(rig)
    rig.spin(lambda: 'joint_states refused' in rig.log('vla_node'), 5, 'the first joint states')
    done, reason = change(rig, ACTIVATE)
    assert not done and 'panda_joint1' in reason
    rig.proxy.faults.clear()
    rig.spin(lambda: change(rig, ACTIVATE)[0], 5, 'a later attempt that succeeds')
    check(10, said='refused')


def test_23_another_clock_is_refused(managed, check):
    rig = configured(managed('-p', 'use_sim_time:=true'))
    rig.spin(lambda: 'refused: stamped' in rig.log('vla_node'), 5, 'a sample')
    done, reason = change(rig, ACTIVATE)
    assert not done and 'use_sim_time' in reason
    check(23, said='refused')


def test_activation_waits_for_the_policy(managed, rig):
    (rig.folder / 'loading').touch()
    rig = managed(code=slow_loading(rig.folder / 'loading'))
    assert not change(rig, ACTIVATE)[0], 'not before it is configured'
    assert change(rig, CONFIGURE)[0]
    done, reason = change(rig, ACTIVATE)
    assert not done and 'still being loaded' in reason and rig.vla[0] == 'LOADING'
    (rig.folder / 'loading').unlink()
    rig.spin(lambda: rig.vla[0] == 'INACTIVE', 30, 'the policy loaded')
    assert change(rig, ACTIVATE)[0]
    assert rig.vla[0] == 'IDLE'


def copied(policy, tmp_path):
    folder = tmp_path / 'policy'
    shutil.copytree(policy[0], folder)
    return folder


def rewrite(folder, edit):
    """Edit the manifest's JSON in place."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def weights(folder):
    return max(folder.iterdir(), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize('damage', ['truncated', 'flipped'])
def test_25_damaged_weights_are_refused_before_they_are_parsed(
        managed, policy, tmp_path, check, damage):
    folder = copied(policy, tmp_path)
    path = weights(folder)
    data = bytearray(path.read_bytes())
    if damage == 'truncated':
        del data[len(data) // 2:]
    else:
        data[len(data) // 2] ^= 1
    path.write_bytes(data)
    rig = managed('-p', f'policy:={folder}')
    done, reason = change(rig, CONFIGURE)
    assert not done and path.name in reason and 'SHA-256' in reason
    assert rig.vla[0] == 'UNCONFIGURED'
    check(25, said='refused')


class Evil:
    """Unpickled, it leaves a canary."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (open, (self.canary, 'w'))


@pytest.mark.parametrize('listed', [False, True])
def test_26_pickles_and_remote_code_are_refused_and_never_run(
        managed, policy, tmp_path, check, listed):
    folder, canary = copied(policy, tmp_path), tmp_path / 'canary'
    path = weights(folder)
    path.unlink()
    (folder / 'pytorch_model.bin').write_bytes(pickle.dumps(Evil(canary)))
    (folder / 'modeling_evil.py').write_text(f'open({str(canary)!r}, "w")')
    (folder / 'config.json').write_text(json.dumps(
        {'auto_map': {'AutoModel': 'modeling_evil.Evil'}, 'model_type': 'evil'}))
    if listed:
        (folder / path.name).write_bytes(pickle.dumps(Evil(canary)))

        def rehash(manifest):
            manifest['files'][path.name] = sha256(folder / path.name)
        rewrite(folder, rehash)
    rig = managed('-p', f'policy:={folder}')
    done, reason = change(rig, CONFIGURE)
    if listed and done:  # a right hash of a wrong file: found when the file is read
        rig.spin(lambda: rig.vla[0] == 'INACTIVE', 20, 'the end of loading')
        done, reason = change(rig, ACTIVATE)
    assert not done and reason
    assert not canary.exists(), 'the pickle or the code was run'
    check(26, said='refused, canary never made')


@pytest.mark.parametrize('damage', ['missing', 'flat', 'size'])
def test_27_statistics_that_cannot_be_right_are_refused(managed, policy, tmp_path, check, damage):
    folder = copied(policy, tmp_path)

    def spoil(manifest):
        statistics = manifest['statistics']
        if damage == 'missing':
            del manifest['statistics']
        elif damage == 'flat':
            statistics['q99'][2] = statistics['q01'][2]
        else:
            statistics['q99'] = statistics['q99'][:-1]
    rewrite(folder, spoil)
    rig = managed('-p', f'policy:={folder}')
    done, reason = change(rig, CONFIGURE)
    assert not done and ('statistics' in reason or 'q99' in reason), reason
    check(27, said='refused')


def test_08_a_truncated_jpeg_holds(managed, check):
    # Under other names: a process cannot publish two types on one topic, and the proxy is there.
    rig = managed('-p', 'transport:=compressed', remaps=[
        word for name in CAMERAS for word in ('-r', f'image_{name}:=/jpeg_{name}')])
    publishers = [rig.node.create_publisher(
        CompressedImage, f'/jpeg_{name}', qos_profile_sensor_data) for name in CAMERAS]
    random, cut = np.random.default_rng(0), []

    def film():
        stamp = rig.node.get_clock().now().to_msg()
        for publisher in publishers:
            out = images.serialize_compressed(
                random.integers(0, 255, (128, 128, 3), np.uint8), stamp)
            if cut:
                message = deserialize_message(out, CompressedImage)
                out = CompressedImage(header=message.header, format=message.format,
                                      data=message.data[:len(message.data) // 2])
            publisher.publish(out)
    timer = rig.node.create_timer(0.04, film, clock=STEADY)
    if 'command_gate' not in rig.processes:
        rig.start('command_gate')
    configured(rig)
    assert change(rig, ACTIVATE)[0]
    rig.ready()
    since = time.monotonic()
    cut.append(True)
    check(8, rig.stops(since, 'HOLD', 'JPEG'))
    cut.clear()
    rig.spin(rig.moving, 10, 'motion by itself')
    timer.cancel()  # an events executor may still call a timer that is only destroyed
    rig.node.destroy_timer(timer)
    for publisher in publishers:
        rig.node.destroy_publisher(publisher)


@pytest.fixture
def holding(managed):
    """A policy with an instruction but no pose, and a gate without one, until one is there."""
    def start(*arguments):
        rig = managed(*arguments)
        if 'command_gate' in rig.processes:
            rig.kill('command_gate', signal.SIGINT).wait(10)
        rig.proxy.faults['ee_pose'] = drop
        rig.start('command_gate', *arguments)
        rig.spin(lambda: rig.gate[0], 20, 'the gate')
        configured(rig)
        assert change(rig, ACTIVATE)[0]

        def waits():
            if rig.vla[0] in ('IDLE', 'STOPPED'):  # the latter until it has heard the new gate
                rig.instruction.publish(String(data=TASK))
                rig.wait(0.2)
            return rig.vla[0] == 'HOLDING' and 'ee_pose' in rig.vla[1]
        rig.spin(waits, 10, 'a policy without a pose')
        response = rig.obeyed('start')
        assert not response.success and 'pose missing' in response.message
        return rig
    return start


def test_11_no_pose_no_start(holding, check):
    holding().ready()


def test_11_transforms_instead_of_the_topic(holding, check):
    tf2 = pytest.importorskip('tf2_msgs.msg', reason='tf2_msgs is not installed here')
    rig = holding('-p', 'pose_source:=tf', '-p', 'ee_frame:=hand')
    transforms, silent = rig.node.create_publisher(tf2.TFMessage, '/tf', 100), []

    def link(parent, child, height):
        made = TransformStamped(
            header=conversions.header(rig.node.get_clock().now().nanoseconds * 1e-9, parent),
            child_frame_id=child, transform=Transform())
        made.transform.translation.z = height
        made.transform.rotation.w = 1.0
        return made

    def place():
        if not silent:
            transforms.publish(tf2.TFMessage(transforms=[
                link('base', 'arm', 0.3), link('arm', 'hand', 0.1)]))
    timer = rig.node.create_timer(0.02, place, clock=STEADY)
    rig.ready()
    since = time.monotonic()
    silent.append(True)
    check(11, rig.stops(since, 'HOLD', 'pose'))
    timer.cancel()  # an events executor may still call a timer that is only destroyed
    rig.node.destroy_timer(timer)
