"""The joints of arm and gripper in a bag: as they were measured, and as they were commanded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dtvla_ros.conventions import ARM_JOINTS, FINGER_JOINTS
from dtvla_ros.data.robot_names import RobotNames, listed
from dtvla_ros.data.track import Row, Track
from dtvla_ros.errors import UserError
from dtvla_ros.ros.conversions import MERGED, TURNED, JointReader, refuse_opening

FAR = 0.5  # median distance of a command from the measured joint that shows another unit [rad]


def joint_rows(rows: Sequence[Row], names: RobotNames, where: str,
               ) -> tuple[list[Row], tuple[str, ...], tuple[str, ...], Counter[str]]:
    """Return whole sets of joints {name: rad or m}, the arm's and the fingers' names, what is out.

    The fingers are in metres, whatever they were told in: each has its part of the opening. The
    last value counts the messages that were left out, by why.

    ``rows``: (names, positions) of each message; ``where``: bag and topic. Raises ``UserError``
    where the joints are not there, or it is not known which of several sets is the arm's.
    """
    fingers = names.finger_joints or FINGER_JOINTS
    arm = names.arm_joints or _arm([message[0] for _, _, message in rows], fingers, where)
    for name in (both := [*names.arm_joints, *fingers]):
        if both.count(name) > 1:
            raise UserError(f'{where}: {name} is told twice by --joints and --fingers; name every '
                            'joint once')
    known = {name for _, _, message in rows for name in message[0]}
    for option, kind, wanted in (('--fingers', 'gripper joints', fingers),
                                 ('--joints', 'joints of the arm', arm)):
        if absent := [name for name in wanted if name not in known]:
            raise UserError(f'{where} lacks {absent[0]} (it has {listed(sorted(known))}); name '
                            f'the {kind} with {option}')
    reader = JointReader(arm, fingers, opening=names.opening.metres)
    found, left_out = list[Row](), Counter[str]()
    first = rows[0][1]  # seconds since then are exact
    for received, stamp, (told, positions) in rows:
        joints = reader.take(told, positions, (stamp - first) * 1e-9)
        if joints is not None:
            if refused := refuse_opening(joints.opening):
                raise UserError(f'{where}: {refused}')
            metres = dict.fromkeys(fingers, joints.opening / len(fingers)) if (
                names.gripper_width) else {}
            found.append((received, first + round(joints.stamp * 1e9), {
                name: joints.positions[name] for name in (*arm, *fingers)} | metres))
        elif {*told} & {*arm, *fingers}:
            left_out[f'{where.rpartition(": ")[2]}: {reader.why}'] += 1
    return found, arm, fingers, left_out


def _arm(messages: Sequence[Sequence[str]], fingers: Sequence[str], where: str,
         ) -> tuple[str, ...]:
    """Return the arm's joints: a Panda's, or the one set that comes beside the fingers."""
    orders = {frozenset(told) - {*fingers}: told for told in reversed(messages)}
    orders.pop(frozenset(), None)
    if any({*ARM_JOINTS} <= joints for joints in orders):
        return ARM_JOINTS
    if len(orders) == 1:
        return tuple(name for name in next(iter(orders.values())) if name not in fingers)
    if not orders:
        raise UserError(f'{where} has only the joints of the gripper; record the arm, too')
    raise UserError(
        f'{where} has several sets of joints ({"; ".join(listed(sorted(o)) for o in orders)}); '
        'name those of the arm with --joints')


def commanded(sent: Track, states: Track, arm: Sequence[str], named: Sequence[str],
              rate: int | None, where: str, left_out: Counter[str]) -> Track:
    """Return where commands sent the joints, {name: rad or m}, one for each control period.

    A command without a stamp has that of the joint states received with it. Positions that come
    faster than ``rate`` [Hz] are thinned, as `Track.at_rate` has it.

    ``sent``: JointTrajectory, JointState or the positions of ``arm`` in its order. ``named``:
    what each command must name. Raises ``UserError`` for commands of other joints,
    and for those that are far from where the arm is.
    """
    rows: list[Row] = []
    for received, stamp, message in zip(sent.received, _stamps(sent, states), sent.values):
        told, positions = _told(message, arm, where)
        if len(told) != len(positions):
            left_out[f'{where.rpartition(": ")[2]}: it has {len(told)} names and '
                     f'{len(positions)} positions'] += 1
            continue
        targets = dict(zip(told, positions))
        if absent := next((name for name in named if name not in targets), None):
            raise UserError(
                f'{where}: a command of {", ".join(told) or "no joints"} lacks {absent}; name '
                "the arm's joints with --joints, or the topic of its commands with --topic")
        if bad := next((name for name in arm if not abs(targets[name]) < TURNED), None):
            left_out[f'{where.rpartition(": ")[2]}: {bad} is {targets[bad]}'] += 1
            continue
        rows.append((int(received), int(stamp), targets))
    found = Track.of(rows)
    _require_near(found, states, arm, where)
    return found.at_rate(rate)


def followed(states: Track, arm: Sequence[str], rate: int | None) -> Track:
    """Return where the joints were a control period later, {name: rad or m}, for each period.

    ``rate``: as of `commanded`.
    """
    period = states.control_period(rate) or round(np.nan_to_num(states.spacing()))
    rows: list[Row] = []
    for run in states.runs(period) if period else ():
        since = states.stamps[run] - states.stamps[run][0]
        times = np.arange(0, since[-1] - period + 1, period)
        received = np.interp(times, since, states.received[run] - states.received[run][0])
        positions = [np.interp(times + period, since, [joints[name] for joints in
                                                       states.values[run]]) for name in arm]
        rows += zip((states.received[run][0] + received.astype(np.int64)).tolist(),
                    (states.stamps[run][0] + times).tolist(),
                    [dict(zip(arm, row)) for row in np.transpose(positions).tolist()])
    return Track.of(rows)


def _stamps(sent: Track, states: Track) -> Any:
    """Return when commands were sent [N] ns: of 0, which means now, by when they were received."""
    if not states.values:
        return sent.stamps
    passed = np.interp(sent.received - states.received[0], states.received - states.received[0],
                       states.stamps - states.stamps[0])
    return np.where(sent.stamps == 0, states.stamps[0] + passed.astype(np.int64), sent.stamps)


def _told(message: Any, arm: Sequence[str], where: str) -> tuple[Sequence[str], list[float]]:
    """Return names and positions of a command; of a trajectory the point nearest ahead."""
    if hasattr(message, 'joint_names'):
        ahead = next((point for point in message.points if (
            point.time_from_start.sec, point.time_from_start.nanosec) > (0, 0)),
            message.points[-1] if message.points else None)
        return message.joint_names, [] if ahead is None else ahead.positions.tolist()
    if hasattr(message, 'name'):
        return message.name, message.position.tolist()
    positions = np.ravel(message).tolist()
    if len(positions) != len(arm):
        raise UserError(f'{where}: commands of {len(positions)} positions, where those of '
                        f'{", ".join(arm)} are due in this order; name the joints of the '
                        'controller in its order with --joints')
    return arm, positions


def _require_near(targets: Track, states: Track, arm: Sequence[str], where: str) -> None:
    """Refuse commands that are far from where the arm is: of another unit, order or arm."""
    heard = Track(states.received, states.received, states.values)
    places = heard.nearest(targets.received, MERGED * 1e9)
    pairs = [(target, states.values[k]) for target, k in zip(targets.values, places) if k >= 0]
    if not pairs:
        return
    away = np.median([[abs(target[name] - joints[name]) for name in arm]
                      for target, joints in pairs], axis=0)
    if away.max() > FAR:
        name = arm[int(away.argmax())]
        target, joints = pairs[len(pairs) // 2]
        raise UserError(
            f'{where}: {name} is commanded to {target[name]:.4g} where {joints[name]:.4g} rad is '
            'measured: another unit than radians, joints in another order (--joints), or an arm '
            'that did not follow')
