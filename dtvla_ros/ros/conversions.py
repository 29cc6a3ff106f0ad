"""ROS messages to and from numpy arrays, the package's own types and plain dictionaries."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from numpy.typing import ArrayLike, NDArray
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dtvla_ros.actions.chunk import Chunk
from dtvla_ros.conventions import (
    CHANNELS,
    LATENCY,
    NOT_STARTED,
    WIDEST_GRIPPER,
    understood_as,
)
from dtvla_ros.ros.settings import OpeningSettings

_ARRAY = re.compile(
    r'sequence<(?P<item>.+?)(?:, ?(?P<most>\d+))?>|(?P<fixed>.+)\[(?P<length>\d+)\]')

MERGED = 0.15  # s over which JointStates are put together: a gripper may tell 10 times a second
KINDS = 64  # of messages, by their joints' names, whose places are remembered
LISTED = 4  # names told of many
TURNED = 1e4  # rad or m from which on a joint's position is not believed
REACH = 10.0  # m from the base within which an end effector is
_SCALARS = {'float': float, 'double': float, 'boolean': bool, 'string': str, 'wstring': str}


def stop_reason(gate: DiagnosticStatus) -> str:
    """Return why the gate has ended a task, '' where it has not."""
    reason = status_values(gate).get('reason', '')
    return reason if gate.message in ('STOP', 'FAULT') and reason != NOT_STARTED else ''


def meaning(policy: Mapping[str, str]) -> str:
    """Return, for people, the task that a policy's state understands; '' where it was said so."""
    return understood_as(policy.get('understood', ''), policy.get('instruction'))


def seconds(stamp: Any) -> float:
    """Return a Time or Duration message in seconds."""
    return stamp.sec + stamp.nanosec * 1e-9


def _time(kind: Any, value: float) -> Any:
    sec, nanosec = divmod(round(value * 1e9), 10**9)
    return kind(sec=int(sec), nanosec=int(nanosec))


def time_message(value: float) -> Time:
    """Return seconds as a Time message."""
    return _time(Time, value)


def header(stamp: float, frame_id: str = '') -> Header:
    """Return a header for a stamp in seconds."""
    return Header(stamp=time_message(stamp), frame_id=frame_id)


def chunk_message(chunk: Chunk) -> JointTrajectory:
    """Return a chunk as one point per control step, ``joint_names`` being its channels."""
    return JointTrajectory(
        header=header(chunk.stamp), joint_names=list(chunk.channels), points=[
            JointTrajectoryPoint(positions=floats(row), time_from_start=_time(
                Duration, k * chunk.period)) for k, row in enumerate(chunk.values)])


def chunk_from(message: JointTrajectory, period: float) -> Chunk:
    """Return the chunk in a message; ``period`` [s] is assumed where it has one point only.

    Nothing is checked but that the points are equally long: ragged points give an empty array
    [rows, 0], which whoever judges the shape then refuses.
    """
    points = message.points
    rows = [np.asarray(p.positions, np.float32) for p in points]
    if len({len(r) for r in rows}) > 1:
        rows = [r[:0] for r in rows]
    values = np.stack(rows) if rows else np.empty((0, len(CHANNELS)), np.float32)
    if len(points) > 1:
        period = seconds(points[1].time_from_start) - seconds(points[0].time_from_start)
    return Chunk(seconds(message.header.stamp), period, values, tuple(message.joint_names))


def status_message(name: str, message: str, values: Mapping[str, object],
                   level: bytes | None = None) -> DiagnosticStatus:
    """Return a DiagnosticStatus whose values are formatted for reading."""
    return DiagnosticStatus(
        level=DiagnosticStatus.OK if level is None else level, name=name, message=message,
        values=[KeyValue(key=k, value=f'{v:.4f}' if isinstance(v, float) else str(v))
                for k, v in values.items()])


def status_values(message: DiagnosticStatus) -> dict[str, str]:
    """Return a DiagnosticStatus' values by key."""
    return {pair.key: pair.value for pair in message.values}


def latencies(values: Mapping[str, str]) -> dict[str, float]:
    """Return the seconds of each phase of a decision from the values of ``/vla/state``.

    What is no number is left out.
    """
    found: dict[str, float] = {}
    for key, value in values.items():
        if key.startswith(LATENCY):
            with suppress(ValueError):
                found[key.removeprefix(LATENCY)] = float(value)
    return found


