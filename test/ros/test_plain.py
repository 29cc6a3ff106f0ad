"""Messages as plain dictionaries and back."""

from __future__ import annotations

from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import Float64, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dtvla_ros.ros.conversions import from_plain, to_plain


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
