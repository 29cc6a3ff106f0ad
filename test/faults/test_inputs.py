"""Rows 1 to 11, 36, 40 to 42: what can be wrong with cameras, joints and the gripper's pose."""

import time
from array import array
from functools import reduce

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from support.graph import noise

from dtvla_ros.ros import conversions, images
from dtvla_ros.ros.processes import resident_memory
from test.faults.rig import drop, in_parts, only_joints, wheels, with_a_base

GROWTH = 30.0  # of the policy's memory while frames wait in its reader [MB]


@pytest.fixture(scope='module')
def running(rig):
    rig.hear('diagnostics', DiagnosticArray, '/diagnostics', 10)
    rig.begin('vla_node')
    rig.begin('command_gate')
    return rig


def spoiled(name, value):
    """Return a fault that puts what a function makes of the message into one of its fields."""
    *path, leaf = name.split('.')

    def fault(message):
        setattr(reduce(getattr, path, message), leaf, value(message))
        return message
    return fault


def frozen(name):
    """Return a fault that puts what a field held first into every message."""
    first = []

    def value(message):
        first[:] = first or [reduce(getattr, name.split('.'), message)]
        return first[0]
    return spoiled(name, value)


def replaced(image, encoding='rgb8'):
    """Return a fault that sends another image."""
    return lambda message: images.serialize_image(image, message.header.stamp, encoding=encoding)


in_world = spoiled('header.frame_id', lambda m: 'world')


def later(seconds):
    """Return a fault that adds to the stamp."""
    return spoiled('header.stamp', lambda m: conversions.time_message(
        conversions.seconds(m.header.stamp) + seconds))


@pytest.mark.parametrize(('row', 'topic', 'fault', 'words'), [
    (2, 'image_primary', frozen('data'), ['image_primary', 'same image']),
    (3, 'image_primary', frozen('header.stamp'), ['image']), (5, 'joint_states', drop, ['joint']),
    (3, 'joint_states', frozen('header.stamp'), ['joint']),
    (6, 'joint_states', spoiled('position', lambda m: [np.nan] * len(m.position)), ['joint']),
    (6, 'ee_pose', spoiled('pose.position.x', lambda m: np.nan), ['pose']),
    (7, 'image_primary', spoiled('data', lambda m: array('B', bytes(len(m.data)))), ['black']),
    (7, 'image_primary', replaced(np.full((128, 128), np.nan, np.float32), '32FC1'), ['32FC1']),
    (8, 'image_primary', spoiled('encoding', lambda m: 'rgb9'), ['rgb9']),
    (8, 'image_primary', spoiled('step', lambda m: 7), ['step 7']),
    (8, 'image_primary', spoiled('height', lambda m: 4000), ['bytes of data']),
    (9, 'image_primary', replaced(noise(120, 240)), ['image_primary', '240x120']),
    (10, 'joint_states', only_joints(slice(1, None)), ['panda_joint1']),
    (11, 'ee_pose', drop, ['pose']), (11, 'ee_pose', later(-3.0), ['pose', 'stamped -3.']),
    (40, 'joint_states', wheels, ['joint']), (41, 'ee_pose', in_world, ['"world"', '"base"'])])
def test_a_spoiled_topic_holds_and_once_healed_the_arm_goes_on(
        moving, check, row, topic, fault, words):
    took = moving.stops(moving.inject(**{topic: fault}), 'HOLD', *words)
    check(row, None if row == 10 else took, 'refused, shuffled is fine')
    if row == 8:
        moving.spin(lambda: any(value.key == f'refused_{topic}'
                                for value in moving.last('diagnostics').status[0].values), 5)
    moving.goes_on()
    assert moving.processes['vla_node'].poll() is None


def test_01_a_camera_that_stops_holds_and_stops_for_good_after_5_s(moving, check):
    since = moving.inject(image_wrist=drop)
    check(1, moving.stops(since, 'HOLD', 'image_wrist'))
    moving.spin(lambda: moving.gate[0] == 'STOP', 6, 'STOP')
    assert not moving.strict or 4.5 < time.monotonic() - since < 6.0
    assert 'image_wrist' in moving.gate[1]
    moving.faults.clear()
    moving.wait(0.5)
    assert moving.gate[0] == 'STOP', 'not by itself'


