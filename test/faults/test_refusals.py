"""Rows 8, 10, 11, 23, 25 to 27, 43: what a node refuses, with the reason."""

import json
import shutil
import time

import pytest
from geometry_msgs.msg import TransformStamped
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from support.graph import noise

from dtvla_ros.conventions import CAMERAS
from dtvla_ros.policy.manifest import MANIFEST, sha256
from dtvla_ros.ros import conversions, images
from test.faults.inside import policy_faults
from test.faults.rig import TASK, drop, only_joints

CONFIGURE, ACTIVATE = 1, 3


def change(rig, transition):
    """Ask the policy node for a transition; return whether it succeeded and the reason told."""
    begun = time.monotonic()
    done, answered = rig.change(transition), time.monotonic()
    assert answered - begun < 5.0 or not rig.strict, 'longer than a lifecycle manager waits'
    rig.spin(lambda: rig.of('vla', answered), 2, 'a state')
    return done, rig.vla[1]


@pytest.fixture
def managed(rig):
    """Return a function that starts the policy node unconfigured, instead of a former one."""
    def start(*arguments, **values):
        rig.faults.clear()
        rig.begin('vla_node', *arguments, autostart='false', **values)
        rig.spin(lambda: rig.vla[0] == 'UNCONFIGURED', 20, 'UNCONFIGURED')
        return rig
    return start


def configured(rig):
    """Configure the policy node and wait until its policy is loaded."""
    done, reason = change(rig, CONFIGURE)
    assert done, reason
    rig.spin(lambda: rig.vla[0] == 'INACTIVE', 30, 'the policy loaded')
    return rig


def test_10_missing_joints_are_refused_by_name(managed, check):
    rig = managed()
    rig.inject(joint_states=only_joints(slice(1, None)))
    configured(rig)
    rig.spin(lambda: 'joint_states refused' in rig.log('vla_node'), 5, 'the first joint states')
    done, reason = change(rig, ACTIVATE)
    assert not done and 'panda_joint1' in reason
    rig.faults.clear()
    rig.spin(lambda: change(rig, ACTIVATE)[0], 5, 'a later attempt that succeeds')
    check(10, said='refused')


def test_23_another_clock_is_refused(managed, check):
    rig = configured(managed(use_sim_time='true'))
    rig.spin(lambda: 'refused: stamped' in rig.log('vla_node'), 5, 'a sample')
    done, reason = change(rig, ACTIVATE)
    assert not done and 'use_sim_time' in reason
    check(23, said='refused')


def test_activation_waits_for_the_policy(managed, rig):
    (rig.folder / 'loading').touch()
    rig = managed(code=policy_faults(rig.folder))
    assert not change(rig, ACTIVATE)[0], 'not before it is configured'
    assert change(rig, CONFIGURE)[0]
    done, reason = change(rig, ACTIVATE)
    assert not done and 'still being loaded' in reason and rig.vla[0] == 'LOADING'
    (rig.folder / 'loading').unlink()
    rig.spin(lambda: rig.vla[0] == 'INACTIVE', 30, 'the policy loaded')
    assert change(rig, ACTIVATE)[0] and rig.vla[0] == 'IDLE'


def evil(canary):
    """Return a pickle that leaves a canary once it is read: it calls io.open(canary, 'w')."""
    return f'cio\nopen\n(V{canary}\nVw\ntR.'.encode()


def edited(edit):
    """Return a damage to the manifest's JSON."""
    def damage(folder, weights):
        manifest = json.loads((folder / MANIFEST).read_text())
        edit(manifest, weights)
        (folder / MANIFEST).write_text(json.dumps(manifest))
    return damage


