"""Rows 1 to 11: what can be wrong with cameras, joints and the end effector's pose."""

from __future__ import annotations

import time
from array import array

import numpy as np
import pytest

from dtvla_ros.ros import conversions, images
from test.faults.proxy import drop

PRIMARY = 'image_primary'


@pytest.fixture(scope='module')
def running(rig):
    rig.start('vla_node')
    rig.start('command_gate')
    return rig


@pytest.fixture
def moving(running):
    return running.ready()


def inject(rig, **faults):
    """Spoil topics from now on; return now."""
    rig.proxy.faults.update(faults)
    return time.monotonic()


def goes_on(rig):
    """Heal everything; the arm must move again without being told."""
    rig.proxy.faults.clear()
    rig.spin(rig.moving, 10, 'motion by itself after the fault')


def test_01_a_camera_that_stops_holds_and_stops_for_good_after_5_s(moving, check):
    since = inject(moving, image_wrist=drop)
    check(1, moving.stops(since, 'HOLD', 'image_wrist'))
    moving.spin(lambda: moving.gate[0] == 'STOP', 6, 'STOP')
    assert not moving.strict or 4.5 < time.monotonic() - since < 6.0
    assert 'image_wrist' in moving.gate[1]
    moving.proxy.faults.clear()
    moving.wait(0.5)
    assert moving.gate[0] == 'STOP', 'not by itself'


def test_02_frozen_pixels_with_fresh_stamps(moving, check):
    frozen = {}

    def freeze(message):
        message.data = frozen.setdefault('data', message.data)
        return message
    since = inject(moving, image_primary=freeze)
    check(2, moving.stops(since, 'HOLD', PRIMARY, 'same image'))
    goes_on(moving)


@pytest.mark.parametrize('topic', [PRIMARY, 'joint_states'])
def test_03_stamps_that_stand_still(moving, check, topic):
    first = {}

    def freeze(message):
        message.header.stamp = first.setdefault('stamp', message.header.stamp)
        return message
    since = inject(moving, **{topic: freeze})
    check(3, moving.stops(since, 'HOLD', topic.split('_')[0]))
    goes_on(moving)


def test_04_cameras_that_disagree_about_the_time(moving, check):
    def late(message):
        shot = conversions.seconds(message.header.stamp)
        message.header.stamp = conversions.time_message(shot - 0.8)
        return message
    since = inject(moving, image_wrist=late)
    check(4, moving.stops(since, 'HOLD', 'thinking'))
    moving.spin(lambda: 'wrist within' in moving.vla[1], 2, 'what the policy waits for')
    decided = moving.vla_states[-1][2]['step']
    moving.wait(0.5)
    assert moving.vla_states[-1][2]['step'] == decided, 'no inference'
    goes_on(moving)


def test_05_joint_states_that_stop(moving, check):
    since = inject(moving, joint_states=drop)
    check(5, moving.stops(since, 'HOLD', 'joint states'))
    goes_on(moving)


def test_06_nan_in_joints_and_in_the_pose(moving, check):
    def nan_joints(message):
        message.position = [float('nan')] * len(message.position)
        return message

    def nan_pose(message):
        message.pose.position.x = float('nan')
        return message
    check(6, moving.stops(inject(moving, joint_states=nan_joints), 'HOLD', 'joint states'))
    goes_on(moving)
    check(6, moving.stops(inject(moving, ee_pose=nan_pose), 'HOLD', 'pose'))
    goes_on(moving)


def test_07_black_and_nan_pictures(moving, check):
    def black(message):
        message.data = array('B', bytes(len(message.data)))
        return message

    def nan(message):
        depth = np.full((128, 128), np.nan, np.float32)
        return images.serialize_image(depth, message.header.stamp, encoding='32FC1')
    check(7, moving.stops(inject(moving, image_primary=black), 'HOLD', 'black'))
    goes_on(moving)
    check(7, moving.stops(inject(moving, image_primary=nan), 'HOLD', '32FC1'))
    goes_on(moving)


def test_08_messages_that_are_no_pictures(moving, check):
    def encoding(message):
        message.encoding = 'rgb9'
        return message

    def step(message):
        message.step = 7
        return message

    def short(message):
        message.height = 4000
        return message
    for fault, word in ((encoding, 'rgb9'), (step, 'step 7'), (short, 'bytes of data')):
        check(8, moving.stops(inject(moving, image_primary=fault), 'HOLD', PRIMARY, word))
        goes_on(moving)
    assert moving.processes['vla_node'].poll() is None


def test_09_a_new_resolution_is_resized_and_a_new_shape_holds(moving, check):
    def resized(height, width):
        def fault(message):
            picture = np.random.default_rng().integers(0, 255, (height, width, 3), np.uint8)
            return images.serialize_image(picture, message.header.stamp)
        return fault
    inject(moving, image_primary=resized(240, 240))
    decided = int(moving.vla_states[-1][2]['step'])
    moving.spin(lambda: int(moving.vla_states[-1][2]['step']) > decided + 3, 5, 'decisions')
    moving.spin(moving.moving, 1, 'twice the resolution changes nothing')
    since = inject(moving, image_primary=resized(120, 240))
    check(9, moving.stops(since, 'HOLD', PRIMARY, '240x120'))
    goes_on(moving)


def test_10_shuffled_joints_change_nothing_and_missing_ones_are_named(moving, check):
    def shuffle(message):
        message.name = list(message.name)[::-1]
        message.position = list(message.position)[::-1]
        return message

    def lacking(message):
        message.name, message.position = list(message.name)[1:], list(message.position)[1:]
        return message
    inject(moving, joint_states=shuffle)
    decided = int(moving.vla_states[-1][2]['step'])
    moving.spin(lambda: int(moving.vla_states[-1][2]['step']) > decided + 3, 5, 'decisions')
    moving.spin(moving.moving, 1, 'motion as before')
    since = inject(moving, joint_states=lacking)
    moving.stops(since, 'HOLD', 'panda_joint1')
    goes_on(moving)
    check(10, said='refused, shuffled is fine')


def test_11_a_pose_that_stops_or_is_old(moving, check):
    def old(message):
        message.header.stamp.sec -= 3
        return message
    check(11, moving.stops(inject(moving, ee_pose=drop), 'HOLD', 'pose'))
    goes_on(moving)
    check(11, moving.stops(inject(moving, ee_pose=old), 'HOLD', 'pose', '3.0 s'))
    goes_on(moving)