def pose_arrays(message: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return position [3] and quaternion [4] xyzw of a Pose message."""
    p, q = message.position, message.orientation
    return np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])


def twist_array(message: Any) -> NDArray[np.float64]:
    """Return linear and angular velocity [6] of a Twist message."""
    v, w = message.linear, message.angular
    return np.array([v.x, v.y, v.z, w.x, w.y, w.z])


class Joints(NamedTuple):
    """Positions [rad, m] by name, stamp [s] of the arm's oldest one, gripper opening [m]."""

    positions: dict[str, float]
    stamp: float
    opening: float


class JointReader:
    """Reads the joints of an arm and its gripper out of JointStates, whoever sends them.

    Joints are matched by name and may come in several messages: those of at most ``within`` s are
    put together, by their stamps. Messages about other joints are ignored. ``why``: what the last
    message was refused for, or which joints are still missing; '' with a complete set.
    ``opening``: metres of opening by the fingers' positions.
    """

    def __init__(self, arm: Sequence[str], fingers: Sequence[str] = (), within: float = MERGED,
                 opening: Callable[[Sequence[float]], float] = OpeningSettings().metres) -> None:
        self._arm, self._fingers, self._within = tuple(arm), tuple(fingers), within
        self._opening = opening
        self._wanted = (*arm, *fingers)
        self._positions: dict[str, float] = {}
        self._stamps: dict[str, float] = {}
        self._places: dict[tuple[str, ...], dict[str, int]] = {}
        self.why = f'no {_listed(self._wanted)} yet'

    def take(self, names: Sequence[str], positions: Sequence[float], stamp: float,
             ) -> Joints | None:
        """Take a message; return the complete set it belongs to, or None.

        Joints that are not finite count as missing. A message is refused whole where it has other
        than one position for each name, or a joint twice.
        """
        places = self._places.get(key := tuple(names))
        if places is None:
            if len(self._places) >= KINDS:
                self._places.clear()
            places = self._places[key] = {
                name: k for k, name in enumerate(key) if name in self._wanted}
        if not places:
            if self.why:
                self.why = (f'it has {_listed(key) or "no joints"}, none of '
                            f'{_listed(self._wanted)}')
            return None
        if len(key) != len(positions):
            self.why = f'it has {len(key)} names and {len(positions)} positions'
            return None
        if len(set(key)) != len(key) and (twice := [n for n in places if key.count(n) > 1]):
            self.why = f'it has {_listed(twice)} twice'
            return None
        told = {name: float(positions[k]) for name, k in places.items()}
        bad = [name for name, position in told.items() if not abs(position) < TURNED]
        self._positions = told if len(told) == len(self._wanted) else {**self._positions, **told}
        self._stamps |= dict.fromkeys(told, stamp) | dict.fromkeys(bad, math.nan)
        absent = bad if len(told) == len(self._wanted) else [
            name for name in self._wanted
            if not abs(self._stamps.get(name, math.nan) - stamp) <= self._within]
        if absent:
            apart = [abs(told_at - stamp) for name in absent
                     if not math.isnan(told_at := self._stamps.get(name, math.nan))]
            self.why = (f'{bad[0]} is {told[bad[0]]}' if bad else f'it lacks {_listed(absent)}' + (
                f', stamped {max(apart):.2f} s away from the rest' if len(apart) == len(absent)
                else ''))
            return None
        self.why = ''
        return Joints(self._positions, min([self._stamps[n] for n in self._arm], default=stamp),
                      self._opening([self._positions[n] for n in self._fingers]))


def refuse_frame(frame_id: str, base_frame: str) -> str | None:
    """Return why coordinates in a frame are none in the base frame, or None; '' tells nothing."""
    return None if frame_id.lstrip('/') in ('', base_frame.lstrip('/')) else (
        f'its frame_id is "{frame_id:.60}", not base_frame = "{base_frame}": publish it in that '
        'frame, name the frame it is in by base_frame, or use pose_source = "tf"')


def refuse_pose(position: NDArray[np.float64], quaternion: NDArray[np.float64]) -> str | None:
    """Return why a position [3] and a quaternion [4] are no pose, or None."""
    if not np.isfinite(position).all() or not abs(math.hypot(*quaternion) - 1.0) < 0.01:
        return 'it is not finite or its quaternion is not of unit length'
    if np.abs(position).max() > REACH:
        return f'it is more than {REACH:g} m away: are these millimetres? publish metres'
    return None


def refuse_opening(opening: float) -> str | None:
    """Return why what the fingers tell is no opening in metres, or None."""
    return None if opening <= WIDEST_GRIPPER else (
        f'the gripper is {opening:g} m open by its finger_joints, more than {WIDEST_GRIPPER:g} m: '
        'these are millimetres, counts or angles; set gripper_width, finger_open_position and '
        'finger_closed_position')


def _listed(names: Sequence[str]) -> str:
    more = f' and {len(names) - LISTED} more' if len(names) > LISTED else ''
    return ', '.join(names[:LISTED]) + more


def pose_message(head: Header, position: ArrayLike, quaternion: ArrayLike) -> PoseStamped:
    """Return a PoseStamped of a position [3] and a quaternion [4] xyzw."""
    p, q = floats(position), floats(quaternion)
    return PoseStamped(header=head, pose=Pose(
        position=Point(x=p[0], y=p[1], z=p[2]),
        orientation=Quaternion(x=q[0], y=q[1], z=q[2], w=q[3])))


def floats(values: ArrayLike) -> list[float]:
    """Return Python floats, which is what message fields take."""
    return np.asarray(values, np.float64).tolist()


def message_type(name: str) -> Any:
    """Return the class of 'pkg/msg/Type'. Raises ``KeyError`` where it is not installed."""
    try:
        package, kind, leaf = name.split('/')
        return getattr(import_module(f'{package}.{kind}'), leaf)
    except (ImportError, AttributeError, ValueError):
        raise KeyError(name) from None


def to_plain(value: Any, longest: int | None = None) -> Any:
    """Return a message as dictionaries, lists (of ``longest`` values, then '...') and numbers."""
    if hasattr(value, 'get_fields_and_field_types'):
        return {name: to_plain(getattr(value, name), longest)
                for name in value.get_fields_and_field_types()
                if name != 'structure_needs_at_least_one_member'}
    if isinstance(value, bytes):
        return value[0] if len(value) == 1 else list(value)
    if isinstance(value, (str, bool, int, float)):
        return value
    if longest is not None and len(value) > longest:
        return [*to_plain(value[:longest]), f'... {len(value)} values']
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [to_plain(item, longest) for item in value]


def from_plain(message: Any, values: Any) -> Any:
    """Fill a message from a dictionary. Raise ValueError naming the field that is wrong."""
    kinds, kind = message.get_fields_and_field_types(), type(message).__name__
    if not isinstance(values, Mapping):
        raise ValueError(f'fields of {kind} ({", ".join(kinds)}) expected, got {values!r}')
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f'{kind} has no field {name!r}; it has {", ".join(kinds)}')
        try:
            setattr(message, name, _convert(kinds[name], value))
        except (TypeError, ValueError, AssertionError, OverflowError) as error:
            raise ValueError(f'{name}: {error}') from error
    return message


def _convert(kind: str, value: Any) -> Any:
    if array := _ARRAY.fullmatch(kind):
        if not isinstance(value, list):
            raise ValueError(f'a list expected, got {value!r}')
        if len(value) != int(array['length'] or len(value)) or len(value) > int(
                array['most'] or len(value)):
            raise ValueError(f'{kind} expected, got {len(value)} values')
        return [_convert(array['item'] or array['fixed'], entry) for entry in value]
    if kind == 'octet':
        return bytes([value])
    if '/' in kind:
        return from_plain(message_type(kind.replace('/', '/msg/'))(), value)
    scalar = _SCALARS.get(kind.partition('<')[0], int)
    if type(value) is not scalar and (scalar, type(value)) != (float, int):
        raise ValueError(f'{kind} expected, got {value!r}')
    if scalar is int and not np.iinfo(kind).min <= value <= np.iinfo(kind).max:
        raise ValueError(f'{kind} expected, got {value!r}, which is out of its range')
    if scalar is str:
        value.encode()  # UnicodeEncodeError is a ValueError
    return scalar(value)