def truncate(folder, weights):
    weights.write_bytes(weights.read_bytes()[:weights.stat().st_size // 2])


def flip(folder, weights):
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)


def put_pickle(folder, weights):
    """Put a pickle and code to import in place of the weights."""
    weights.unlink()
    canary = folder.parent / 'canary'
    (folder / 'pytorch_model.bin').write_bytes(evil(canary))
    (folder / 'modeling_evil.py').write_text(f'open({str(canary)!r}, "w")')
    (folder / 'config.json').write_text(json.dumps(
        {'auto_map': {'AutoModel': 'modeling_evil.Evil'}, 'model_type': 'evil'}))


def put_listed_pickle(folder, weights):
    """Put a pickle under the name of the weights, with its right hash."""
    put_pickle(folder, weights)
    weights.write_bytes(evil(folder.parent / 'canary'))
    edited(lambda m, weights: m['files'].update({weights.name: sha256(weights)}))(folder, weights)


@pytest.mark.parametrize(('row', 'damage', 'word'), [
    (25, truncate, 'SHA-256'), (25, flip, 'SHA-256'), (26, put_pickle, ''),
    (26, put_listed_pickle, ''), (27, edited(lambda m, _: m.pop('statistics')), 'statistics'),
    (27, edited(lambda m, _: m['statistics']['q99'].pop()), 'statistics'),
    (27, edited(lambda m, _: m['statistics'].update(q99=m['statistics']['q01'])), 'q99')])
def test_a_damaged_policy_is_refused_before_it_is_parsed(
        managed, policy, tmp_path, check, row, damage, word):
    folder = tmp_path / 'policy'
    shutil.copytree(policy[0], folder)
    weights = max(folder.iterdir(), key=lambda p: p.stat().st_size)
    damage(folder, weights)
    rig = managed(policy=folder)
    done, reason = change(rig, CONFIGURE)
    if damage is put_listed_pickle and done:  # a right hash of a wrong file: found when it is read
        rig.spin(lambda: rig.vla[0] == 'INACTIVE', 20, 'the end of loading')
        done, reason = change(rig, ACTIVATE)
    assert not done and reason and word in reason, reason
    if row == 25:
        assert weights.name in reason and rig.vla[0] == 'UNCONFIGURED'
    assert not (tmp_path / 'canary').exists(), 'the pickle or the code was run'
    check(row, said='refused, canary never made' if row == 26 else 'refused')


def test_08_a_truncated_jpeg_holds(managed, check):
    # Under other names: a process cannot publish two types on one topic, and the proxy is there.
    rig = managed(*(word for name in CAMERAS for word in (
        '-r', f'image_{name}:=/jpeg_{name}')), transport='compressed')
    publishers = [rig.node.create_publisher(
        CompressedImage, f'/jpeg_{name}', qos_profile_sensor_data) for name in CAMERAS]
    truncated = []

    def film():
        stamp = rig.node.get_clock().now().to_msg()
        for publisher in publishers:
            out = images.serialize_compressed(noise(), stamp)
            if truncated:
                out = deserialize_message(out, CompressedImage)
                out.data = out.data[:len(out.data) // 2]
            publisher.publish(out)
    timer = rig.every(0.04, film)
    if 'command_gate' not in rig.processes:
        rig.begin('command_gate')
    configured(rig)
    assert change(rig, ACTIVATE)[0]
    rig.ready()
    since = time.monotonic()
    truncated.append(True)
    check(8, rig.stops(since, 'HOLD', 'cut off'))
    truncated.clear()
    rig.goes_on()
    timer.cancel()


@pytest.mark.parametrize(('section', 'parameter', 'word'), [
    ('/command_gate', 'workspace_hihg', 'the nearest is workspace_high'),
    ('/**', 'workspace_hihg', 'the nearest is workspace_high'),
    ('/my_gate', 'workspace_high', 'not for /command_gate')])
def test_43_a_box_that_would_be_left_out_is_refused(
        rig, tmp_path, check, section, parameter, word):
    (tmp_path / 'cell.yaml').write_text(
        f'{section}: {{ros__parameters: {{{parameter}: [0.7, 0.3, 0.5]}}}}')
    rig.begin('command_gate', '--params-file', str(tmp_path / 'cell.yaml'))
    process = rig.processes['command_gate']
    rig.spin(lambda: process.poll() is not None, 30, 'the end of the gate')
    del rig.processes['command_gate']
    said = rig.log('command_gate').splitlines()[-1]
    assert process.returncode == 2 and said.startswith('error: ') and word in said, said
    assert not rig.commands
    check(43, said='refused')


@pytest.mark.parametrize('source', ['topic', 'tf'])
def test_11_no_pose_no_start(managed, check, source):
    values = {}
    if source == 'tf':
        tf2 = pytest.importorskip('tf2_msgs.msg', reason='tf2_msgs is not installed here')
        values = {'pose_source': 'tf', 'ee_frame': 'hand'}
    rig = managed(**values)
    rig.inject(ee_pose=drop)
    rig.begin('command_gate', **values)
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
    if source == 'topic':
        rig.ready()
        return
    transforms = rig.node.create_publisher(tf2.TFMessage, '/tf', 100)

    def link(parent, child, height):
        made = TransformStamped(child_frame_id=child, header=conversions.header(
            rig.node.get_clock().now().nanoseconds * 1e-9, parent))
        made.transform.translation.z = height
        made.transform.rotation.w = 1.0
        return made
    timer = rig.every(0.02, lambda: transforms.publish(tf2.TFMessage(transforms=[
        link('base', 'arm', 0.3), link('arm', 'hand', 0.1)])))
    rig.ready()
    since = time.monotonic()
    timer.cancel()
    check(11, rig.stops(since, 'HOLD', 'pose'))
