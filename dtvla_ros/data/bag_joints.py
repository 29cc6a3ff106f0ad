"""The arm's and the gripper's joints in the joint states of a bag, whoever sent them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dtvla_ros.conventions import ARM_JOINTS, FINGER_JOINTS
from dtvla_ros.data.robot_names import RobotNames, listed
from dtvla_ros.data.track import Row
from dtvla_ros.errors import UserError
from dtvla_ros.ros.conversions import JointReader, refuse_opening


def joint_rows(rows: Sequence[Row], names: RobotNames, where: str,
               ) -> tuple[list[Row], tuple[str, ...], Counter[str]]:
    """Return whole sets of joints {name: rad or m}, the fingers' names, and what was left out.

    The fingers are in metres, whatever they were told in: each has its part of the opening.

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
    return found, fingers, left_out


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