def test_04_cameras_that_disagree_about_the_time(moving, check):
    # Of this clock still, but older than any frame that is decided on.
    since = moving.inject(image_wrist=later(-0.8 if moving.strict else -1.6))
    check(4, moving.stops(since, 'HOLD', 'thinking'))
    moving.spin(lambda: any(word in moving.vla[1] for word in ('wrist within', 'younger than')),
                2, 'what the policy waits for')
    decided = moving.told('step')
    moving.wait(0.5)
    assert moving.told('step') == decided, 'no inference'
    moving.goes_on()


@pytest.mark.parametrize(('topic', 'fault'), [
    ('image_primary', lambda m: images.serialize_image(noise(240, 240), m.header.stamp)),
    ('joint_states', only_joints(slice(None, None, -1)))])
def test_09_10_twice_the_resolution_and_shuffled_joints_change_nothing(moving, topic, fault):
    moving.inject(**{topic: fault})
    decided = int(moving.told('step'))
    moving.spin(lambda: int(moving.told('step')) > decided + 3, 5, 'decisions')
    moving.spin(moving.moving, 1, 'motion as before')


@pytest.mark.parametrize('fault', [in_parts, with_a_base])
def test_42_joints_in_several_messages_change_nothing(moving, check, fault):
    moving.inject(joint_states=fault)
    moving.begin('vla_node')  # from the start, too
    moving.begin('command_gate')
    moving.ready(heal=False)
    decided = int(moving.told('step'))
    moving.spin(lambda: int(moving.told('step')) > decided + 3, 5, 'decisions')
    moving.spin(moving.moving, 1, 'motion')
    check(42, said='runs')


@pytest.mark.parametrize(('row', 'topic', 'fault', 'words'), [
    (40, 'joint_states', wheels, ['joint states', 'left_wheel', 'panda_joint1']),
    (40, 'joint_states', only_joints(slice(0)), ['joint states', 'no joints', 'panda_joint1']),
    (41, 'ee_pose', in_world, ['pose', '"world"', 'base_frame = "base"'])])
def test_40_41_the_gate_does_not_start_without_its_arm_or_in_another_frame(
        moving, check, row, topic, fault, words):
    moving.inject(**{topic: fault})
    moving.begin('command_gate')
    moving.spin(lambda: moving.gate[0], 20, 'the gate')
    said = []

    def refused():
        moving.wait(0.1)
        said[:] = [moving.obeyed('start')]
        assert not said[0].success
        return all(word in said[0].message for word in words)
    moving.spin(refused, 10, f'a refusal for {words}')
    check(row, said='refused')


@pytest.mark.slow
def test_36_a_flood_of_images(moving, check, request):
    seconds = request.config.getoption('--flood-seconds', default=8)
    process = moving.processes['vla_node']
    # It is the camera that floods. Two publishers on one topic, one of images that DDS sends in
    # fragments and one of smaller ones, let Fast DDS 2.14's reader grow without end.
    moving.inject(image_primary=drop)
    flood = moving.launch('flood', 'test/faults/flood.py', '/image_primary', str(seconds))
    moving.wait(3.0)
    before = resident_memory(process.pid)
    moving.stamps.clear()
    moving.spin(lambda: flood.poll() is not None, seconds + 30, 'the end of the flood')
    rate, jitter = float(moving.log('flood')), np.abs(np.diff(moving.stamps) - 0.05)
    assert process.poll() is None and moving.vla[0] in ('ACTING', 'THINKING', 'HOLDING', 'STOPPED')
    grown = resident_memory(process.pid) - before
    assert grown < GROWTH
    moving.ready()
    check(36, float(np.percentile(jitter, 99)))
    check(36, said=f'p99; {rate:.0f} images/s, memory {grown:+.0f} MB')
