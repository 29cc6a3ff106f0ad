"""Joints of an arm in JointStates of whoever sends them."""

import numpy as np
import pytest

from dtvla_ros.errors import UserError
from dtvla_ros.ros.conversions import KINDS, MERGED, JointReader, refuse_opening
from dtvla_ros.ros.settings import OpeningSettings

ARM, FINGERS = ('a1', 'a2', 'a3'), ('f1', 'f2')
ALL = {'a1': 0.1, 'a2': 0.2, 'a3': 0.3, 'f1': 0.04, 'f2': -0.04}
WHEELS = {'left_wheel': 7.0, 'right_wheel': np.nan}


@pytest.fixture
def reader():
    return JointReader(ARM, FINGERS)


def part(*names):
    return {name: ALL[name] for name in names}


def told(reader, *messages, stamp=5.0):
    """Give messages one after another, 0.01 s apart; return what the last one led to."""
    for k, message in enumerate(messages):
        found = reader.take(list(message), [*message.values()], stamp + 0.01 * k)
    return found


@pytest.mark.parametrize(('messages', 'stamp'), [
    ([ALL], 5.0), ([dict(reversed(ALL.items()))], 5.0), ([{**WHEELS, **ALL, 'head': 1.0}], 5.0),
    ([part('a1', 'a2', 'a3'), part('f1', 'f2')], 5.0),
    ([part('f1', 'f2'), part('a1', 'a2', 'a3')], 5.01),
    ([part('a2', 'f1'), part('f2', 'a1'), WHEELS, part('a3')], 5.0),
    ([{**ALL, 'a1': 9.0}, ALL], 5.01), ([ALL, {**part('a1'), 'x': 1.0}], 5.0)])
def test_they_are_found_by_name_and_put_together(reader, messages, stamp):
    found = told(reader, *messages)
    assert found.positions == ALL and found.stamp == pytest.approx(stamp) and reader.why == ''
    assert found.opening == pytest.approx(0.08), 'whatever sign a finger has'


@pytest.mark.parametrize('other', [{}, WHEELS])
def test_messages_about_other_joints_are_ignored(reader, other):
    assert told(reader, other) is None
    assert 'none of a1, a2, a3, f1 and 1 more' in reader.why, 'nobody tells ours'
    assert ('left_wheel, right_wheel' if other else 'no joints') in reader.why
    told(reader, ALL)
    assert reader.take(list(other), [], 9.0) is None and reader.why == ''


@pytest.mark.parametrize(('message', 'why'), [
    (part('a1', 'a3', 'f1', 'f2'), 'lacks a2'), (part('f1'), 'lacks a1, a2, a3, f2'),
    ({**ALL, 'a3': np.nan}, 'a3 is nan'), ({**ALL, 'f1': -np.inf}, 'f1 is -inf')])
def test_what_is_missing_is_named(reader, message, why):
    assert told(reader, message) is None and why in reader.why
    assert told(reader, ALL).positions == ALL


def test_a_joint_that_is_not_finite_is_missing_though_it_was_there_before(reader):
    assert told(reader, ALL, {'a1': np.nan}) is None and reader.why == 'a1 is nan'
    assert told(reader, part('a2'), stamp=5.1) is None and 'lacks a1' in reader.why


def test_joints_that_fell_silent_are_missing(reader):
    told(reader, ALL)
    assert reader.take(['f1', 'f2'], [0.0, 0.0], 5.0 + MERGED - 1e-6).stamp == 5.0
    assert reader.take(['f1', 'f2'], [0.0, 0.0], 5.0 + MERGED + 0.01) is None
    assert reader.why == 'it lacks a1, a2, a3, stamped 0.16 s away from the rest'
    assert reader.take(list(ALL), [*ALL.values()], 1.0).stamp == 1.0, 'a clock that went back'


@pytest.mark.parametrize(('names', 'positions', 'why'), [
    ([*ALL], [0.0] * 4, '5 names and 4 positions'), ([*ALL], [], '5 names and 0 positions'),
    ([*ALL, 'a2'], [0.0] * 6, 'a2 twice')])
def test_a_message_that_contradicts_itself_is_refused_whole(reader, names, positions, why):
    assert reader.take(names, positions, 1.0) is None and why in reader.why
    assert reader.take(['a1'], [0.0], 1.0) is None and 'lacks a2, a3' in reader.why


@pytest.mark.parametrize('opening', [80.0, 255.0, 0.8, np.inf])
def test_a_gripper_that_is_not_told_in_metres_is_refused(opening):
    assert 'metres' in refuse_opening(opening) and refuse_opening(0.081) is None


def test_memory_is_bounded(reader):
    for k in range(10 * KINDS):
        reader.take([f'other_{k}'], [0.0], 1.0)
    assert len(reader._places) <= KINDS


@pytest.mark.parametrize(('settings', 'positions', 'opening'), [
    (OpeningSettings(), [0.03, -0.03], 0.06),
    (OpeningSettings(0.085, 0.0, 0.8), [0.0], 0.085),  # a knuckle that closes by its angle
    (OpeningSettings(0.085, 0.0, 0.8), [0.8], 0.0),
    (OpeningSettings(0.085, 0.0, 0.8), [0.2], 0.06375),
    (OpeningSettings(0.085, 0.0, 0.8), [0.81], 0.0),  # a little beyond its stop
    (OpeningSettings(0.07, 1.7, -0.1), [0.8], 0.035)])
def test_an_opening_is_told_in_metres_or_by_an_angle(settings, positions, opening):
    reader = JointReader(['a1'], FINGERS[:len(positions)], opening=settings.metres)
    found = reader.take(['a1', *FINGERS[:len(positions)]], [0.0, *positions], 1.0)
    assert found.opening == pytest.approx(opening)


@pytest.mark.parametrize(('values', 'word'), [
    ({'gripper_width': 0.085}, 'finger_open_position'),
    ({'gripper_width': 0.085, 'finger_open_position': 0.8, 'finger_closed_position': 0.8},
     'finger_closed_position'), ({'finger_closed_position': 0.8}, 'gripper_width')])
def test_half_of_what_an_angle_needs_is_refused(values, word):
    with pytest.raises(UserError, match=word):
        OpeningSettings(**values)
