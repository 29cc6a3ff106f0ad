"""Message classes keep rclpy's manners and survive the wire."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtvla_ros.middleware import ros
from dtvla_ros.middleware.messages import (
    DiagnosticStatus,
    Float64,
    Header,
    Image,
    JointState,
    JointTrajectory,
    JointTrajectoryPoint,
    KeyValue,
    PoseStamped,
    Quaternion,
    String,
    Time,
)
from dtvla_ros.middleware.plain import from_plain, to_plain

dds_only = pytest.mark.skipif(ros.BACKEND != 'dds', reason="the DDS client's own codec")


def test_defaults_are_zero_but_for_the_quaternion() -> None:
    pose = PoseStamped()
    assert pose.pose.orientation == Quaternion(x=0.0, y=0.0, z=0.0, w=1.0)
    assert (pose.header.stamp.sec, pose.header.frame_id, len(JointState().position)) == (0, '', 0)


def test_defaults_are_not_shared() -> None:
    one, other = JointTrajectory(), JointTrajectory()
    one.points.append(JointTrajectoryPoint())
    one.header.frame_id = 'here'
    assert (len(other.points), other.header.frame_id) == (0, '')


@dds_only
@pytest.mark.parametrize(('message', 'field', 'value'), [
    (Float64(), 'data', 1), (Float64(), 'data', np.float32(1)), (String(), 'data', b'x'),
    (Time(), 'sec', 1.0), (Time(), 'sec', True), (Time(), 'nanosec', -1),
    (JointState(), 'position', np.zeros(3)), (JointState(), 'position', [1]),
    (JointState(), 'name', 'abc'), (Header(), 'stamp', 3), (DiagnosticStatus(), 'level', 1),
    (Image(), 'data', np.zeros((2, 2), np.uint8)), (Image(), 'data', [256])])
def test_what_rclpy_refuses_is_refused(message: Any, field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=field):
        setattr(message, field, value)


@dds_only
def test_unknown_fields_are_refused() -> None:
    with pytest.raises(AttributeError, match='dat'):
        String(dat='x')
    with pytest.raises(AttributeError, match='dat'):
        String().dat = 'x'


@pytest.mark.parametrize('value', [[1.0, 2.0], (1.0, 2.0), array.array('d', [1.0, 2.0])])
def test_sequences_take_what_rclpy_takes(value: Any) -> None:
    np.testing.assert_array_equal(JointState(position=value).position, [1.0, 2.0])


def _round_trip(message: Any) -> Any:
    from dtvla_ros.middleware.dds.types import deserialize, serialize
    return deserialize(serialize(message), type(message))


@dds_only
@given(names=st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0'))),
       positions=st.lists(st.floats(allow_nan=False)),
       level=st.sampled_from([b'\0', b'\1', b'\2']))
def test_round_trip(names: list[str], positions: list[float], level: bytes) -> None:
    joints = JointState(name=names, position=positions)
    assert _round_trip(joints) == joints
    trajectory = JointTrajectory(joint_names=names, points=[
        JointTrajectoryPoint(positions=positions), JointTrajectoryPoint()])
    assert _round_trip(trajectory) == trajectory
    status = DiagnosticStatus(level=level, name='n', values=[
        KeyValue(key=name, value=name) for name in names])
    again = _round_trip(status)
    assert again == status
    assert again.level == level
    assert isinstance(again.level, bytes)


@dds_only
def test_hashes_are_ros_own() -> None:
    """Known RIHS01 hashes, as ROS 2 Jazzy prints them with ``ros2 topic info -v``."""
    from dtvla_ros.middleware.dds.types import type_hash
    assert type_hash('std_msgs/msg/String') == (
        b'typehash=RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18;')
    assert type_hash('sensor_msgs/msg/Image') == (
        b'typehash=RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47;')


def test_plain_round_trip() -> None:
    trajectory = JointTrajectory(
        header=Header(frame_id='f'), joint_names=['a'],
        points=[JointTrajectoryPoint(positions=[1.0, 2.0])])
    plain = to_plain(trajectory)
    assert plain['points'][0]['positions'] == [1.0, 2.0]
    assert to_plain(from_plain(JointTrajectory(), plain)) == plain
    status = from_plain(DiagnosticStatus(), {'level': 2, 'values': [{'key': 'k', 'value': 'v'}]})
    assert status.level == DiagnosticStatus.ERROR
    assert to_plain(status)['level'] == 2


@pytest.mark.parametrize(('values', 'reason'), [
    ({'dat': 1}, "no field 'dat'"), ({'data': 'x'}, 'double expected'), ([1], 'fields of Float64'),
    ({'data': True}, 'double expected')])
def test_plain_names_what_is_wrong(values: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_plain(Float64(), values)
